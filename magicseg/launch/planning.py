"""Planning a submission: what of a stage is missing, in which tasks, after which jobs. Nothing is submitted here."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from magicseg.config.stage_declarations import STAGES
from magicseg.core.errors import IncompleteError
from magicseg.core.package import package_version
from magicseg.core.ranges import format_ranges
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
from magicseg.launch.profile import FOLLOW_UP, JOBS, Profile
from magicseg.launch.queue_state import Board, Task, board_of
from magicseg.launch.slurm import SiteLimits
from magicseg.run.directory import Run
from magicseg.run.fingerprint import WEIGHTED
from magicseg.run.ledger import CommitRecord
from magicseg.run.progress import evaluated, trained

if TYPE_CHECKING:
    from magicseg.launch.array import ArraySpec

ALL = "all"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a user asks for; plain values, so that a follow-up job can ask for the same again."""

    stage: str
    profile: str
    overrides: tuple[str, ...] = ()
    shards_per_task: int | None = None
    force: bool = False
    new_image: bool = False
    parent: int | None = None


@dataclass(frozen=True, kw_only=True)
class Todo:
    """What of a stage is to be submitted: groups of shards, or one empty group for what has no shards. An
    evaluation's groups are the numbers of its shares.

    ``raised_from``: the size of groups that was asked for, if the queue does not take as many tasks.
    """

    stage: str
    groups: list[list[int]]
    committed: int = 0
    in_flight: int = 0
    blocked: int = 0
    raised_from: int | None = None


@dataclass(kw_only=True)
class State:
    """What is known of a run while it is submitted."""

    run: Run
    commits: dict[str, dict[int, CommitRecord]]
    done: set[str]
    board: Board

    @classmethod
    def of(cls, run: Run) -> "State":
        commits = {stage: run.checked_commits(stage) for stage in STAGES}
        done = {stage for stage, is_done in (("train", trained(run)), ("evaluate", evaluated(run))) if is_done}
        return cls(run=run, commits=commits, done=done, board=board_of(run, commits, whole_queue=True))

    def complete(self, stage: str) -> bool:
        if stage in STAGES:
            return len(self.commits[stage]) == self.run.plan.shards
        return stage in self.done


def stages_of(request: Request) -> tuple[str, ...]:
    return JOBS if request.stage == ALL else (request.stage,)


def refuse_unfetched(state: State, request: Request) -> None:
    """Raise BackendError if a stage that has work left needs weights that are not there."""
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
    """What of ``stage`` to submit. Raises: IncompleteError if nothing of it can be done yet."""
    run = state.run
    flying = set() if request.force else state.board.shards_in_flight(stage)
    before = JOBS[JOBS.index(stage) - 1] if stage != JOBS[0] else None
    coming = before is None or before in new or bool(state.board.active(before))
    if stage not in STAGES:
        active = bool(state.board.active(stage)) and not request.force
        if state.complete(stage) or active:
            return Todo(stage=stage, groups=[], committed=int(state.complete(stage)), in_flight=int(active))
        if before is not None and not state.complete(before) and not coming:
            raise _nothing_before(run, stage, before)
        # Shares of an evaluation are numbered; what is done of them is known by those who do them.
        shares = profile.evaluation_tasks if stage == "evaluate" else 1
        return Todo(stage=stage, groups=[[share] for share in range(shares)] if shares > 1 else [[]])
    commits = state.commits[stage]
    missing = [shard for shard in range(run.plan.shards) if shard not in commits]
    todo = [shard for shard in missing if shard not in flying]
    blocked: list[int] = []
    if before is not None and before not in new:
        there = state.commits[before].keys() | state.board.shards_in_flight(before)
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
    """After the jobs of the stages before that are in the queue or just submitted, if they end well."""
    jobs: list[str] = []
    for before in JOBS[: JOBS.index(stage)]:
        if before not in new and state.complete(before):
            jobs = []  # tasks of it that are left in the queue have nothing to do
            continue
        made = job_numbers([new[before]]) if before in new else []
        # What is done by the stage before rests on what was done before that.
        jobs = [*_still_to_come(state.board, before), *made] or jobs
    return "afterok:" + ":".join(jobs) if jobs else None


def _still_to_come(board: Board, stage: str) -> list[str]:
    """Jobs of a stage in the queue; of an array of which tasks have ended badly, only the tasks that have not: no
    dependency on the whole of it could hold.
    """
    by_job: dict[str, list[Task]] = {}
    for task in board.tasks:
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
    """Job numbers; in a dry run, which has none, the jobs' names."""
    return [array.job or array.name for one in made for array in one.arrays]


def planned(run: Run, profile: Profile, request: Request, todo: Todo, limits: SiteLimits, number: int) -> Submission:
    """The record of a submission before anything is in the queue; its folder may not exist."""
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
