"""Plan a submission: missing shards, tasks and dependencies. Nothing is submitted here."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from magicseg.config.stage_declarations import JOBS, STAGES
from magicseg.core.errors import IncompleteError
from magicseg.core.package import package_version
from magicseg.core.shard_ranges import format_ranges
from magicseg.core.text import command
from magicseg.launch.grouping import (
    contiguous_groups,
    median_seconds,
    most_tasks,
    shards_per_task,
    share_parallelism,
    split_arrays,
)
from magicseg.launch.jobs import ArrayJob, Submission, job_name, now
from magicseg.launch.profile import FOLLOW_UP, Profile
from magicseg.launch.queue_state import QueueState, Task, read_queue_state
from magicseg.launch.slurm import SiteLimits
from magicseg.launch.workers import workers_per_task
from magicseg.run.directory import Run
from magicseg.run.fingerprint import WEIGHTED
from magicseg.run.ledger import CommitRecord
from magicseg.run.progress import evaluated, trained

if TYPE_CHECKING:
    from magicseg.launch.array import ArraySpec

ALL = "all"


@dataclass(frozen=True, kw_only=True)
class Request:
    """A user's request as plain values, so that a follow-up job can repeat it."""

    stage: str
    profile: str
    overrides: tuple[str, ...] = ()
    shards_per_task: int | None = None
    force: bool = False
    new_image: bool = False
    parent: int | None = None


@dataclass(frozen=True, kw_only=True)
class Todo:
    """A stage's work to submit, as groups of shards: one group per task.

    A stage without shards has one empty group. The groups of a sharded evaluation are its part numbers.
    ``committed``, ``in_flight``, ``blocked``: shards that are done, queued, or wait for the previous stage.
    ``raised_from``: the requested group size, if the queue does not accept that many tasks.
    """

    stage: str
    groups: list[list[int]]
    committed: int = 0
    in_flight: int = 0
    blocked: int = 0
    raised_from: int | None = None


@dataclass(kw_only=True)
class State:
    """A run's commits, finished jobs and queue at the time of a submission."""

    run: Run
    commits: dict[str, dict[int, CommitRecord]]
    done: set[str]
    queue: QueueState

    @classmethod
    def of(cls, run: Run) -> "State":
        commits = {stage: run.checked_commits(stage) for stage in STAGES}
        done = {stage for stage, is_done in (("train", trained(run)), ("evaluate", evaluated(run))) if is_done}
        return cls(run=run, commits=commits, done=done, queue=read_queue_state(run, commits, whole_queue=True))

    def complete(self, stage: str) -> bool:
        if stage in STAGES:
            return len(self.commits[stage]) == self.run.plan.shards
        return stage in self.done


def stages_of(request: Request) -> tuple[str, ...]:
    return JOBS if request.stage == ALL else (request.stage,)


def refuse_unfetched(state: State, request: Request) -> None:
    """Raise BackendError if an unfinished stage needs weights that are not fetched."""
    for stage in stages_of(request):
        if stage in WEIGHTED and not state.complete(stage):
            state.run.refuse_unfetched(stage)


def find_todo(
    state: State,
    profile: Profile,
    limits: SiteLimits,
    request: Request,
    stage: str,
    new: Mapping[str, Submission],
) -> Todo:
    """Return the work of ``stage`` to submit. Raises IncompleteError if all of it still needs the previous stage."""
    run = state.run
    flying = set() if request.force else state.queue.shards_in_flight(stage)
    before = JOBS[JOBS.index(stage) - 1] if stage != JOBS[0] else None
    coming = before is None or before in new or bool(state.queue.active(before))
    if stage not in STAGES:
        active = bool(state.queue.active(stage)) and not request.force
        if state.complete(stage) or active:
            return Todo(stage=stage, groups=[], committed=int(state.complete(stage)), in_flight=int(active))
        if before is not None and not state.complete(before) and not coming:
            raise _nothing_before(run, stage, before)
        # All parts of an evaluation are submitted. A task whose part is finished ends at once.
        shares = profile.evaluation_tasks if stage == "evaluate" else 1
        return Todo(stage=stage, groups=[[share] for share in range(shares)] if shares > 1 else [[]])
    commits = state.commits[stage]
    missing = [shard for shard in range(run.plan.shards) if shard not in commits]
    todo = [shard for shard in missing if shard not in flying]
    blocked: list[int] = []
    if before is not None and before not in new:
        there = state.commits[before].keys() | state.queue.shards_in_flight(before)
        blocked = [shard for shard in todo if shard not in there]
        todo = [shard for shard in todo if shard in there]
        if blocked and not todo:
            raise _nothing_before(run, stage, before)
    stages = len(STAGES) if request.stage == ALL else 1
    size = shards_per_task(
        len(todo),
        profile,
        stage,
        measured=median_seconds(commits.values()),
        asked=request.shards_per_task,
        most_tasks=most_tasks(profile, limits.max_job_count, stages),
        workers=workers_per_task(run.config, stage, profile.resources(stage)),
    )
    asked = request.shards_per_task or profile.shards_per_task
    return Todo(
        stage=stage,
        raised_from=asked if todo and asked is not None and size > asked else None,
        groups=contiguous_groups(todo, size),
        committed=len(commits),
        in_flight=len(missing) - len(todo) - len(blocked),
        blocked=len(blocked),
    )


def _nothing_before(run: Run, stage: str, before: str) -> IncompleteError:
    return IncompleteError(
        f"{run.path}: {stage} needs {before}, which is neither done nor in the queue",
        hint=f"{command('magicseg', 'submit', before, run.path)}, or all at once: "
        + command("magicseg", "submit", "all", run.path),
    )


def dependency_of(state: State, new: Mapping[str, Submission], stage: str) -> str | None:
    """Return the dependency on queued or just submitted jobs of earlier stages, or None without such jobs."""
    jobs: list[str] = []
    for before in JOBS[: JOBS.index(stage)]:
        if before not in new and state.complete(before):
            jobs = []  # its tasks that are still in the queue have no work left
            continue
        made = job_numbers([new[before]]) if before in new else []
        # Jobs of the nearest unfinished stage depend on the stages before it, so they replace those jobs.
        jobs = [*_still_to_come(state.queue, before), *made] or jobs
    return "afterok:" + ":".join(jobs) if jobs else None


def _still_to_come(queue: QueueState, stage: str) -> list[str]:
    """Return a stage's queued jobs.

    If tasks of an array have failed, return its queued tasks instead: a dependency on the whole array would never be
    satisfied.
    """
    by_job: dict[str, list[Task]] = {}
    for task in queue.tasks:
        if task.submission.stage == stage and task.array.job is not None:
            by_job.setdefault(task.array.job, []).append(task)
    found: list[str] = []
    for job, tasks in sorted(by_job.items()):
        active = [task.label for task in tasks if task.active]
        if active:
            well = all(task.active or task.kind == "completed" for task in tasks)
            found += [job] if well else active
    return found


def job_numbers(made: Collection[Submission]) -> list[str]:
    """Return the job ids, or in a dry run the jobs' names."""
    return [array.job or array.name for one in made for array in one.arrays]


def planned(run: Run, profile: Profile, request: Request, todo: Todo, limits: SiteLimits, number: int) -> Submission:
    """Return the record of a submission before it is queued. Its folder may not exist yet."""
    limit = min(profile.array_size or limits.max_array_size, limits.max_array_size)
    arrays, first = [], 0
    for position, tasks in enumerate(split_arrays(todo.groups, limit)):
        name = job_name(run, todo.stage, number, position)
        arrays.append(ArrayJob(name=name, first=first, count=len(tasks)))
        first += len(tasks)
    return Submission(
        folder=run.path / "jobs" / f"{number:04d}-{todo.stage}",
        run=str(run.path),
        number=number,
        stage=todo.stage,
        created=now(),
        version=package_version(),
        tasks=tuple(format_ranges(group) for group in todo.groups),
        arrays=tuple(arrays),
        profile=request.profile,
        parent=request.parent,
        resources=profile.resources(todo.stage).model_dump(mode="json"),
    )


def planned_follow_up(
    run: Run, profile: Profile, request: Request, made: Sequence[Submission], number: int
) -> Submission:
    asked: dict[str, Any] = {
        "stage": request.stage,
        "profile": request.profile,
        "shards_per_task": request.shards_per_task,
        "overrides": [*request.overrides, f"slurm.resubmit={max(profile.resubmit - 1, 0)}"],
        "submissions": [one.number for one in made],
        "resubmit": profile.resubmit,
    }
    todo = Todo(stage=FOLLOW_UP, groups=[[]])
    one_job = SiteLimits(max_array_size=1, max_job_count=1)
    return replace(planned(run, profile, request, todo, one_job, number), asked=asked)


def array_specs(record: Submission, profile: Profile, dependency: str | None) -> "list[ArraySpec]":
    from magicseg.launch.array import ArraySpec

    shares = share_parallelism(profile.parallel, len(record.arrays))
    return [
        ArraySpec(
            name=array.name,
            tasks=[record.shards_of(task) for task in range(array.first, array.first + array.count)],
            parallel=share,
            dependency=dependency,
            shares=len(record.tasks),
        )
        for array, share in zip(record.arrays, shares, strict=True)
    ]
