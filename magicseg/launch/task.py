"""What a task of a job array runs, inside the job and, where there is one, inside the container.

submitit pickles the call of `run_task` with plain values only, so that the login node and the image may have
different minor versions of Python. Exit codes: 0 all of the task's shards are committed; 75 it stopped because Slurm
warned of the end, so the same task has to run again; 1 some work failed or is missing; 2 it cannot be done like this.
"""

import datetime
import logging
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from magicseg.core.errors import MagicsegError, RunError
from magicseg.core.garbage_collection import relax
from magicseg.core.package import package_version
from magicseg.core.ranges import format_ranges, parse_ranges
from magicseg.core.text import command, indented
from magicseg.run.claims import STALE_SECONDS, is_live
from magicseg.run.container_image import present_image, refuse_other_image
from magicseg.run.directory import Run
from magicseg.stages.worker import ShardEvent, run_shards

STOPPED = 75  # EX_TEMPFAIL of sysexits.h
_POLL_SECONDS = 2.0


@dataclass
class _Warned:
    """Which signals have come. SIGUSR2 is Slurm's warning before the end; SIGTERM comes with an end."""

    warned: bool = False
    ended: bool = False

    def listen(self) -> None:
        """Take the place of submitit's handlers, which would put the job back into the queue in mid-work."""
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, lambda *_: setattr(self, "warned", True))
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: setattr(self, "ended", True))
        signal.signal(signal.SIGCONT, signal.SIG_DFL)  # Slurm sends it to wake what sleeps

    def __call__(self) -> bool:
        return self.warned or self.ended


def run_task(*, run: str, stage: str, shards: str, version: str, delay: float = 0.0, shares: int = 1) -> None:
    """Do a task's shards that are not committed, and end the process with an exit code if that is not 0.

    Args: run: the run's directory. shards: as ranges. version: magicseg's on the machine that submitted.
        delay: seconds to wait first, so that many tasks do not load weights in the same moment. shares: among how
        many tasks an evaluation is shared; ``shards`` is then the number of one.
    """
    relax()
    logging.getLogger("submitit").setLevel(logging.WARNING)  # its farewells would hide ours
    stop = _Warned()
    try:
        refuse_misfit(Path(run), version)
        stop.listen()
        _wait(delay, stop)
        if stage == "evaluate":
            _evaluate(Path(run), (parse_ranges(shards)[0], shares) if shards else (0, 1), stop)
            return
        missing = _do(Run.open(Path(run)), stage, parse_ranges(shards), stop)
    except MagicsegError as error:
        for line in error.lines():
            _say(line)
        sys.exit(error.exit_code)
    if not missing:
        return
    _say(f"{stage}: {len(missing)} shards of this task are not done: {format_ranges(missing)}")
    if stop.warned:
        _say("stopped, because the time of this job ends: the task has to run again")
        sys.exit(STOPPED)
    sys.exit(1)


def _say(text: str) -> None:
    stamp = datetime.datetime.now().strftime("%H:%M:%S")
    print(f"{stamp} {indented(text, ' ' * 9)}", flush=True)  # a log is this function's output


def refuse_misfit(run: Path, version: str) -> None:
    """Raises: RunError if this is another version of magicseg than the one that submitted; PlanMismatch if this is
    another image than the run's."""
    if version != package_version():
        raise RunError(
            f"{run}: was submitted by magicseg {version}, but this node or image has {package_version()}",
            hint="install the same version on both sides, or build the image again, then submit again",
        )
    refuse_other_image(
        run, present_image(), f"{command('magicseg', 'submit', 'STAGE', run)}   # submits it in the present image"
    )


def _wait(seconds: float, stop: Callable[[], bool]) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and not stop():
        time.sleep(min(0.2, seconds))


def _evaluate(path: Path, part: tuple[int, int], stop: "_Warned") -> None:
    """Score the model on this task's share of the images. Ends the process if it was told to stop."""
    from magicseg.core.distributed import World
    from magicseg.evaluate.model_under_test import Target
    from magicseg.evaluate.suite import Suite

    target = Target.of(path)
    assert target.run is not None
    suite = Suite.of(target, target.run.config.evaluate, device=World().device)
    for results in suite.evaluate(part=part, report=lambda text: _say(f"evaluate: {text}"), stop=stop):
        _say(f"evaluate: {results['benchmark']}, mIoU {results['miou']:.4f}")
    if stop():
        _say("evaluate: stopped, because the time of this job ends: the task has to run again")
        sys.exit(STOPPED if stop.warned else 1)
    _say(f"evaluate: share {part[0] + 1} of {part[1]} is done")


def _do(run: Run, stage: str, shards: list[int], stop: Callable[[], bool]) -> list[int]:
    """Do the shards. Returns: those that are not committed in the end."""
    began = time.monotonic()
    ledger = run.ledger(stage)
    run.checked_commits(stage)

    def report(event: ShardEvent) -> None:
        detail = f", {event.samples} samples" if event.outcome == "committed" else ""
        _say(f"{stage} shard {event.shard}: {event.outcome}{detail}{': ' if event.detail else ''}{event.detail}")

    # A shard at which an earlier task died or failed comes last: should it do so again, the others are done.
    suspects = {shard for shard in shards if ledger.claim_path(shard).exists() or ledger.failure_path(shard).exists()}
    order = [*(shard for shard in shards if shard not in suspects), *sorted(suspects)]
    run_shards(run, stage, order, report=report, should_stop=stop)
    missing = [shard for shard in shards if ledger.committed(shard) is None]
    # Claims of the dead are only known by their age where their owner cannot be asked: wait them out.
    until = time.monotonic() + STALE_SECONDS + 30
    while missing and not stop() and time.monotonic() < until:
        claimed = [shard for shard in missing if ledger.claim_path(shard).exists()]
        free = [shard for shard in claimed if not is_live(ledger.claim_path(shard))]
        if free:
            run_shards(run, stage, free, report=report, should_stop=stop)
        elif claimed:
            _wait(_POLL_SECONDS, stop)
        missing = [shard for shard in missing if ledger.committed(shard) is None]
        if not claimed:
            break
    _say(f"{stage}: {len(shards) - len(missing)} of {len(shards)} shards, {time.monotonic() - began:.1f} s")
    return missing
