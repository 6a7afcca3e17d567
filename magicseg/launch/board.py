"""The board: every task of a run's submissions with its state, from one ``squeue`` and at most one ``sacct``."""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from magicseg.launch.jobs import ArrayJob, Submission, submissions
from magicseg.launch.slurm import SlurmError, TaskState, accounting, installed, queue
from magicseg.run.directory import Run
from magicseg.run.fingerprint import STAGES
from magicseg.run.ranges import parse_ranges
from magicseg.run.status import all_commits, evaluated, trained

# Slurm's many words in the few that a reader needs.
_KINDS = {
    "PENDING": "pending",
    "CONFIGURING": "pending",
    "REQUEUED": "pending",
    "REQUEUE_FED": "pending",
    "REQUEUE_HOLD": "pending",
    "RESV_DEL_HOLD": "pending",
    "SPECIAL_EXIT": "pending",
    "RUNNING": "running",
    "COMPLETING": "running",
    "RESIZING": "running",
    "SIGNALING": "running",
    "STAGE_OUT": "running",
    "STOPPED": "running",
    "SUSPENDED": "running",
    "COMPLETED": "completed",
    "CANCELLED": "cancelled",
}
KINDS = ("running", "pending", "completed", "failed", "cancelled", "unknown")


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task of a submission. ``state`` is Slurm's word, or "" when nothing knows it any more;
    ``kind`` is one of `KINDS`.
    """

    submission: Submission
    array: ArrayJob
    number: int
    state: TaskState | None
    kind: str

    @property
    def label(self) -> str:
        """Slurm's name of it, ``123_4``."""
        return self.array.label(self.number)

    @property
    def active(self) -> bool:
        """Whether it is in the queue."""
        return self.kind in {"running", "pending"}


@dataclass(frozen=True, kw_only=True)
class Board:
    """``warnings`` say what could not be asked. ``asked``: whether the queue answered, or nothing had to be asked."""

    tasks: list[Task]
    warnings: list[str] = field(default_factory=list)
    asked: bool = True

    def active(self, stage: str | None = None) -> list[Task]:
        """Tasks in the queue."""
        return [task for task in self.tasks if task.active and stage in {None, task.submission.stage}]

    def shards_in_flight(self, stage: str) -> set[int]:
        """Shards whose task waits or runs."""
        return {shard for task in self.active(stage) for shard in task.submission.shards_of(task.number)}


def board_of(run: Run, commits: Mapping[str, Collection[int]] | None = None, *, whole_queue: bool = False) -> Board:
    """Ask the queue, and where it has forgotten a task, the accounting.

    Args: commits: shards by stage, if they are at hand. whole_queue: ask also about jobs whose work is all there by
        now, perhaps done by somebody else: they may be in the queue nevertheless.
    """
    committed = commits or all_commits(run)
    done = {stage for stage, is_done in (("train", trained(run)), ("evaluate", evaluated(run))) if is_done}
    known = submissions(run)
    open_ = [one for one in known if not (one.ended if whole_queue else _settled(one, committed, done))]
    if not open_:
        return Board(tasks=[task for one in known for task in _tasks(one, {}, committed, done)])
    warnings: list[str] = []
    states: dict[tuple[str, int | None], TaskState] = {}
    asked = False
    names = [name for one in open_ for name in one.names]
    if installed("squeue"):
        try:
            states = _newest(queue(names))
            asked = True
        except SlurmError as error:
            warnings.append(f"the queue could not be asked: {error.message}")
    else:
        warnings.append("there is no squeue here: the states of jobs are not known")
    forgotten = [one for one in open_ if any(_state(array, n, states) is None for array, n in _numbered(one))]
    if asked and forgotten and installed("sacct"):
        try:
            since = min(one.created for one in forgotten)
            old = _newest(accounting([name for one in forgotten for name in one.names], since))
            states = old | states
        except SlurmError:
            pass  # a site without accounting: the ledger has to do
    tasks = [task for one in known for task in _tasks(one, states, committed, done)]
    return Board(tasks=tasks, warnings=warnings, asked=asked)


def _settled(submission: Submission, committed: Mapping[str, Collection[int]], done: Collection[str]) -> bool:
    """Whether it is known how a submission ended, so that nobody needs to be asked about it."""
    if submission.ended:
        return True
    if submission.stage in STAGES:
        have = committed[submission.stage]
        return all(shard in have for shard in submission.all_shards())
    return submission.stage in done


def _newest(states: Iterable[TaskState]) -> dict[tuple[str, int | None], TaskState]:
    """By job name and index; of several records of one task, an active one or else the last."""
    found: dict[tuple[str, int | None], TaskState] = {}
    for state in states:
        key = (state.name, state.index)
        if key not in found or not found[key].active:
            found[key] = state
    return found


def _numbered(submission: Submission) -> list[tuple[ArrayJob, int]]:
    return [(array, array.first + offset) for array in submission.arrays for offset in range(array.count)]


def _state(array: ArrayJob, number: int, states: Mapping[tuple[str, int | None], TaskState]) -> TaskState | None:
    return states.get((array.name, None if array.count == 1 else number - array.first))


def _tasks(
    submission: Submission,
    states: Mapping[tuple[str, int | None], TaskState],
    committed: Mapping[str, Collection[int]],
    done: Collection[str],
) -> list[Task]:
    tasks = []
    ended = {number: kind for kind, numbers in submission.ended.items() for number in parse_ranges(numbers)}
    for array, number in _numbered(submission):
        state = _state(array, number, states)
        if number in ended:
            kind = ended[number]
        elif state is not None:
            kind = _KINDS.get(state.state, "failed")
        elif _task_done(submission, number, committed, done):
            kind = "completed"
        else:
            kind = "unknown"
        job = array if array.job is not None or state is None else _found(array, state)
        tasks.append(Task(submission=submission, array=job, number=number, state=state, kind=kind))
    return tasks


def _found(array: ArrayJob, state: TaskState) -> ArrayJob:
    """A job whose number was never written down (a killed ``submit``): the queue knows it by its name."""
    return ArrayJob(name=array.name, first=array.first, count=array.count, job=state.job)


def _task_done(
    submission: Submission, number: int, committed: Mapping[str, Collection[int]], done: Collection[str]
) -> bool:
    if submission.stage in STAGES:
        have = committed[submission.stage]
        return all(shard in have for shard in submission.shards_of(number))
    return submission.stage in done


def job_summaries(board: Board) -> list[dict[str, object]]:
    """``status --json``'s ``jobs``: one entry per Slurm job, newest last, with its tasks counted by kind."""
    summaries: dict[str, dict[str, object]] = {}
    counts: dict[str, dict[str, int]] = {}
    for task in board.tasks:
        name = task.array.name
        tally = counts.setdefault(name, dict.fromkeys(KINDS, 0))
        tally[task.kind] += 1
        summaries[name] = {"id": task.array.job, "stage": task.submission.stage, "state": "", "tasks": tally}
    for name, summary in summaries.items():
        summary["state"] = _overall(counts[name])
    return list(summaries.values())


def _overall(tally: Mapping[str, int]) -> str:
    for kind in ("running", "pending", "failed", "cancelled", "unknown"):
        if tally[kind]:
            return kind
    return "completed"


def seconds_of(text: str) -> float:
    """Slurm's elapsed time, [D-][H:]M:S, in seconds; NaN for anything else."""
    days, dash, rest = text.rpartition("-")
    try:
        parts = [int(part) for part in rest.split(":")]
        total = (int(days) if dash else 0) * 86400
    except ValueError:
        return math.nan
    for power, part in enumerate(reversed(parts)):
        total += part * 60**power
    return total
