"""``magicseg describe|generate|mask``: the array stages on this machine."""

from typing import Annotated

import typer

from magicseg.cli.output import RunArgument, note, progress
from magicseg.errors import ConfigError

WorkersOption = Annotated[
    int | None, typer.Option("--workers", min=1, help="processes at a time  [default: the CPUs at hand]")
]
PerJobOption = Annotated[
    int | None,
    typer.Option("--shards-per-job", min=1, help="shards that one process does before the next is started"),
]
ShardsOption = Annotated[str | None, typer.Option("--shards", metavar="0-3,7", help="only these shards")]


def describe(
    run: RunArgument,
    workers: WorkersOption = None,
    shards_per_job: PerJobOption = None,
    shards: ShardsOption = None,
) -> None:
    """Write a caption, and one without the objects, for every sample that has none."""
    run_one(run, "describe", workers, shards_per_job, shards)


def generate(
    run: RunArgument,
    workers: WorkersOption = None,
    shards_per_job: PerJobOption = None,
    shards: ShardsOption = None,
) -> None:
    """Make the image and the counterfactual of every sample that has none."""
    run_one(run, "generate", workers, shards_per_job, shards)


def mask(
    run: RunArgument,
    workers: WorkersOption = None,
    shards_per_job: PerJobOption = None,
    shards: ShardsOption = None,
) -> None:
    """Label every pixel of every image that has no mask."""
    run_one(run, "mask", workers, shards_per_job, shards)


def run_one(
    path: RunArgument, stage: str, workers: int | None, shards_per_job: int | None, shards: str | None
) -> None:
    """Do one array stage. Raises: IncompleteError when some of it is not done in the end."""
    from magicseg.execute.job import ShardEvent
    from magicseg.execute.pool import StopFlag, default_workers, missing_message, on_signals, run_stage
    from magicseg.run.directory import Run
    from magicseg.run.ranges import parse_ranges

    opened = Run.open(path)
    if shards is not None and not shards.strip():
        raise ConfigError("--shards is empty", hint="--shards 0-3,7")
    wanted = parse_ranges(shards, count=opened.plan.shards) if shards else list(range(opened.plan.shards))
    before = sorted(opened.checked_commits(stage).keys() & set(wanted))
    if len(before) == len(wanted):
        note(f"{stage}: nothing to do, {len(wanted)} shards are committed")
    sizes = {shard: len(opened.plan.shard_range(shard)) for shard in wanted}
    counted = set(before)
    with (
        on_signals(StopFlag()) as stop,
        progress(stage, sum(sizes.values()), "samples", sum(sizes[shard] for shard in before)) as show,
    ):

        def report(event: ShardEvent) -> None:
            if event.outcome == "committed" and event.shard not in counted:
                counted.add(event.shard)
                show(event.samples, "")

        outcome = run_stage(
            opened,
            stage,
            shards=wanted,
            workers=workers or default_workers(),
            shards_per_job=shards_per_job,
            report=report,
            stop=stop,
        )
        by_others = set(wanted) - set(outcome.missing) - counted
        show(sum(sizes[shard] for shard in by_others), "")
    if outcome.missing:
        raise missing_message(opened, stage, outcome)
