"""The work of an array task, inside the job and, if the profile has one, inside the container.

submitit pickles the call of `run_task` with plain values only, so that the login node and the image may have
different minor versions of Python.

Exit codes: 0: all shards of the task are committed. 75: stopped after Slurm's warning; the task has to run again.
1: some work failed or is missing. 2: the task cannot run like this.
"""

import datetime
import logging
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from magicseg.core.errors import MagicsegError, RunError
from magicseg.core.garbage_collection import collect_less_often
from magicseg.core.package import package_version
from magicseg.core.shard_ranges import format_ranges, parse_ranges
from magicseg.core.text import command, indented
from magicseg.launch.caption_server import server_for
from magicseg.launch.jobs import server_log_path
from magicseg.launch.profile import CaptionServer
from magicseg.run.claims import STALE_SECONDS, is_live, job_label
from magicseg.run.container_image import present_image, refuse_other_image
from magicseg.run.directory import Run
from magicseg.stages.placement import place_task
from magicseg.stages.pool import run_stage
from magicseg.stages.worker import ShardEvent, run_shards

STOPPED = 75  # EX_TEMPFAIL of sysexits.h
_POLL_SECONDS = 2.0


@dataclass
class _Signals:
    """The signals received so far. SIGUSR2 is Slurm's warning before the time limit; SIGTERM ends the job."""

    warned: bool = False
    ended: bool = False

    def listen(self) -> None:
        """Replace submitit's signal handlers, which would requeue the job in the middle of a shard."""
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, lambda *_: setattr(self, "warned", True))
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: setattr(self, "ended", True))
        signal.signal(signal.SIGCONT, signal.SIG_DFL)  # Slurm sends it to wake suspended processes

    def __call__(self) -> bool:
        return self.warned or self.ended


def run_task(
    *,
    run: str,
    stage: str,
    shards: str,
    version: str,
    delay: float = 0.0,
    shares: int = 1,
    server: Mapping[str, Any] | None = None,
    folder: str = "",
) -> None:
    """Complete a task's missing shards. Exit the process if the exit code is not 0.

    Args: run: the run's directory. shards: ranges. version: magicseg's version on the submitting machine.
        delay: seconds to wait first, so that many tasks do not load weights at the same time. shares: number of tasks
        that an evaluation is split into; ``shards`` is then the number of this task's part. server: the values of a
        `CaptionServer` that the task starts. folder: of the task's log.
    """
    collect_less_often()
    logging.getLogger("submitit").setLevel(logging.WARNING)  # its last messages would hide this function's
    stop = _Signals()
    try:
        refuse_misfit(Path(run), version)
        stop.listen()
        _wait(delay, stop)
        if stage == "evaluate":
            _evaluate(Path(run), (parse_ranges(shards)[0], shares) if shards else (0, 1), stop)
            return
        opened, wanted = Run.open(Path(run)), parse_ranges(shards)
        served = CaptionServer.model_validate(server) if server else None
        log = server_log_path(Path(folder), job_label())
        with server_for(opened, wanted, served, log, stop=stop, report=_log):
            missing = _do(opened, stage, wanted, stop)
    except MagicsegError as error:
        for line in error.lines():
            _log(line)
        _exit(stop, error.exit_code)
    if not missing:
        return
    _log(f"{stage}: {len(missing)} shards of this task are not done: {format_ranges(missing)}")
    _exit(stop, 1)


def _exit(stop: "_Signals", code: int) -> NoReturn:
    """Exit with 75 after Slurm's warning, and otherwise with ``code``."""
    if stop.warned:
        _log("stopped, because the time of this job ends: the task has to run again")
        sys.exit(STOPPED)
    sys.exit(code)


def _log(text: str) -> None:
    stamp = datetime.datetime.now().strftime("%H:%M:%S")
    print(f"{stamp} {indented(text, ' ' * 9)}", flush=True)  # standard output is the task's log


def refuse_misfit(run: Path, version: str) -> None:
    """Raise RunError if ``version`` is not magicseg's here, PlanMismatch if this image is not the run's."""
    if version != package_version():
        raise RunError(
            f"{run}: was submitted by magicseg {version}, but this node or image has {package_version()}",
            hint="install the same version on both sides, or build the image again, then submit again",
        )
    refuse_other_image(
        run, present_image(), f"{command('magicseg', 'submit', 'STAGE', run)}   # submits it in the current image"
    )


def _wait(seconds: float, stop: Callable[[], bool]) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and not stop():
        time.sleep(min(0.2, seconds))


def _evaluate(path: Path, part: tuple[int, int], stop: "_Signals") -> None:
    """Score the model on this task's part of the images. Exit the process if a signal stopped it."""
    from magicseg.core.distributed import World
    from magicseg.evaluate.model_under_test import Target
    from magicseg.evaluate.suite import Suite

    target = Target.of(path)
    assert target.run is not None
    suite = Suite.of(target, target.run.config.evaluate, device=World().device)
    for results in suite.evaluate(part=part, report=lambda text: _log(f"evaluate: {text}"), stop=stop):
        _log(f"evaluate: {results['benchmark']}, mIoU {results['miou']:.4f}")
    if stop():
        _log("evaluate: stopped, because the time of this job ends: the task has to run again")
        sys.exit(STOPPED if stop.warned else 1)
    _log(f"evaluate: share {part[0] + 1} of {part[1]} is done")


def _do(run: Run, stage: str, shards: list[int], stop: Callable[[], bool]) -> list[int]:
    """Complete the shards. Return the shards that are still missing at the end."""
    began = time.monotonic()
    ledger = run.ledger(stage)
    run.checked_commits(stage)

    def report(event: ShardEvent) -> None:
        detail = f", {event.samples} samples" if event.outcome == "committed" else ""
        _log(f"{stage} shard {event.shard}: {event.outcome}{detail}{': ' if event.detail else ''}{event.detail}")

    placement = place_task(run.config, stage)

    def work(todo: list[int]) -> None:
        """Do shards, with one worker in this process, and with more in a pool of processes."""
        if placement.workers > 1 and todo:
            at_most = placement.at_most(len(todo))
            run_stage(run, stage, shards=todo, workers=at_most.workers, gpus=at_most.gpus, report=report, stop=stop)
        else:
            gpu = placement.gpus[0].name if placement.gpus else None
            run_shards(run, stage, todo, report=report, should_stop=stop, gpu=gpu)

    if placement.gpus:
        _log(f"{stage}: {placement}")
    # Shards that killed or failed an earlier task come last: if it happens again, the others are done.
    suspects = {shard for shard in shards if ledger.claim_path(shard).exists() or ledger.failure_path(shard).exists()}
    order = [*(shard for shard in shards if shard not in suspects), *sorted(suspects)]
    if placement.workers > 1:  # a pool does ascending shards
        work(order[: len(order) - len(suspects)])
        work(sorted(suspects))
    else:
        work(order)
    missing = [shard for shard in shards if ledger.committed(shard) is None]
    # If a claim's owner runs on another node, only the claim's age tells that it is dead: wait until it is stale.
    until = time.monotonic() + STALE_SECONDS + 30
    while missing and not stop() and time.monotonic() < until:
        claimed = [shard for shard in missing if ledger.claim_path(shard).exists()]
        free = [shard for shard in claimed if not is_live(ledger.claim_path(shard))]
        if free:
            work(free)
        elif claimed:
            _wait(_POLL_SECONDS, stop)
        missing = [shard for shard in missing if ledger.committed(shard) is None]
        if not claimed:
            break
    _log(f"{stage}: {len(shards) - len(missing)} of {len(shards)} shards, {time.monotonic() - began:.1f} s")
    return missing
