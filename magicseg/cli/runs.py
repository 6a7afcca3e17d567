"""``magicseg demo|init|fetch|run|reset|schema``: commands for a run as a whole."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from magicseg.cli import evaluate, learn, stages
from magicseg.cli.options import (
    ConfigOption,
    GpusOption,
    PerGpuOption,
    PresetOption,
    RunArgument,
    SetOption,
    WorkersOption,
)
from magicseg.cli.output import note
from magicseg.core.errors import ConfigError
from magicseg.core.text import command

if TYPE_CHECKING:
    from magicseg.stages.placement import Wish


def init(
    run: RunArgument,
    preset: PresetOption = None,
    config: ConfigOption = None,
    set_: SetOption = None,
) -> None:
    """Create a run: resolve its settings, freeze its plan, create its store."""
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
        note(f"{run}: this disk does not support {' and '.join(absent)}; fallbacks are used")
    note(f"{run}: {made.plan.samples} samples of {len(made.vocabulary)} labels in {made.plan.shards} shards")
    by_name = any(weights.by_name for stage in WEIGHTED for weights in stage_weights(made.config, stage))
    note(f"next: {command('magicseg', 'fetch' if by_name else 'run', run)}")


def fetch(
    run: RunArgument,
    verify: Annotated[bool, typer.Option("--verify", help="also check the hashes of files fetched before")] = False,
) -> None:
    """Download the pretrained weights that the run's settings name on the hub, and verify them."""
    from magicseg.run.directory import Run
    from magicseg.run.fetch_weights import fetch as fetch_weights

    fetch_weights(Run.open(run), verify=verify, report=note)


def run_all(
    run: RunArgument,
    workers: WorkersOption = None,
    gpus: GpusOption = None,
    workers_per_gpu: PerGpuOption = None,
) -> None:
    """Do all remaining work in order: describe, generate, mask, train, evaluate, report."""
    _make_data(run, stages.wish_of(workers, gpus, workers_per_gpu))
    _train_and_evaluate(run)
    learn.report(run)


def demo(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="directory of the new run")] = Path("magicseg-demo"),
    set_: SetOption = None,
    workers: WorkersOption = None,
    short: Annotated[
        bool,
        typer.Option(
            "--short",
            help="take seconds, without comparison runs: shows that the stages work, not that the model learns",
        ),
    ] = False,
) -> None:
    """Run the whole pipeline in miniature: offline, on two CPU cores, in a few minutes.

    It also creates RUN-exact-masks and RUN-no-counterfactual-loss for comparison; RUN's report shows their scores.
    """
    from magicseg.config.loading import load_config
    from magicseg.miniature.comparison_runs import create_comparison_runs, running
    from magicseg.miniature.short_demo import SHORT
    from magicseg.run.directory import Run

    made = Run.create(run, load_config(preset="miniature", overrides=[*(SHORT if short else ()), *(set_ or ())]))
    beside = [] if short else create_comparison_runs(made)
    _make_data(run, stages.wish_of(workers))
    with running(beside):
        _train_and_evaluate(run)
        if beside:
            note("waiting for the comparison runs")
    paths = [run.parent / each.path.name for each in beside]
    learn.report(run, paths)
    if beside:
        evaluate.compare([run, *paths])


def _make_data(run: Path, wish: "Wish") -> None:
    from magicseg.config.stage_declarations import STAGES
    from magicseg.run.directory import Run

    if not Run.open(run).config.train.needs_own_samples:
        note("describe, generate, mask: skipped, because train.sources does not use this run's samples")
        return
    for stage in STAGES:
        stages.run_one(run, stage, wish)


def _train_and_evaluate(run: Path) -> None:
    from magicseg.run.directory import Run

    learn.train(run)
    if Run.open(run).config.evaluate.has_data:
        evaluate.evaluate(run)
    else:
        manually = command("magicseg", "evaluate", run)
        note(f"evaluate: skipped, because evaluate.data is not set; or: {manually} --data DIR")


def reset(
    stage: Annotated[str, typer.Argument(help="plan, describe, generate, mask, train or evaluate")],
    run: RunArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="do not ask for confirmation")] = False,
) -> None:
    """Delete a stage's results and everything that depends on them, to redo them with the current settings."""
    from magicseg.config.stage_declarations import JOBS
    from magicseg.run.directory import Run

    known = ("plan", *JOBS)
    if stage not in known:
        raise ConfigError(f"there is no stage {stage!r}", hint=f"stages: {', '.join(known)}")
    opened = Run.open(run)
    if not yes:
        typer.confirm(f"Delete {stage} of {opened.path}, and everything that depends on it?", abort=True)
    note(f"deleted: {', '.join(opened.reset(stage))}")


def schema() -> None:
    """Print the JSON schema of the settings."""
    from magicseg.config.loading import json_schema

    typer.echo(json_schema())
