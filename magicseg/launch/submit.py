"""Submitting stages: jobs into the queue, records into the job map.

    done = submit(run, Request(stage="all", profile="gpu"))
    done.lines                      # what to tell the user
    done.submissions                # what is in the queue now

What is to be submitted is planned in `magicseg.launch.planning`.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from magicseg.config.stage_declarations import STAGES
from magicseg.core.errors import ConfigError, MagicsegError
from magicseg.core.files import storage_errors
from magicseg.core.text import command
from magicseg.launch.environment import refuse_named_secrets
from magicseg.launch.housekeeping import take_back_claims, tidy
from magicseg.launch.job_image import admitted
from magicseg.launch.jobs import Submission, make_folder, next_number, submissions, submitting
from magicseg.launch.planning import (
    ALL,
    Request,
    State,
    Todo,
    array_specs,
    dependency_of,
    find_todo,
    job_numbers,
    planned,
    planned_follow_up,
    refuse_unfetched,
    stages_of,
)
from magicseg.launch.profile import FOLLOW_UP, JOBS, Profile
from magicseg.launch.profile_files import load_profile
from magicseg.launch.slurm import SiteLimits, SlurmError, SlurmSilence, installed, submit_script
from magicseg.launch.training_script import follow_up_script, training_script
from magicseg.run.directory import Run


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """``lines`` tell what was done; ``submissions`` are what is new in the queue, the follow-up job last; ``waiting``
    are those of the same stages that were there already.
    """

    lines: list[str]
    submissions: list[Submission] = field(default_factory=list)
    waiting: list[Submission] = field(default_factory=list)


def submit(run: Run, request: Request) -> Submitted:
    """Submit what is missing of a stage, or of all in their order, and is not in the queue already.

    Raises: ConfigError for a profile that does not fit, BackendError for weights that are not fetched,
    IncompleteError if the stage before is neither done nor in the queue, SlurmError if Slurm refuses (what it had
    taken by then is in the job map), ContainerError for an image that cannot be used, RunError, PlanMismatch.
    """
    profile = load_profile(request.profile, request.overrides)
    refuse_named_secrets(run.config, profile)
    with submitting(run):
        state = State.of(run)
        limits = SiteLimits.ask()
        if not state.board.asked and not request.force:
            raise SlurmError(
                f"{run.path}: it is not known what is in the queue: {'; '.join(state.board.warnings)}",
                hint="try again later, or, if you know that none of its jobs is, add --force",
            )
        refuse_unfetched(state, request)
        queued = [] if request.force else [task.label for stage in JOBS for task in state.board.active(stage)]
        with admitted(run, profile, new=request.new_image, queued=queued):
            take_back_claims(state)
            tidy(state)
            known = {one.number for one in submissions(run)}
            try:
                new, lines = _walk(state, profile, limits, request, partial(_enqueue, run, profile))
            except MagicsegError as error:
                _name_queued(run, request, error, [one for one in submissions(run) if one.number not in known])
                raise
    stages = stages_of(request)
    numbers = {task.submission.number for stage in stages for task in state.board.active(stage)}
    there = [one for one in submissions(run) if one.number in numbers]
    followers = [one for one in submissions(run) if numbers & set(one.asked.get("submissions", ()))]
    if new:
        lines.append(f"next: {command('magicseg', 'status', run.path, '--watch')}")
    elif any(state.board.active(stage) and not state.complete(stage) for stage in stages):
        lines.append(f"nothing to submit: the rest is in the queue; see: {command('magicseg', 'status', run.path)}")
    else:
        lines.append(f"nothing to submit: {request.stage} is done; see: {command('magicseg', 'status', run.path)}")
    return Submitted(lines=lines, submissions=new, waiting=[*there, *followers])


def _name_queued(run: Run, request: Request, error: MagicsegError, begun: Sequence[Submission]) -> None:
    """Add the queued jobs and the next commands to an error that ended a submission."""
    queued = [
        f"{array.name} ({f'job {array.job}' if array.job else 'unconfirmed: its job id is unknown'})"
        for one in begun
        for array in one.arrays
    ]
    if not queued:
        return
    error.message += f"; already queued: {', '.join(queued)}"
    error.args = (error.message,)
    rest = command("magicseg", "submit", request.stage, run.path)
    all_out = command("magicseg", "cancel", run.path)
    error.hint = f"{error.hint + '; ' if error.hint else ''}{rest} submits the rest; {all_out} cancels these"


def dry_run(run: Run, request: Request) -> str:
    """The scripts that `submit` would submit, each under the ``sbatch`` command that it would use.

    Weights need not be fetched yet. Dependencies name jobs by their names, since there are no numbers yet. Where
    there is no Slurm, or none that answers, the limits are Slurm's own defaults.
    """
    profile = load_profile(request.profile, request.overrides)
    refuse_named_secrets(run.config, profile)
    try:
        limits = SiteLimits.ask() if installed("scontrol") else SiteLimits.usual()
    except SlurmError:  # it is installed, and answers nobody here
        limits = SiteLimits.usual()
    parts: list[str] = []

    def show(record: Submission, dependency: str | None) -> Submission:
        for script, text in _scripts(run, profile, record, dependency):
            parts.append(f"### sbatch {record.folder / script}\n{text.rstrip()}\n")
        return record

    _walk(State.of(run), profile, limits, request, show)
    return "\n".join(parts) or "nothing to submit\n"


def _walk(
    state: State,
    profile: Profile,
    limits: SiteLimits,
    request: Request,
    enqueue: Callable[[Submission, str | None], Submission],
) -> tuple[list[Submission], list[str]]:
    """Plan stage after stage, and the follow-up job, and give each record to ``enqueue`` with its dependency.

    Returns: the records as ``enqueue`` gave them back, and lines for the user.
    """
    run = state.run
    new: dict[str, Submission] = {}
    lines: list[str] = []
    number = next_number(run)
    for stage in stages_of(request):
        if stage == "evaluate" and not run.config.evaluate.has_data:
            if request.stage != ALL:
                raise ConfigError(
                    f"{run.path}: magicseg.yaml names benchmarks, but not the folder of their data (evaluate.data)",
                    hint=f"set evaluate.data in {run.path}/magicseg.yaml, then submit again",
                )
            lines.append("evaluate: left out, since magicseg.yaml has no evaluate.data")
            continue
        todo = find_todo(state, profile, limits, request, stage, new)
        lines += _told(run, todo)
        if todo.groups:
            record = planned(run, profile, request, todo, limits, number + len(new))
            new[stage] = enqueue(record, dependency_of(state, new, stage))
            lines += _told_jobs(new[stage])
    made = list(new.values())
    if made and (request.stage == ALL or profile.resubmit):
        record = planned_follow_up(run, profile, request, made, number + len(new))
        follow_up = enqueue(record, "afterany:" + ":".join(job_numbers(made)))
        again = f", then submits what is missing, up to {profile.resubmit} times" if profile.resubmit else ""
        lines.append(f"follow-up: job {follow_up.arrays[0].job} reports at the end{again}")
        made.append(follow_up)
    return made, lines


def _scripts(run: Run, profile: Profile, record: Submission, dependency: str | None) -> list[tuple[str, str]]:
    """File names and texts of a submission's job scripts."""
    if record.stage == "train":
        return [("train.sbatch", training_script(run, profile, record, dependency))]
    if record.stage == FOLLOW_UP:
        return [("follow-up.sbatch", follow_up_script(run, profile, record, dependency))]
    from magicseg.launch.array import array_script

    specs = array_specs(record, profile, dependency)
    return [("JOB_submission.sh", array_script(run, record.stage, profile, spec, record.folder)) for spec in specs]


def _enqueue(run: Run, profile: Profile, record: Submission, dependency: str | None) -> Submission:
    """Make a submission's folder, submit its jobs, keep its record."""
    from magicseg.launch.array import submit_array

    make_folder(record)
    record.write()
    with storage_errors(record.folder, command("magicseg", "submit", record.stage, run.path)):
        if record.stage in {"train", FOLLOW_UP}:
            ((name, text),) = _scripts(run, profile, record, dependency)
            return _keep(record, lambda _: _submit_text(record.folder / name, text, record.names[0]))
        specs = array_specs(record, profile, dependency)
        return _keep(record, lambda at: submit_array(run, record.stage, profile, specs[at], record.folder))


def _submit_text(path: Path, text: str, name: str) -> str:
    path.write_text(text, encoding="utf-8")
    return submit_script(path, name)


def _keep(record: Submission, send: Callable[[int], str]) -> Submission:
    """Submit a record's jobs one by one, writing each number down at once; forget what was refused.

    After an interruption, or if Slurm did not answer, nobody knows whether it took the job: the record stays, and the
    queue is asked by its name.
    """
    for position in range(len(record.arrays)):
        try:
            job = send(position)
        except SlurmSilence:
            raise
        except Exception:
            if position == 0:
                shutil.rmtree(record.folder, ignore_errors=True)
            else:
                taken = record.arrays[:position]
                count = sum(array.count for array in taken)
                replace(record, arrays=taken, tasks=record.tasks[:count]).write()
            raise
        record = record.with_job(position, job)
    return record


def _told(run: Run, todo: Todo) -> list[str]:
    skipped = [f"{todo.committed} committed"] if todo.committed else []
    skipped += [f"{todo.in_flight} in the queue already"] if todo.in_flight else []
    skipped += [f"{todo.blocked} wait for the stage before"] if todo.blocked else []
    if todo.raised_from:
        size = f"{todo.stage}: {len(todo.groups[0])} shards per task, not {todo.raised_from}"
        why = "the queue does not take more tasks (slurm.tasks, or the site's MaxJobCount)"
        return [f"{size}: {why}", *_told(run, replace(todo, raised_from=None))]
    if todo.stage not in STAGES:
        state = "done" if todo.committed else "in the queue already" if todo.in_flight else ""
        return [f"{todo.stage}: {state}"] if state else []
    return [f"{todo.stage}: not submitted: {', '.join(skipped)} (of {run.plan.shards} shards)"] if skipped else []


def _told_jobs(made: Submission) -> list[str]:
    shards = sum(len(made.shards_of(task)) for task in range(len(made.tasks))) if made.stage in STAGES else 0
    what = "1 task" if len(made.tasks) == 1 else f"{len(made.tasks)} tasks"
    if shards:
        what = f"{shards} shards in {what}, {len(made.shards_of(0))} each"
    if made.stage == "train":
        nodes = made.resources["nodes"]
        what = f"{nodes} node{'s' if nodes > 1 else ''}"
    numbers = job_numbers([made])
    jobs = f"job {numbers[0]}" if len(numbers) == 1 else f"{len(numbers)} jobs {', '.join(numbers)}"
    return [f"{made.stage}: {what}, {jobs}; logs in {made.folder}"]
