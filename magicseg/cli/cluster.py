"""``magicseg submit|profile|logs|cancel|efficiency|follow-up``: run on a Slurm cluster."""

import enum
from typing import TYPE_CHECKING, Annotated

import typer

from magicseg.cli.estimate import profile_reference
from magicseg.cli.options import JsonOption, ProfileOption, RunArgument
from magicseg.cli.output import log_text, note, print_json, print_line
from magicseg.core.errors import BackendError, ConfigError
from magicseg.core.text import command

if TYPE_CHECKING:
    from magicseg.launch.planning import Request
    from magicseg.launch.queue_state import QueueState
    from magicseg.launch.submit import Submitted
    from magicseg.run.directory import Run


# The names are not taken from `magicseg.config.stage_declarations.JOBS`: that module loads numpy, and help texts must
# appear without it. A test holds them equal.


class SubmitStage(enum.StrEnum):
    """Stages that can be submitted."""

    DESCRIBE = "describe"
    GENERATE = "generate"
    MASK = "mask"
    TRAIN = "train"
    EVALUATE = "evaluate"
    ALL = "all"


class JobStage(enum.StrEnum):
    """Kinds of jobs that a run has."""

    DESCRIBE = "describe"
    GENERATE = "generate"
    MASK = "mask"
    TRAIN = "train"
    EVALUATE = "evaluate"
    FOLLOW_UP = "follow-up"


StageArgument = Annotated[JobStage | None, typer.Argument(metavar="[STAGE]", help="only this stage's jobs")]


def submit(
    stage: Annotated[SubmitStage, typer.Argument(metavar="STAGE", help="|".join(SubmitStage))],
    run: RunArgument,
    profile: ProfileOption = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="slurm.KEY=VALUE", help="override the profile: slurm.partition=low (repeatable)"
        ),
    ] = None,
    shards_per_task: Annotated[
        int | None,
        typer.Option("--shards-per-task", min=1, help="shards per array task (default: from measured times)"),
    ] = None,
    nodes: Annotated[int | None, typer.Option("--nodes", min=1, help="nodes for training")] = None,
    tasks: Annotated[
        int | None, typer.Option("--tasks", min=1, help="array tasks that an evaluation's images are sharded across")
    ] = None,
    resubmit: Annotated[
        int | None,
        typer.Option(
            "--resubmit", min=0, metavar="N", help="let follow-up jobs submit missing work again, up to N times"
        ),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="wait for the jobs; exit 0 only if all work is done")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print scripts and commands; submit nothing")] = False,
    force: Annotated[bool, typer.Option("--force", help="submit even work that is already queued")] = False,
    new_image: Annotated[
        bool, typer.Option("--new-image", help="continue the run in a different container image")
    ] = False,
) -> None:
    """Submit missing work to Slurm: job arrays for the stages, torchrun on several nodes for training."""
    from magicseg.launch.environment import site_overrides
    from magicseg.launch.planning import Request, State, refuse_unfetched
    from magicseg.launch.profile_files import load_profile
    from magicseg.launch.submit import dry_run as show_scripts
    from magicseg.launch.submit import submit as submit_request
    from magicseg.run.directory import Run

    opened = Run.open(run)
    overrides = list(set_ or ())
    if nodes is not None:
        overrides.append(f"slurm.stages.train.nodes={nodes}")
    if tasks is not None:
        overrides.append(f"slurm.evaluation_tasks={tasks}")
    if resubmit is not None:
        overrides.append(f"slurm.resubmit={resubmit}")
    reference = _profile(profile, opened)
    from_environment, notes = site_overrides(load_profile(reference, overrides))
    for line in notes:
        note(line)
    request = Request(
        stage=stage.value,
        profile=reference,
        overrides=(*from_environment, *overrides),
        shards_per_task=shards_per_task,
        force=force,
        new_image=new_image,
    )
    for line in _estimate_lines(opened, request):
        note(line)
    if dry_run:
        text = show_scripts(opened, request)
        try:
            refuse_unfetched(State.of(opened), request)
        except BackendError as error:
            note(f"required before submitting: {error.message}: {error.hint}")
        typer.echo(text, nl=False)
        return
    done = submit_request(opened, request)
    for line in done.lines:
        note(line)
    if wait:
        _wait(opened, stage.value, done)


def _profile(option: str | None, run: "Run") -> str:
    reference = profile_reference(option, run)
    if reference is None:
        from magicseg.launch.profile_files import profile_names

        raise ConfigError(
            "no site profile: --profile, the run's slurm.profile and MAGICSEG_PROFILE are all unset",
            hint=f"--profile NAME or --profile PATH.yaml; shipped: {', '.join(profile_names())}",
        )
    return reference


def _estimate_lines(run: "Run", request: "Request") -> list[str]:
    """Return the estimate of a submission's cost, as lines, before anything is queued."""
    from magicseg.estimate.run_estimate import estimate
    from magicseg.estimate.wording import summary_lines
    from magicseg.launch.planning import stages_of
    from magicseg.launch.profile_files import load_profile

    site = load_profile(request.profile, request.overrides)
    report = estimate(
        run, site, stages=stages_of(request), per_task=request.shards_per_task, reference=request.profile
    )
    return summary_lines(report)


def _wait(run: "Run", stage: str, done: "Submitted") -> None:
    from magicseg.launch.efficiency import efficiency as measure
    from magicseg.launch.efficiency import efficiency_lines
    from magicseg.launch.follow_up import wait_for

    shown = ""

    def show(queue: "QueueState") -> None:
        nonlocal shown
        counts: dict[str, int] = {}
        for task in queue.tasks:
            if task.active:
                text = f"{task.submission.stage} {task.kind}"
                counts[text] = counts.get(text, 0) + 1
        line = ", ".join(f"{text} {count}" for text, count in counts.items())
        if line != shown and line:
            note(f"waiting: {line}")
        shown = line

    try:
        wait_for(run, stage, [*done.waiting, *done.submissions], show)
    except KeyboardInterrupt:
        note(f"the jobs keep running; see: {command('magicseg', 'status', run.path)}")
        raise typer.Exit(130) from None
    if done.submissions or done.waiting:
        for line in efficiency_lines(measure(run, None if stage == SubmitStage.ALL else stage), run):
            note(line)
    note(f"done; see: {command('magicseg', 'status', run.path)}")


def profile(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="a shipped profile; without it, list them", show_default=False),
    ] = None,
) -> None:
    """Print a shipped profile as a template for your site: magicseg profile gpu > my-cluster.yaml."""
    from magicseg.launch.profile_files import profile_names, profile_text

    typer.echo(profile_text(name) if name else "\n".join(profile_names()), nl=name is None)


def logs(
    run: RunArgument,
    stage: StageArgument = None,
    shard: Annotated[
        int | None, typer.Option("--shard", min=0, help="log of the latest task with this shard")
    ] = None,
    task: Annotated[
        str | None, typer.Option("--task", metavar="J_I", help="log of this task, by Slurm's id: 123_4")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="keep printing as the log grows")] = False,
    failed: Annotated[bool, typer.Option("--failed", help="last lines of every failed task")] = False,
    server: Annotated[
        bool, typer.Option("--server", help="logs of the caption servers that the tasks start")
    ] = False,
) -> None:
    """Show one task's log, or the last line of every task's log."""
    from magicseg.launch.logs import find_tasks, last_lines, whole
    from magicseg.launch.logs import follow as grow
    from magicseg.launch.queue_state import read_queue_state
    from magicseg.run.directory import Run

    opened = Run.open(run)
    found = find_tasks(
        read_queue_state(opened),
        stage=stage.value if stage else None,
        shard=shard,
        label=task,
        failed=failed,
        server=server,
    )
    if follow:
        chosen, path = found[-1]
        note(f"{path}")

        def is_active() -> bool:
            return any(one.label == chosen.label for one in read_queue_state(opened).active())

        for text in grow(path, is_active):
            typer.echo(log_text(text), nl=False)
        return
    if shard is not None or task is not None:
        _, path = found[-1]
        note(f"{path}")
        typer.echo(log_text(whole(path)), nl=False)
        return
    for one, path in found:
        state = one.state.state.lower() if one.state else one.kind
        if failed:
            print_line(f"== {one.submission.stage} {one.label} {state}  {path}")
            for line in last_lines(path, 20):
                print_line(line)
        else:
            last = "".join(last_lines(path, 1))
            print_line(f"{one.submission.stage:<9} {one.label:<10} {state:<10} {last[:100]}")


def cancel(run: RunArgument, stage: StageArgument = None) -> None:
    """Cancel a run's jobs. Committed shards stay, and `submit` resumes from them."""
    from magicseg.launch.jobs import submitting
    from magicseg.launch.queue_state import read_queue_state
    from magicseg.launch.slurm import SlurmError
    from magicseg.launch.slurm import cancel as cancel_jobs
    from magicseg.run.directory import Run

    opened = Run.open(run)
    with submitting(opened):  # so that no follow-up job submits meanwhile
        queue = read_queue_state(opened, whole_queue=True)
        if not queue.asked:
            raise SlurmError("; ".join(queue.warnings), hint="try again later, or: scancel JOB")
        chosen = queue.active(stage.value if stage else None)
        chosen.sort(key=lambda task: task.submission.stage != JobStage.FOLLOW_UP)
        numbers = {task.submission.number for task in chosen}
        # Follow-up jobs would submit the cancelled work again, so they are cancelled too, before the other jobs.
        followers = [task for task in queue.active() if numbers & set(task.submission.asked.get("submissions", ()))]
        jobs = list(dict.fromkeys(str(task.array.job) for task in (*followers, *chosen)))
        cancel_jobs(jobs)
    if not jobs:
        note("no jobs of this run are in the queue")
        return
    again = command("magicseg", "submit", stage or "all", run)
    note(f"cancelled: {', '.join(jobs)} ({len(chosen)} tasks); again: {again}")


def efficiency(
    run: RunArgument,
    stage: StageArgument = None,
    json_: JsonOption = False,
) -> None:
    """Compare the resources that jobs requested and used, and suggest requests for next time."""
    from magicseg.launch.efficiency import efficiency as measure
    from magicseg.launch.efficiency import efficiency_lines
    from magicseg.run.directory import Run

    opened = Run.open(run)
    report = measure(opened, stage.value if stage else None)
    if json_:
        print_json(report)
        return
    for line in efficiency_lines(report, opened):
        print_line(line)


def follow_up(
    run: RunArgument, number: Annotated[int, typer.Argument(help="the number of the follow-up job's submission")]
) -> None:
    """Report on earlier jobs and submit missing work. Follow-up jobs run this command."""
    from magicseg.launch.follow_up import follow_up as report_and_submit
    from magicseg.run.directory import Run

    lines, _ = report_and_submit(Run.open(run), number)
    for line in lines:
        print_line(line)
