"""``magicseg describe|generate|mask``: run the array stages on this machine."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from magicseg.cli.options import (
    ConfigOption,
    GpusOption,
    MaxPixelsOption,
    PerGpuOption,
    PresetOption,
    RunArgument,
    SetOption,
    WorkersOption,
)
from magicseg.cli.output import note, progress
from magicseg.core.errors import ConfigError
from magicseg.core.text import command

if TYPE_CHECKING:
    from magicseg.config.stage_settings import MaskSettings
    from magicseg.labels import Vocabulary
    from magicseg.stages.placement import Wish

PerJobOption = Annotated[
    int | None,
    typer.Option("--shards-per-job", min=1, help="shards per process; then a new process starts"),
]
ShardsOption = Annotated[str | None, typer.Option("--shards", metavar="0-3,7", help="only these shards")]


def describe(
    run: RunArgument,
    workers: WorkersOption = None,
    gpus: GpusOption = None,
    workers_per_gpu: PerGpuOption = None,
    shards_per_job: PerJobOption = None,
    shards: ShardsOption = None,
) -> None:
    """Write the missing captions: for every sample one with the objects and one without them."""
    run_one(run, "describe", wish_of(workers, gpus, workers_per_gpu), shards_per_job, shards)


def generate(
    run: RunArgument,
    workers: WorkersOption = None,
    gpus: GpusOption = None,
    workers_per_gpu: PerGpuOption = None,
    shards_per_job: PerJobOption = None,
    shards: ShardsOption = None,
) -> None:
    """Generate the missing images: for every sample one with the objects and a counterfactual without them."""
    run_one(run, "generate", wish_of(workers, gpus, workers_per_gpu), shards_per_job, shards)


def mask(
    run: Annotated[Path | None, typer.Argument(metavar="RUN", help="the run's directory", show_default=False)] = None,
    workers: WorkersOption = None,
    gpus: GpusOption = None,
    workers_per_gpu: PerGpuOption = None,
    shards_per_job: PerJobOption = None,
    shards: ShardsOption = None,
    images: Annotated[
        Path | None,
        typer.Option("--images", metavar="FOLDER", help="label your own images in this folder instead"),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            "--labels", metavar="LIST", help="labels to query: 'cat, dog', voc20, or a .txt or .yaml file  (RUN's)"
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FOLDER", help="output folder for the masks of --images")
    ] = None,
    max_pixels: MaxPixelsOption = None,
    preset: PresetOption = None,
    config: ConfigOption = None,
    set_: SetOption = None,
) -> None:
    """Label every pixel of the generated images that have no mask, or of your own images with --images.

    With --images, settings come from RUN, or from --preset, --config and --set.
    """
    if images is None:
        if run is None:
            raise ConfigError("mask needs a run or a folder of images", hint="magicseg mask RUN, or --images FOLDER")
        given = {
            "--labels": labels,
            "--out": out,
            "--max-pixels": max_pixels,
            "--preset": preset,
            "--config": config,
            "--set": set_,
        }
        alone = next((name for name, value in given.items() if value), None)
        if alone:
            raise ConfigError(f"{alone} needs --images", hint=command("magicseg", "mask", run))
        run_one(run, "mask", wish_of(workers, gpus, workers_per_gpu), shards_per_job, shards)
        return
    of_runs = {
        "--workers": workers,
        "--gpus": gpus,
        "--workers-per-gpu": workers_per_gpu,
        "--shards": shards,
        "--shards-per-job": shards_per_job,
    }
    for name, value in of_runs.items():
        if value is not None:
            raise ConfigError(
                f"{name} does not go with --images: these images are masked in one process",
                hint=f"remove {name}",
            )
    if out is None or (labels is None and run is None):
        raise ConfigError("--images needs --labels and --out", hint="--labels 'cat, dog' --out FOLDER")
    _mask_images(images, _labels(run, labels), out, _mask_settings(run, preset, config, set_), max_pixels)


def _labels(run: Path | None, labels: str | None) -> "Vocabulary":
    from magicseg.labels import parse_labels
    from magicseg.run.directory import Run

    if labels is not None:
        return parse_labels(labels)
    assert run is not None
    return Run.open(run).vocabulary


def _mask_settings(
    run: Path | None, preset: str | None, config: Path | None, overrides: list[str] | None
) -> "MaskSettings":
    from magicseg.config.loading import load_config
    from magicseg.run.directory import Run
    from magicseg.stages.mask.image_folder import refuse_uncached

    if run is not None:
        if preset or config or overrides:
            raise ConfigError("give either RUN, or --preset, --config and --set, for the settings")
        opened = Run.open(run)
        opened.refuse_unfetched("mask")
        return opened.config.mask
    if preset is None and config is None:
        raise ConfigError(
            "--images needs settings for the masker", hint="add RUN, or --preset sdxl, or --config FILE"
        )
    settings = load_config(preset=preset, file=config, overrides=overrides or ()).mask
    given = [("--preset", preset), ("--config", config), *(("--set", one) for one in overrides or ())]
    typed = shlex.join(str(word) for name, value in given if value is not None for word in (name, value))
    refuse_uncached(
        settings,
        f"magicseg init RUN {typed} && magicseg fetch RUN   # on a machine with a network; "
        "then: magicseg mask RUN --images FOLDER --labels LIST --out OUT",
    )
    return settings


def _mask_images(
    images: Path, labels: "Vocabulary", out: Path, settings: "MaskSettings", max_pixels: int | None
) -> None:
    from magicseg.core.errors import IncompleteError
    from magicseg.core.signals import StopFlag, on_signals
    from magicseg.images.listing import images_in
    from magicseg.images.reading import MAX_PIXELS
    from magicseg.run.attempts import forget_attempts
    from magicseg.stages.mask.image_folder import mask_folder
    from magicseg.stages.mask.image_labelling import LabelledImage, next_step

    total = len(images_in(images, out, tell=note))
    with on_signals(StopFlag(), then=forget_attempts) as stop, progress("mask", total, "images") as show:

        def report(done: LabelledImage) -> None:
            show(1, "")
            if done.remark:
                note(f"{done.name}: {done.remark}")

        found = mask_folder(
            images, labels, settings, out, max_pixels=max_pixels or MAX_PIXELS, report=report, should_stop=stop
        )
    masked = sum(one.labelled for one in found)
    note(f"{out}: masks of {masked} of {total} images; detections: {out}/masks.jsonl")
    failed = [one.name for one in found if one.entry["status"] == "failed"]
    if failed or len(found) < total:
        what = f"{len(failed)} images failed, such as {failed[0]}" if failed else "interrupted"
        raise IncompleteError(f"{images}: {what}", hint=next_step(found, out))


def wish_of(workers: int | None, gpus: str | None = None, workers_per_gpu: int | None = None) -> "Wish":
    """Return what the options ask of the placement of workers. Raises ConfigError if they contradict each other."""
    from magicseg.stages.placement import Wish

    return Wish(workers=workers, gpus=gpus, per_gpu=workers_per_gpu)


def run_one(
    path: RunArgument, stage: str, wish: "Wish", shards_per_job: int | None = None, shards: str | None = None
) -> None:
    """Run one array stage on this machine. Raises IncompleteError if shards are missing at the end."""
    from magicseg.core.shard_ranges import parse_ranges
    from magicseg.core.signals import StopFlag, on_signals
    from magicseg.run.directory import Run
    from magicseg.stages.placement import place_workers
    from magicseg.stages.pool import missing_message, run_stage
    from magicseg.stages.worker import ShardEvent

    opened = Run.open(path)
    if shards is not None and not shards.strip():
        raise ConfigError("--shards is empty", hint="--shards 0-3,7")
    wanted = parse_ranges(shards, count=opened.plan.shards) if shards else list(range(opened.plan.shards))
    before = sorted(opened.checked_commits(stage).keys() & set(wanted))
    if len(before) == len(wanted):
        note(f"{stage}: nothing to do: all {len(wanted)} shards are committed")
        run_stage(opened, stage, shards=wanted)  # compacts the ledger
        return
    placement = place_workers(opened.config, stage, wish).at_most(len(wanted) - len(before))
    note(f"{stage}: {placement}")
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
            elif event.outcome in {"died", "out-of-memory"}:
                note(f"{stage}: {event.detail}")

        outcome = run_stage(
            opened,
            stage,
            shards=wanted,
            workers=placement.workers,
            gpus=placement.gpus,
            shards_per_job=shards_per_job,
            report=report,
            stop=stop,
        )
        by_others = set(wanted) - set(outcome.missing) - counted
        show(sum(sizes[shard] for shard in by_others), "")
    if outcome.missing:
        raise missing_message(opened, stage, outcome)
