"""Submitting stages: jobs into the queue, records into the job map.

done = submit(run, Request(stage="all", profile="gpu"))
done.lines                      # what to tell the user
done.submissions                # what is in the queue now
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from magicseg.launch.housekeeping import take_back_claims, tidy
from magicseg.launch.jobs import Submission, new_folder, submissions, submitting
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
    stages_of,
)
from magicseg.launch.profile import FOLLOW_UP, Profile, load_profile
from magicseg.launch.slurm import SiteLimits, SlurmError, installed, submit_script
from magicseg.launch.training import follow_up_script, training_script
from magicseg.run.directory import Run
from magicseg.run.fingerprint import STAGES


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """``lines`` tell what was done; ``submissions`` are what is new in the queue, the follow-up job last."""

    lines: list[str]
    submissions: list[Submission] = field(default_factory=list)


def submit(run: Run, request: Request) -> Submitted:
    """Submit what is missing of a stage, or of all in their order, and is not in the queue already.

    Raises: ConfigError for a profile that does not fit, IncompleteError if the stage before is neither done nor in
    the queue, SlurmError if Slurm refuses (what it had taken by then is in the job map), RunError, PlanMismatch.
    """
    profile = load_profile(request.profile, request.overrides)
    with submitting(run):
        state = State.of(run)
        limits = SiteLimits.ask()
        if not state.board.asked and not request.force:
            raise SlurmError(
                f"{run.path}: it is not known what is in the queue: {'; '.join(state.board.warnings)}",
                hint="try again later, or, if you know that none of its jobs is, add --force",
            )
        take_back_claims(state)
        tidy(state)
        new: dict[str, Submission] = {}
        lines: list[str] = []
        for stage in stages_of(request):
            todo = find_todo(state, profile, limits, request, stage, new)
            lines += _told(run, todo)
            if todo.groups:
                dependency = dependency_of(state, new, stage)
                made = _enqueue(run, profile, limits, request, todo, dependency)
                new[stage] = made
                lines += _told_jobs(made)
        result = list(new.values())
        if new and (request.stage == ALL or profile.resubmit):
            follow_up = _enqueue_follow_up(run, profile, request, result)
            again = f", then submits what is missing, up to {profile.resubmit} times" if profile.resubmit else ""
            lines.append(f"follow-up: job {follow_up.jobs[0]} reports at the end{again}")
            result.append(follow_up)
    if new:
        lines.append(f"next: magicseg status {run.path} --watch")
    elif any(state.board.active(stage) and not state.complete(stage) for stage in stages_of(request)):
        lines.append(f"nothing to submit: the rest is in the queue; look: magicseg status {run.path}")
    else:
        lines.append(f"nothing to submit: {request.stage} is done; look: magicseg status {run.path}")
    return Submitted(lines=lines, submissions=result)


def dry_run(run: Run, request: Request) -> str:
    """The scripts that `submit` would submit, each under the ``sbatch`` command that it would use.

    Dependencies name jobs by their names, since there are no numbers yet. Where there is no Slurm, the limits are
    Slurm's own defaults.
    """
    from magicseg.launch.array import array_script

    profile = load_profile(request.profile, request.overrides)
    limits = SiteLimits.ask() if installed("scontrol") else SiteLimits(max_array_size=1001, max_job_count=10_000)
    state = State.of(run)
    parts: list[str] = []
    new: dict[str, Submission] = {}

    def show(command: str, text: str) -> None:
        parts.append(f"### {command}\n{text.rstrip()}\n")

    number = max((one.number for one in submissions(run)), default=0)
    for stage in stages_of(request):
        todo = find_todo(state, profile, limits, request, stage, new)
        if not todo.groups:
            continue
        number += 1
        record = planned(run, profile, request, todo, limits, number)
        dependency = dependency_of(state, new, stage)
        if stage == "train":
            show(f"sbatch {record.folder / 'train.sbatch'}", training_script(run, profile, record, dependency))
        else:
            for spec in array_specs(record, profile, dependency):
                text = array_script(run, stage, profile, spec, record.folder)
                show(f"sbatch {record.folder / 'JOB_submission.sh'}", text)
        new[stage] = record
    if new and (request.stage == ALL or profile.resubmit):
        record = planned_follow_up(run, profile, request, list(new.values()), number + 1)
        dependency = "afterany:" + ":".join(job_numbers(new.values()))
        show(f"sbatch {record.folder / 'follow-up.sbatch'}", follow_up_script(run, profile, record, dependency))
    return "\n".join(parts) or "nothing to submit\n"


def _enqueue(
    run: Run, profile: Profile, limits: SiteLimits, request: Request, todo: Todo, dependency: str | None
) -> Submission:
    from magicseg.launch.array import submit_array

    number, folder = new_folder(run, todo.stage)
    record = planned(run, profile, request, todo, limits, number)
    record.write()
    if todo.stage == "train":
        script = folder / "train.sbatch"
        return _keep(record, lambda _: _submit_text(script, training_script(run, profile, record, dependency)))
    specs = array_specs(record, profile, dependency)
    return _keep(record, lambda position: submit_array(run, todo.stage, profile, specs[position], folder))


def _enqueue_follow_up(run: Run, profile: Profile, request: Request, made: Sequence[Submission]) -> Submission:
    number, folder = new_folder(run, FOLLOW_UP)
    record = planned_follow_up(run, profile, request, made, number)
    record.write()
    dependency = "afterany:" + ":".join(job for one in made for job in one.jobs)
    script = folder / "follow-up.sbatch"
    return _keep(record, lambda _: _submit_text(script, follow_up_script(run, profile, record, dependency)))


def _submit_text(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return submit_script(path)


def _keep(record: Submission, send: Callable[[int], str]) -> Submission:
    """Submit a record's jobs one by one, writing each number down at once; forget what was refused.

    Of an interruption nobody knows whether sbatch took the job: the record stays, and the queue is asked by its name.
    """
    for position in range(len(record.arrays)):
        try:
            job = send(position)
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
    if todo.stage not in STAGES:
        state = "done" if todo.committed else "in the queue already" if todo.in_flight else ""
        return [f"{todo.stage}: {state}"] if state else []
    return [f"{todo.stage}: not submitted: {', '.join(skipped)} (of {run.plan.shards} shards)"] if skipped else []


def _told_jobs(made: Submission) -> list[str]:
    shards = sum(len(made.shards_of(task)) for task in range(len(made.tasks)))
    what = "1 task" if len(made.tasks) == 1 else f"{len(made.tasks)} tasks"
    if shards:
        what = f"{shards} shards in {what}, {len(made.shards_of(0))} each"
    if made.stage == "train":
        nodes = made.resources["nodes"]
        what = f"{nodes} node{'s' if nodes > 1 else ''}"
    jobs = f"job {made.jobs[0]}" if len(made.jobs) == 1 else f"{len(made.jobs)} jobs {', '.join(made.jobs)}"
    return [f"{made.stage}: {what}, {jobs}; logs in {made.folder}"]
