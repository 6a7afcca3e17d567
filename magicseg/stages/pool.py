"""A pool of worker processes on this machine: one process per job, as on a cluster.

Workers are processes of their own, started by a fork server, so that the death of one (out of memory, kill -9)
costs its open shard and nothing else: the job's remaining shards go to a new worker. Only the ledger says which
shards are done; messages of workers do not count.
"""

import contextlib
import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from magicseg.config.stage_declarations import STAGES
from magicseg.core.errors import BackendError, IncompleteError, LimitReached, MagicsegError, PlanMismatch, StoreError
from magicseg.core.garbage_collection import collect_less_often
from magicseg.core.signals import StopFlag, cannot_start, fork_server, start_process
from magicseg.core.text import command
from magicseg.run.claims import is_live
from magicseg.run.directory import Run
from magicseg.run.drop_rates import Shares, refuse_one_reason
from magicseg.run.ledger import CommitRecord, Ledger
from magicseg.stages.worker import ShardEvent, run_shards

MAX_DEATHS = 3  # workers that may die at one shard before it counts as failed
_BUSY_POLL_SECONDS = 2.0
_STOP_GRACE_SECONDS = 30.0
_KILL_SECONDS = 10.0
_RAISED = {error.__name__: error for error in (StoreError, PlanMismatch, BackendError, LimitReached, MagicsegError)}


@dataclass(frozen=True)
class StageOutcome:
    """The end of a stage: the requested shards that are not committed, and the known reasons."""

    missing: tuple[int, ...]
    failures: dict[int, str]
    interrupted: bool

    def missing_in(self, committed: Collection[int]) -> bool:
        """Return whether some shards that are missing here are not in ``committed`` either."""
        return not set(self.missing) <= set(committed)


@dataclass
class _WorkerJob:
    process: BaseProcess
    events: Connection
    shards: deque[int] = field(default_factory=deque)


def _work(path: Path, stage: str, shards: list[int], events: Connection) -> None:
    """Run one worker process from start to end."""
    collect_less_often()
    flag = StopFlag()
    signal.signal(signal.SIGTERM, lambda number, _frame: setattr(flag, "signal", number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # ready for the pool's word
    parent = multiprocessing.parent_process()

    def should_stop() -> bool:
        return flag() or (parent is not None and not parent.is_alive())

    def report(event: ShardEvent) -> None:
        with contextlib.suppress(BrokenPipeError):  # the parent is gone: finish or stop without it
            events.send(("event", event))

    try:
        run_shards(Run.open(path), stage, shards, report=report, should_stop=should_stop)
    except MagicsegError as error:
        name = next(name for name, kind in _RAISED.items() if isinstance(error, kind))
        with contextlib.suppress(BrokenPipeError):
            events.send(("error", (name, error.message, error.hint)))
    finally:
        events.close()


def run_stage(
    run: Run,
    stage: str,
    *,
    shards: Sequence[int] | None = None,
    workers: int = 1,
    shards_per_job: int | None = None,
    report: Callable[[ShardEvent], None] = lambda event: None,
    stop: StopFlag | None = None,
) -> StageOutcome:
    """Do all uncommitted shards of a stage (or of ``shards``). Return when no more can be done.

    Args: workers: processes at a time. shards_per_job: shards in one process's life.
    Raises: StoreError, PlanMismatch, BackendError, LimitReached: what stops the stage as a whole.
    """
    stop = stop or StopFlag()
    ledger = run.ledger(stage)
    wanted = list(range(run.plan.shards)) if shards is None else list(shards)
    committed = run.checked_commits(stage)
    pending = [shard for shard in wanted if shard not in committed]
    if not pending:
        _compact(ledger, committed)
        return StageOutcome((), {}, interrupted=False)
    size = shards_per_job or default_shards_per_job(len(pending), workers)
    queue = deque(pending[start : start + size] for start in range(0, len(pending), size))
    failures: dict[int, str] = {}
    deaths: dict[int, int] = {}
    busy: set[int] = set()
    context = fork_server(["magicseg.stages.worker"])
    jobs: dict[int, _WorkerJob] = {}
    fatal: MagicsegError | None = None
    stopping_since: float | None = None

    def start_jobs() -> None:
        while queue and len(jobs) < workers:
            todo = queue.popleft()
            try:
                receive, send = context.Pipe(duplex=False)
            except OSError as error:
                raise cannot_start(error) from error
            process = context.Process(target=_work, args=(run.path, stage, todo, send), name=f"{stage}-worker")
            start_process(process, stop)
            send.close()
            jobs[process.sentinel] = _WorkerJob(process, receive, deque(todo))

    def drain(job: _WorkerJob) -> None:
        nonlocal fatal
        with contextlib.suppress(EOFError, OSError):
            while job.events.poll():
                kind, content = job.events.recv()
                if kind == "error":
                    name, message, hint = content
                    fatal = fatal or _RAISED[name](message, hint=hint)
                    continue
                event: ShardEvent = content
                if event.outcome == "started":
                    continue
                while job.shards and job.shards[0] <= event.shard:
                    job.shards.popleft()
                if event.outcome == "busy":
                    busy.add(event.shard)
                elif event.outcome in {"failed", "blocked"}:
                    failures[event.shard] = event.detail
                report(event)

    try:
        while True:
            if stop() or fatal:
                queue.clear()
                if stopping_since is None:
                    stopping_since = time.monotonic()
                    for job in jobs.values():
                        job.process.terminate()  # SIGTERM: the worker stops at its next batch
                elif time.monotonic() - stopping_since > _STOP_GRACE_SECONDS:
                    for job in jobs.values():
                        job.process.kill()
                    if time.monotonic() - stopping_since > _STOP_GRACE_SECONDS + _KILL_SECONDS:
                        break  # a worker that waits for a dead disk cannot be killed
            else:
                start_jobs()
            if not jobs:
                if busy and not stop() and not fatal:
                    _wait_for_others(stop)
                    committed = ledger.commits()
                    busy -= committed.keys()
                    free = {shard for shard in busy if not is_live(ledger.claim_path(shard))}
                    busy -= free
                    queue.extend([shard] for shard in sorted(free))
                    if queue or busy:
                        continue
                break
            wait([*jobs, *(job.events for job in jobs.values())], timeout=0.5)
            for sentinel, job in list(jobs.items()):
                alive = job.process.is_alive()
                drain(job)
                if alive:
                    continue
                job.process.join()
                del jobs[sentinel]
                job.events.close()
                code = job.process.exitcode
                if code and not stop() and not fatal:
                    _after_death(job, code, ledger.commits().keys(), queue, deaths, failures, ledger)
    finally:
        for job in jobs.values():
            job.process.kill()
            job.process.join(_KILL_SECONDS)
    if fatal:
        raise fatal
    committed = ledger.commits()
    _compact(ledger, committed)
    if len(committed) == run.plan.shards:  # each worker counts its own shards only, and a small run has few
        refuse_one_reason(run, stage, Shares.of(committed.values()), is_all=True)
    missing = tuple(shard for shard in wanted if shard not in committed)
    return StageOutcome(missing, {s: why for s, why in failures.items() if s in set(missing)}, interrupted=stop())


def default_shards_per_job(pending: int, workers: int) -> int:
    """Return the default number of shards per process: all of its share, because each process loads the models."""
    return max(1, -(-pending // workers))


def _compact(ledger: Ledger, committed: Mapping[int, CommitRecord]) -> None:
    """Compact the ledger if the storage allows it. This saves files; nothing depends on it."""
    with contextlib.suppress(OSError):
        ledger.compact(committed)


def _after_death(
    job: _WorkerJob,
    code: int,
    committed: Collection[int],
    queue: deque[list[int]],
    deaths: dict[int, int],
    failures: dict[int, str],
    ledger: Ledger,
) -> None:
    """Handle a worker that died without a report. It died at its first uncommitted shard."""
    left = [shard for shard in job.shards if shard not in committed]
    if not left:
        return
    suspect = left[0]
    deaths[suspect] = deaths.get(suspect, 0) + 1
    if deaths[suspect] >= MAX_DEATHS:
        cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        failures[suspect] = f"{deaths[suspect]} workers died at it, the last by {cause}"
        with contextlib.suppress(OSError):
            ledger.fail(suspect, "WorkerDied", failures[suspect])
        left = left[1:]
    if left:
        queue.append(left)


def _wait_for_others(stop: StopFlag) -> None:
    """Wait a moment, because other processes work on some shards."""
    until = time.monotonic() + _BUSY_POLL_SECONDS
    while time.monotonic() < until and not stop():
        time.sleep(0.1)


def missing_message(run: Run, stage: str, outcome: StageOutcome) -> IncompleteError:
    """Return the error that lists a stage's missing shards and their failures."""
    from magicseg.core.shard_ranges import format_ranges

    lines = [f"{run.path}: {len(outcome.missing)} shards of {stage} are not done: {format_ranges(outcome.missing)}"]
    if outcome.interrupted:
        lines[0] = f"interrupted: {lines[0]}"
    for shard, why in sorted(outcome.failures.items())[:5]:
        lines.append(f"  shard {shard}: {why}")
    # If an earlier stage has to come first, that is what to type.
    first = next(name for name in STAGES if name == stage or outcome.missing_in(run.ledger(name).commits()))
    return IncompleteError("\n".join(lines), hint=command("magicseg", first, run.path))


def default_workers() -> int:
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0))
