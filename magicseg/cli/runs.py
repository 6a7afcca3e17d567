"""``magicseg demo|init|fetch|run|reset|schema``: a run as a whole."""

from pathlib import Path
from typing import Annotated

import typer

from magicseg.cli.output import RunArgument, note
from magicseg.core.errors import ConfigError
from magicseg.core.text import command

PresetOption = Annotated[str | None, typer.Option("--preset", help="a shipped set of settings")]
ConfigOption = Annotated[Path | None, typer.Option("--config", help="a YAML file of settings")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="one setting: plan.samples=256 (repeatable)"),
]
WorkersOption = Annotated[
    int | None, typer.Option("--workers", min=1, help="processes at a time  [default: the CPUs at hand]")
]


def init(
    run: RunArgument,
    preset: PresetOption = None,
    config: ConfigOption = None,
    set_: SetOption = None,
) -> None:
    """Make a run: resolve its settings, freeze its plan, create its store."""
    from magicseg.config.loading import load_config, preset_names
    from magicseg.core.files import lacking, storage_errors
    from magicseg.run.directory import Run
    from magicseg.run.fingerprint import WEIGHTED, stage_weights

    if preset is None and config is None:
        raise ConfigError(
            "init needs a preset or a file of settings",
            hint=f"--preset miniature, or --config FILE; presets: {', '.join(preset_names())}",
        )
    made = Run.create(run, load_config(preset=preset, file=config, overrides=set_ or ()))
    with storage_errors(made.path, command("magicseg", "init", run)):
        absent = lacking(made.path)
    if absent:
        note(f"{run}: this disk has no {' and no '.join(absent)}; fallbacks are used")
    note(f"{run}: {made.plan.samples} samples of {len(made.vocabulary)} labels in {made.plan.shards} shards")
    by_name = any(weights.by_name for stage in WEIGHTED for weights in stage_weights(made.config, stage))
    note(f"next: {command('magicseg', 'fetch' if by_name else 'run', run)}")


def fetch(
    run: RunArgument,
    verify: Annotated[bool, typer.Option("--verify", help="hash again what was fetched before")] = False,
) -> None:
    """Get the pretrained weights that the run's settings name on the hub, and verify them."""
    from magicseg.run.directory import Run
    from magicseg.run.fetch import fetch as fetch_weights

    fetch_weights(Run.open(run), verify=verify, report=note)


def run_all(run: RunArgument, workers: WorkersOption = None) -> None:
    """Do all that is not done yet, in order: describe, generate, mask, train, evaluate, report."""
    from magicseg.cli import learn

    _make_data(run, workers)
    _train_and_evaluate(run)
    learn.report(run)


def demo(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="where to put the run")] = Path("magicseg-demo"),
    set_: SetOption = None,
    workers: WorkersOption = None,
    short: Annotated[
        bool, typer.Option("--short", help="in seconds and alone: shows that it works, not that it learns")
    ] = False,
) -> None:
    """The whole chain in miniature, offline, on two CPU cores in a few minutes.

    Beside RUN it makes RUN-exact-masks and RUN-no-counterfactual-loss, whose scores stand in RUN's report.
    """
    from magicseg.cli import evaluate, learn
    from magicseg.config.loading import load_config
    from magicseg.miniature.compared import doing, make_compared
    from magicseg.miniature.short import SHORT
    from magicseg.run.directory import Run

    made = Run.create(run, load_config(preset="miniature", overrides=[*(SHORT if short else ()), *(set_ or ())]))
    beside = [] if short else make_compared(made)
    _make_data(run, workers)
    with doing(beside):
        _train_and_evaluate(run)
        if beside:
            note("waiting for the runs that stand beside it")
    paths = [run.parent / each.path.name for each in beside]
    learn.report(run, paths)
    if beside:
        evaluate.compare([run, *paths])


def _make_data(run: Path, workers: int | None) -> None:
    from magicseg.cli import stages
    from magicseg.run.directory import Run
    from magicseg.run.fingerprint import STAGES

    if not Run.open(run).config.train.needs_own_samples:
        note("describe, generate, mask: left out, since train.sources names other data alone")
        return
    for stage in STAGES:
        stages.run_one(run, stage, workers, None, None)


def _train_and_evaluate(run: Path) -> None:
    from magicseg.cli import evaluate, learn
    from magicseg.run.directory import Run

    learn.train(run)
    if Run.open(run).config.evaluate.has_data:
        evaluate.evaluate(run)
    else:
        by_hand = command("magicseg", "evaluate", run)
        note(f"evaluate: left out, since evaluate.data is not set; or: {by_hand} --data DIR")


def reset(
    stage: Annotated[str, typer.Argument(help="plan, describe, generate, mask, train or evaluate")],
    run: RunArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="do not ask")] = False,
) -> None:
    """Drop a stage's work and all that rests on it, so that it is done anew with the present settings."""
    from magicseg.run.directory import Run
    from magicseg.run.fingerprint import STAGES

    known = ("plan", *STAGES, "train", "evaluate")
    if stage not in known:
        raise ConfigError(f"there is no stage {stage!r}", hint=f"stages: {', '.join(known)}")
    opened = Run.open(run)
    if not yes:
        typer.confirm(f"Drop {stage} of {opened.path}, and everything that rests on it?", abort=True)
    note(f"dropped: {', '.join(opened.reset(stage))}")


def schema() -> None:
    """Print the JSON schema of the settings."""
    from magicseg.config.loading import json_schema

    typer.echo(json_schema())
