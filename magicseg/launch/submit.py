"""Submit stages: put jobs into the queue and write their records.

    done = submit(run, Request(stage="all", profile="gpu"))
    done.lines                      # messages for the user
    done.submissions                # the new submissions in the queue

`magicseg.launch.planning` decides which work is submitted.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from magicseg.config.stage_declarations import JOBS, STAGES
from magicseg.core.errors import ConfigError, MagicsegError
from magicseg.core.files import storage_errors
from magicseg.core.text import command
from magicseg.launch.caption_server import refuse_misfit
from magicseg.launch.environment import refuse_named_secrets
from magicseg.launch.housekeeping import record_endings, release_dead_claims
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
from magicseg.launch.profile import FOLLOW_UP, SERVER_STAGE, Profile
from magicseg.launch.profile_files import load_profile
from magicseg.launch.slurm import SiteLimits, SlurmError, SlurmSilence, installed, submit_script
from magicseg.launch.training_script import follow_up_script, training_script
from magicseg.launch.workers import workers_per_task
from magicseg.run.directory import Run


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """The result of `submit`.

    ``lines``: messages for the user. ``submissions``: the new submissions, the follow-up job last. ``waiting``:
    submissions of the same stages that were already in the queue.
    """

    lines: list[str]
    submissions: list[Submission] = field(default_factory=list)
    waiting: list[Submission] = field(default_factory=list)


def submit(run: Run, request: Request) -> Submitted:
    """Submit the missing work of a stage, or of all stages in order, unless it is already in the queue.

    Raises ConfigError if the profile is invalid. Raises BackendError if weights are not fetched. Raises
    IncompleteError if the previous stage is neither done nor queued. Raises SlurmError if Slurm refuses a job; jobs
    that it accepted before are recorded. Raises ContainerError if the image cannot be used. Raises RunError if
    another submission is in progress. Raises PlanMismatch if the run's settings or image have changed.
    """
    profile = load_profile(request.profile, request.overrides)
    refuse_named_secrets(run.config, profile)
    with submitting(run):
        state = State.of(run)
        limits = SiteLimits.ask()
        if not state.queue.asked and not request.force:
            raise SlurmError(
                f"{run.path}: the queue cannot be queried: {'; '.join(state.queue.warnings)}",
                hint="try again later, or add --force if you know that this run has no jobs in the queue",
            )
        refuse_unfetched(state, request)
        queued = [] if request.force else [task.label for stage in JOBS for task in state.queue.active(stage)]
        with admitted(run, profile, new=request.new_image, queued=queued):
            release_dead_claims(state)
            record_endings(state)
            known = {one.number for one in submissions(run)}
            try:
                new, lines = _plan_and_enqueue(state, profile, limits, request, partial(_enqueue, run, profile))
            except MagicsegError as error:
                _append_queued_jobs(run, request, error, [one for one in submissions(run) if one.number not in known])
                raise
    stages = stages_of(request)
    numbers = {task.submission.number for stage in stages for task in state.queue.active(stage)}
    there = [one for one in submissions(run) if one.number in numbers]
    followers = [one for one in submissions(run) if numbers & set(one.asked.get("submissions", ()))]
    if new:
        lines.append(f"next: {command('magicseg', 'status', run.path, '--watch')}")
    elif any(state.queue.active(stage) and not state.complete(stage) for stage in stages):
        lines.append(f"nothing to submit: the rest is in the queue; see: {command('magicseg', 'status', run.path)}")
    else:
        lines.append(f"nothing to submit: {request.stage} is done; see: {command('magicseg', 'status', run.path)}")
    return Submitted(lines=lines, submissions=new, waiting=[*there, *followers])


def _append_queued_jobs(run: Run, request: Request, error: MagicsegError, begun: Sequence[Submission]) -> None:
    """Add the already queued jobs and the next commands to an error that ended a submission."""
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
    """Return the scripts that `submit` would submit, each below its ``sbatch`` command.

    Weights need not be fetched yet. Dependencies show job names, because there are no job ids yet. Without a Slurm
    that answers, the limits are Slurm's defaults.
    """
    profile = load_profile(request.profile, request.overrides)
    refuse_named_secrets(run.config, profile)
    try:
        limits = SiteLimits.ask() if installed("scontrol") else SiteLimits.usual()
    except SlurmError:  # installed, but its daemon does not answer
        limits = SiteLimits.usual()
    parts: list[str] = []

    def show(record: Submission, dependency: str | None) -> Submission:
        for script, text in _scripts(run, profile, record, dependency):
            parts.append(f"### sbatch {record.folder / script}\n{text.rstrip()}\n")
        return record

    _plan_and_enqueue(State.of(run), profile, limits, request, show)
    return "\n".join(parts) or "nothing to submit\n"


def _plan_and_enqueue(
    state: State,
    profile: Profile,
    limits: SiteLimits,
    request: Request,
    enqueue: Callable[[Submission, str | None], Submission],
) -> tuple[list[Submission], list[str]]:
    """Plan the stages in order, and the follow-up job, and call ``enqueue`` with each record and its dependency.

    Returns: the records that ``enqueue`` returned, and messages for the user.
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
            lines.append("evaluate: skipped, because magicseg.yaml has no evaluate.data")
            continue
        todo = find_todo(state, profile, limits, request, stage, new)
        lines += _skipped_lines(run, todo)
        if todo.groups:
            if stage == SERVER_STAGE:
                refuse_misfit(run.config, profile)
            record = planned(run, profile, request, todo, limits, number + len(new))
            new[stage] = enqueue(record, dependency_of(state, new, stage))
            lines += _queued_lines(new[stage], workers_per_task(run.config, stage, profile.resources(stage)))
    made = list(new.values())
    if made and (request.stage == ALL or profile.resubmit):
        record = planned_follow_up(run, profile, request, made, number + len(new))
        follow_up = enqueue(record, "afterany:" + ":".join(job_numbers(made)))
        again = f", then submits what is missing, up to {profile.resubmit} times" if profile.resubmit else ""
        lines.append(f"follow-up: job {follow_up.arrays[0].job} reports at the end{again}")
        made.append(follow_up)
    return made, lines


def _scripts(run: Run, profile: Profile, record: Submission, dependency: str | None) -> list[tuple[str, str]]:
    """Return the file names and texts of a submission's job scripts."""
    if record.stage == "train":
        return [("train.sbatch", training_script(run, profile, record, dependency))]
    if record.stage == FOLLOW_UP:
        return [("follow-up.sbatch", follow_up_script(run, profile, record, dependency))]
    from magicseg.launch.array import array_script

    specs = array_specs(record, profile, dependency)
    return [("JOB_submission.sh", array_script(run, record.stage, profile, spec, record.folder)) for spec in specs]


def _enqueue(run: Run, profile: Profile, record: Submission, dependency: str | None) -> Submission:
    """Create a submission's folder, submit its jobs, and write its record."""
    from magicseg.launch.array import submit_array

    make_folder(record)
    record.write()
    with storage_errors(record.folder, command("magicseg", "submit", record.stage, run.path)):
        if record.stage in {"train", FOLLOW_UP}:
            ((name, text),) = _scripts(run, profile, record, dependency)
            return _submit_jobs(record, lambda _: _submit_text(record.folder / name, text, record.names[0]))
        specs = array_specs(record, profile, dependency)
        return _submit_jobs(record, lambda at: submit_array(run, record.stage, profile, specs[at], record.folder))


def _submit_text(path: Path, text: str, name: str) -> str:
    path.write_text(text, encoding="utf-8")
    return submit_script(path, name)


def _submit_jobs(record: Submission, send: Callable[[int], str]) -> Submission:
    """Submit a record's jobs in order, and record each job id at once. Remove refused jobs from the record.

    After an interruption, or if Slurm did not answer, it is unknown whether the job is queued. Then the record stays,
    and later queries find the job by its name.
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


def _skipped_lines(run: Run, todo: Todo) -> list[str]:
    skipped = [f"{todo.committed} committed"] if todo.committed else []
    skipped += [f"{todo.in_flight} in the queue already"] if todo.in_flight else []
    skipped += [f"{todo.blocked} wait for the previous stage"] if todo.blocked else []
    if todo.raised_from:
        size = f"{todo.stage}: {len(todo.groups[0])} shards per task, not {todo.raised_from}"
        why = "the number of tasks is limited (slurm.tasks, or the site's MaxJobCount)"
        return [f"{size}: {why}", *_skipped_lines(run, replace(todo, raised_from=None))]
    if todo.stage not in STAGES:
        state = "done" if todo.committed else "in the queue already" if todo.in_flight else ""
        return [f"{todo.stage}: {state}"] if state else []
    return [f"{todo.stage}: not submitted: {', '.join(skipped)} (of {run.plan.shards} shards)"] if skipped else []


def _queued_lines(made: Submission, workers: int) -> list[str]:
    shards = sum(len(made.shards_of(task)) for task in range(len(made.tasks))) if made.stage in STAGES else 0
    what = "1 task" if len(made.tasks) == 1 else f"{len(made.tasks)} tasks"
    if shards:
        what = f"{shards} shards in {what}, {len(made.shards_of(0))} each"
        if workers > 1:
            what += f", {workers} workers per task"
    if made.stage == "train":
        nodes = made.resources["nodes"]
        what = f"{nodes} node{'s' if nodes > 1 else ''}"
    numbers = job_numbers([made])
    jobs = f"job {numbers[0]}" if len(numbers) == 1 else f"{len(numbers)} jobs {', '.join(numbers)}"
    return [f"{made.stage}: {what}, {jobs}; logs in {made.folder}"]
