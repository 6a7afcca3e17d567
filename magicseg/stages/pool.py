"""A pool of worker processes on this machine: one process per job, as on a cluster.

Workers are processes of their own, started by a fork server, so that the death of one (out of memory, kill -9)
costs its open shard and nothing else: the job's remaining shards go to a new worker. Only the ledger says which
shards are done; messages of workers do not count.

A pool has one slot per worker, and a slot may have a GPU. A new worker gets a free slot, and with it the slot's GPU.
"""

import contextlib
import heapq
import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from magicseg.config.stage_declarations import STAGES
from magicseg.core.errors import (
    BackendError,
    IncompleteError,
    LimitReached,
    MagicsegError,
    OutOfMemory,
    PlanMismatch,
    StoreError,
)
from magicseg.core.garbage_collection import collect_less_often
from magicseg.core.gpus import Gpu
from magicseg.core.signals import StopFlag, cannot_start, fork_server, start_process
from magicseg.core.text import command
from magicseg.run.claims import is_live
from magicseg.run.directory import Run
from magicseg.run.drop_rates import Shares, refuse_one_reason
from magicseg.run.ledger import CommitRecord, Ledger
from magicseg.stages.shortage import is_shortage
from magicseg.stages.worker import ShardEvent, never, run_shards

MAX_DEATHS = 3  # workers that may die at one shard before it counts as failed
_BUSY_POLL_SECONDS = 2.0
_STOP_GRACE_SECONDS = 30.0
_KILL_SECONDS = 10.0
_RAISED = {
    error.__name__: error
    for error in (OutOfMemory, StoreError, PlanMismatch, BackendError, LimitReached, MagicsegError)
}


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
    slot: int
    shards: deque[int] = field(default_factory=deque)
    shortage: MagicsegError | None = None


def _work(path: Path, stage: str, shards: list[int], events: Connection, gpu: Gpu | None) -> None:
    """Run one worker process from start to end. It sees ``gpu`` alone, if it has one."""
    if gpu is not None:
        os.environ.update(gpu.environment)  # first: back ends import torch, which reads it when it initialises CUDA
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
        run_shards(
            Run.open(path), stage, shards, report=report, should_stop=should_stop, gpu=gpu.name if gpu else None
        )
    except MagicsegError as error:
        name = "OutOfMemory" if is_shortage(error) else _name_of(error)
        with contextlib.suppress(BrokenPipeError):
            events.send(("error", (name, error.message, error.hint)))
    finally:
        events.close()


def _name_of(error: MagicsegError) -> str:
    return next(name for name, kind in _RAISED.items() if isinstance(error, kind))


def run_stage(
    run: Run,
    stage: str,
    *,
    shards: Sequence[int] | None = None,
    workers: int = 1,
    gpus: Sequence[Gpu] = (),
    shards_per_job: int | None = None,
    report: Callable[[ShardEvent], None] = lambda event: None,
    stop: Callable[[], bool] = never,
) -> StageOutcome:
    """Do all uncommitted shards of a stage (or of ``shards``). Return when no more can be done.

    If a worker dies, a new one does its shards, and ``report`` gets an event ``died``. If a worker runs out of
    memory, the others do its shards, and ``report`` gets an event ``out-of-memory``; the stage stops when the last
    worker has run out of memory.

    Args: workers: processes at a time. gpus: the GPUs that the workers are spread over, one for each worker; without
    any, workers inherit this process's environment. shards_per_job: shards in one process's life.
    Raises: StoreError, PlanMismatch, BackendError, LimitReached: what stops the stage as a whole.
    """
    ledger = run.ledger(stage)
    wanted = list(range(run.plan.shards)) if shards is None else list(shards)
    committed = run.checked_commits(stage)
    pending = [shard for shard in wanted if shard not in committed]
    if not pending:
        _compact(ledger, committed)
        return StageOutcome((), {}, interrupted=False)
    pool = _Pool(run, stage, workers, gpus, report, stop)
    pool.run(_jobs(pending, workers, shards_per_job))
    committed = ledger.commits()
    _compact(ledger, committed)
    if len(committed) == run.plan.shards:  # each worker counts its own shards only, and a small run has few
        refuse_one_reason(run, stage, Shares.of(committed.values()), is_all=True)
    missing = tuple(shard for shard in wanted if shard not in committed)
    failures = {shard: why for shard, why in pool.failures.items() if shard in set(missing)}
    return StageOutcome(missing, failures, interrupted=pool.stop())


class _Pool:
    """The workers of one stage, and the shards that no worker has yet."""

    def __init__(
        self,
        run: Run,
        stage: str,
        workers: int,
        gpus: Sequence[Gpu],
        report: Callable[[ShardEvent], None],
        stop: Callable[[], bool],
    ) -> None:
        self.stop = stop
        self.failures: dict[int, str] = {}
        self._run, self._stage, self._report = run, stage, report
        self._ledger = run.ledger(stage)
        self._gpus = [gpus[slot % len(gpus)] if gpus else None for slot in range(workers)]
        self._free = list(range(workers))  # a heap of the slots without a worker
        self._out_of_memory: list[MagicsegError] = []  # the error of each slot that was given up
        self._queue: deque[list[int]] = deque()
        self._jobs: dict[int, _WorkerJob] = {}
        self._deaths: dict[int, int] = {}
        self._busy: set[int] = set()
        self._fatal: MagicsegError | None = None
        self._stopping_since: float | None = None
        self._context = fork_server(["magicseg.stages.worker"])

    def run(self, jobs: Sequence[list[int]]) -> None:
        """Do all jobs, each a list of shards. Raises what stops the stage as a whole."""
        self._queue.extend(jobs)
        try:
            while not self._has_ended():
                if self._jobs:
                    self._look()
        finally:
            for job in self._jobs.values():
                job.process.kill()
                job.process.join(_KILL_SECONDS)
        if self._fatal:
            raise self._fatal

    def _is_stopping(self) -> bool:
        return self.stop() or self._fatal is not None

    def _has_ended(self) -> bool:
        """Start the jobs for which there is a slot, or stop the workers. Return whether all work has ended."""
        if self._is_stopping():
            self._queue.clear()
            if self._stop_workers():
                return True
        else:
            self._start_jobs()
            if self._queue and not self._jobs:  # no slot is left
                self._fatal = self._out_of_memory[0]
        return not self._jobs and not self._others_left_some()

    def _stop_workers(self) -> bool:
        """Ask the workers to stop, later kill them. Return whether to give up on them."""
        if self._stopping_since is None:
            self._stopping_since = time.monotonic()
            for job in self._jobs.values():
                job.process.terminate()  # SIGTERM: the worker stops at its next batch
        waited = time.monotonic() - self._stopping_since
        if waited > _STOP_GRACE_SECONDS:
            for job in self._jobs.values():
                job.process.kill()
        return waited > _STOP_GRACE_SECONDS + _KILL_SECONDS  # a worker that waits for a dead disk cannot be killed

    def _others_left_some(self) -> bool:
        """Wait a moment for the shards that other processes work on. Return whether some are not committed."""
        if not self._busy or self._is_stopping():
            return False
        _wait_for_others(self.stop)
        self._busy -= self._ledger.commits().keys()
        free = {shard for shard in self._busy if not is_live(self._ledger.claim_path(shard))}
        self._busy -= free
        self._queue.extend([shard] for shard in sorted(free))
        return bool(self._queue or self._busy)

    def _start_jobs(self) -> None:
        while self._queue and self._free:
            todo = self._queue.popleft()
            slot = heapq.heappop(self._free)
            try:
                receive, send = self._context.Pipe(duplex=False)
            except OSError as error:
                raise cannot_start(error) from error
            process = self._context.Process(
                target=_work,
                args=(self._run.path, self._stage, todo, send, self._gpus[slot]),
                name=f"{self._stage}-worker",
            )
            start_process(process, self.stop)
            send.close()
            self._jobs[process.sentinel] = _WorkerJob(process, receive, slot, deque(todo))

    def _look(self) -> None:
        """Wait for events of workers, and for the end of one."""
        wait([*self._jobs, *(job.events for job in self._jobs.values())], timeout=0.5)
        for sentinel, job in list(self._jobs.items()):
            is_alive = job.process.is_alive()
            self._drain(job)
            if is_alive:
                continue
            job.process.join()
            del self._jobs[sentinel]
            job.events.close()
            if job.shortage:
                self._give_up_slot(job, job.shortage)
                continue
            heapq.heappush(self._free, job.slot)
            if job.process.exitcode and not self._is_stopping():
                self._after_death(job, job.process.exitcode)

    def _drain(self, job: _WorkerJob) -> None:
        with contextlib.suppress(EOFError, OSError):
            while job.events.poll():
                kind, content = job.events.recv()
                if kind == "event":
                    self._note(job, content)
                    continue
                name, message, hint = content
                error = _RAISED[name](message, hint=hint)
                if isinstance(error, OutOfMemory):
                    job.shortage = error
                else:
                    self._fatal = self._fatal or error

    def _note(self, job: _WorkerJob, event: ShardEvent) -> None:
        if event.outcome == "started":
            self._report(event)
            return
        while job.shards and job.shards[0] <= event.shard:
            job.shards.popleft()
        if event.outcome == "busy":
            self._busy.add(event.shard)
        elif event.outcome in {"failed", "blocked"}:
            self.failures[event.shard] = event.detail
        self._report(event)

    def _give_up_slot(self, job: _WorkerJob, error: MagicsegError) -> None:
        """Divide the shards of a worker that ran out of memory among the other slots. Its slot is no longer used.

        Other GPUs may have more free memory. If they do not, the stage ends when the last slot is given up. The shard
        at which it happened comes last, by itself, because it may need more memory than others.
        """
        self._out_of_memory.append(error)
        others = len(self._gpus) - len(self._out_of_memory)
        left = self._left(job)
        if not left or self._is_stopping():
            return
        self._queue.extend([*_jobs(left[1:], max(others, 1), None), left[:1]])
        if others:
            gpu = self._gpus[job.slot]
            where = f" on GPU {gpu.name}" if gpu else ""
            told = "\n".join([error.message, *([f"hint:  {error.hint}"] if error.hint else [])])
            detail = f"a worker{where} stopped, the others do its shards: {told}"
            self._report(ShardEvent(left[0], "out-of-memory", detail=detail))

    def _left(self, job: _WorkerJob) -> list[int]:
        committed = self._ledger.commits()
        return [shard for shard in job.shards if shard not in committed]

    def _after_death(self, job: _WorkerJob, code: int) -> None:
        """Handle a worker that died without a report. It died at its first uncommitted shard."""
        left = self._left(job)
        if not left:
            return
        suspect = left[0]
        self._deaths[suspect] = self._deaths.get(suspect, 0) + 1
        cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        if self._deaths[suspect] < MAX_DEATHS:
            self._report(ShardEvent(suspect, "died", detail=f"a worker ended by {cause}, a new one goes on"))
        else:
            self.failures[suspect] = f"{self._deaths[suspect]} workers died at it, the last by {cause}"
            with contextlib.suppress(OSError):
                self._ledger.fail(suspect, "WorkerDied", self.failures[suspect])
            left = left[1:]
        if left:
            self._queue.append(left)


def default_shards_per_job(pending: int, workers: int) -> int:
    """Return the default number of shards per process: all of its share, because each process loads the models."""
    return max(1, -(-pending // workers))


def _jobs(pending: Sequence[int], workers: int, shards_per_job: int | None) -> list[list[int]]:
    """Divide shards into jobs of ``shards_per_job``; by default into one job of nearly equal size for each worker."""
    if shards_per_job:
        starts = range(0, len(pending), shards_per_job)
        return [list(pending[start : start + shards_per_job]) for start in starts]
    count = min(workers, len(pending))
    bounds = [len(pending) * number // count for number in range(count + 1)]
    return [list(pending[first:last]) for first, last in pairwise(bounds)]


def _compact(ledger: Ledger, committed: Mapping[int, CommitRecord]) -> None:
    """Compact the ledger if the storage allows it. This saves files; nothing depends on it."""
    with contextlib.suppress(OSError):
        ledger.compact(committed)


def _wait_for_others(stop: Callable[[], bool]) -> None:
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
