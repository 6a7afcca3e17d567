"""The state of every task of a run's submissions, from one ``squeue`` and at most one ``sacct`` call."""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from magicseg.config.stage_declarations import STAGES
from magicseg.core.shard_ranges import parse_ranges
from magicseg.launch.jobs import ArrayJob, Submission, submissions
from magicseg.launch.slurm import SlurmError, TaskState, accounting, installed, kind_of, queue
from magicseg.run.directory import Run
from magicseg.run.progress import all_commits, evaluated, trained

KINDS = ("running", "pending", "completed", "failed", "cancelled", "unknown")


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task of a submission.

    ``state``: Slurm's answer, None if Slurm no longer knows the task. ``kind``: one of `KINDS`. ``ending``: Slurm's
    state with the exit code, such as ``TIMEOUT`` or ``FAILED 1:0``; "unknown" if nothing is known.
    """

    submission: Submission
    array: ArrayJob
    number: int
    state: TaskState | None
    kind: str
    ending: str

    @property
    def label(self) -> str:
        """Return Slurm's id of the task, such as ``123_4``."""
        return self.array.label(self.number)

    @property
    def active(self) -> bool:
        """Return whether the task is in the queue."""
        return self.kind in {"running", "pending"}


@dataclass(frozen=True, kw_only=True)
class QueueState:
    """The tasks of a run. ``warnings``: failed queries. ``asked``: whether the queue's state is known."""

    tasks: list[Task]
    warnings: list[str] = field(default_factory=list)
    asked: bool = True

    def active(self, stage: str | None = None) -> list[Task]:
        """Return the tasks in the queue."""
        return [task for task in self.tasks if task.active and stage in {None, task.submission.stage}]

    def shards_in_flight(self, stage: str) -> set[int]:
        """Return the shards of pending and running tasks."""
        return {shard for task in self.active(stage) for shard in task.submission.shards_of(task.number)}


def read_queue_state(
    run: Run, commits: Mapping[str, Collection[int]] | None = None, *, whole_queue: bool = False
) -> QueueState:
    """Query the queue, and the accounting for tasks that the queue has forgotten.

    Args: commits: committed shards by stage, to avoid reading the ledgers again. whole_queue: also query jobs whose
        work is already complete: another job may have done it while they are still in the queue.
    """
    committed = commits or all_commits(run)
    done = {stage for stage, is_done in (("train", trained(run)), ("evaluate", evaluated(run))) if is_done}
    known = submissions(run)
    open_ = [
        one for one in known if not (one.ended or one.foreign if whole_queue else _settled(one, committed, done))
    ]
    if not open_:
        return QueueState(tasks=[task for one in known for task in _tasks(one, {}, committed, done)])
    warnings: list[str] = []
    states: dict[tuple[str, int | None], TaskState] = {}
    asked = False
    names = [name for one in open_ for name in one.names]
    recorded = {array.name: array.job for one in open_ for array in one.arrays if array.job is not None}

    def of_this_run(found: Iterable[TaskState]) -> Iterable[TaskState]:
        """Remove jobs of an earlier run at the same path, which have the same names."""
        return (state for state in found if recorded.get(state.name, state.job) == state.job)

    if installed("squeue"):
        try:
            states = _newest(of_this_run(queue(names)))
            asked = True
        except SlurmError as error:
            warnings.append(f"the queue could not be asked: {error.message}")
    else:
        warnings.append("there is no squeue here: the states of jobs are not known")
    forgotten = [one for one in open_ if any(_state(array, n, states) is None for array, n in _numbered(one))]
    if asked and forgotten and installed("sacct"):
        try:
            since = min(one.created for one in forgotten)
            old = accounting([name for one in forgotten for name in one.names], since)
            # Tasks that the queue does not list are not active, even if the accounting still says so.
            states = _newest(state for state in of_this_run(old) if not state.active) | states
        except SlurmError:
            pass  # a site without accounting: the ledger alone tells which tasks are complete
    tasks = [task for one in known for task in _tasks(one, states, committed, done)]
    return QueueState(tasks=tasks, warnings=warnings, asked=asked)


def _settled(submission: Submission, committed: Mapping[str, Collection[int]], done: Collection[str]) -> bool:
    """Return whether a submission's outcome is already known, so that Slurm need not be queried."""
    if submission.ended or submission.foreign:
        return True
    if submission.stage in STAGES:
        have = committed[submission.stage]
        return all(shard in have for shard in submission.all_shards())
    return submission.stage in done


def _newest(states: Iterable[TaskState]) -> dict[tuple[str, int | None], TaskState]:
    """Return states by job name and index. Of several records of a task, keep an active one, else the last."""
    found: dict[tuple[str, int | None], TaskState] = {}
    for state in states:
        key = (state.name, state.index)
        if key not in found or not found[key].active:
            found[key] = state
    return found


def _numbered(submission: Submission) -> list[tuple[ArrayJob, int]]:
    return [(array, array.first + offset) for array in submission.arrays for offset in range(array.count)]


def _state(array: ArrayJob, number: int, states: Mapping[tuple[str, int | None], TaskState]) -> TaskState | None:
    state = states.get((array.name, None if array.count == 1 else number - array.first))
    # The same name with another id belongs to an earlier run at this path.
    return None if state is None or array.job not in {None, state.job} else state


def _tasks(
    submission: Submission,
    states: Mapping[tuple[str, int | None], TaskState],
    committed: Mapping[str, Collection[int]],
    done: Collection[str],
) -> list[Task]:
    tasks = []
    # Recorded endings are final: a task that a user requeues manually afterwards is not noticed.
    endings = {number: text for text, numbers in submission.ended.items() for number in parse_ranges(numbers)}
    for array, number in _numbered(submission):
        state = _state(array, number, states)
        if number in endings:
            ending = endings[number]
        elif state is not None:
            ending = f"{state.state} {state.exit_code}".strip()
        else:
            ending = "COMPLETED" if _task_done(submission, number, committed, done) else "unknown"
        kind = "unknown" if ending == "unknown" else kind_of(ending.partition(" ")[0])
        job = array if array.job is not None or state is None else _found(array, state)
        tasks.append(Task(submission=submission, array=job, number=number, state=state, kind=kind, ending=ending))
    return tasks


def _found(array: ArrayJob, state: TaskState) -> ArrayJob:
    """Return the array with the job id from the queue, for a ``submit`` that was killed before recording it."""
    return ArrayJob(name=array.name, first=array.first, count=array.count, job=state.job)


def _task_done(
    submission: Submission, number: int, committed: Mapping[str, Collection[int]], done: Collection[str]
) -> bool:
    if submission.stage in STAGES:
        have = committed[submission.stage]
        return all(shard in have for shard in submission.shards_of(number))
    return submission.stage in done


def job_summaries(state: QueueState) -> list[dict[str, object]]:
    """Return the ``jobs`` of ``status --json``: one entry per Slurm job, newest last.

    Each entry counts its tasks by kind, and its failed and cancelled tasks by Slurm's final state (``endings``).
    """
    by_job: dict[str, list[Task]] = {}
    for task in state.tasks:
        by_job.setdefault(task.array.name, []).append(task)
    summaries: list[dict[str, object]] = []
    for tasks in by_job.values():
        tally = dict.fromkeys(KINDS, 0) | Counter(task.kind for task in tasks)
        bad = Counter(task.ending for task in tasks if task.kind in {"failed", "cancelled"})
        first = tasks[0]
        summaries.append(
            {
                "id": first.array.job,
                "stage": first.submission.stage,
                "state": _overall(tally),
                "tasks": tally,
                "endings": dict(sorted(bad.items())),
            }
        )
    return summaries


def _overall(tally: Mapping[str, int]) -> str:
    for kind in ("running", "pending", "failed", "cancelled", "unknown"):
        if tally[kind]:
            return kind
    return "completed"


def seconds_of(text: str) -> float:
    """Return Slurm's elapsed time, ``[D-][H:]M:S``, in seconds; NaN for any other text."""
    days, dash, rest = text.rpartition("-")
    try:
        parts = [int(part) for part in rest.split(":")]
        total = (int(days) if dash else 0) * 86400
    except ValueError:
        return math.nan
    for power, part in enumerate(reversed(parts)):
        total += part * 60**power
    return total
