"""``magicseg evaluate|compare``: score a model on benchmarks, and compare results."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from magicseg.cli.options import JsonOption
from magicseg.cli.output import note, plain_console, print_json, progress

if TYPE_CHECKING:
    from magicseg.config.evaluation import EvaluateSettings
    from magicseg.evaluate.decoding import ImageFailed
    from magicseg.evaluate.model_under_test import Target

_MEASURES = ("miou", "miou_over_classes_in_ground_truth", "mean_boundary_iou", "pixel_accuracy")


def evaluate(
    target: Annotated[Path, typer.Argument(metavar="RUN|MODEL", help="a trained run, or a model's folder")],
    benchmark: Annotated[
        list[str] | None,
        typer.Option("--benchmark", metavar="NAME|PATH.yaml", help="voc21, own-masks, ... (repeatable)  [RUN's]"),
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="DIR", help="the data set, or a folder of data sets  [RUN's]")
    ] = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option(
            "--baseline", metavar="NAME", help="vanilla, maskclip, sclip, clearclip, memory-bank (repeatable)"
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=1, metavar="N", help="score only N images of each benchmark, evenly spread"),
    ] = None,
    background: Annotated[
        str | None,
        typer.Option("--background", metavar="RULE", help="threshold or prompts, instead of the benchmark's rule"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="output folder  [RUN/results or MODEL/results]")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Score a trained model and baselines on benchmarks, with confidence intervals.

    Without --benchmark, the run's settings name the benchmarks. Finished benchmarks are not scored again.
    To shard images across ranks: torchrun --nproc-per-node=N -m magicseg evaluate ...
    """
    from magicseg.core.distributed import EVALUATION, World, process_group
    from magicseg.core.errors import IncompleteError
    from magicseg.core.signals import STOP_SIGNALS, StopFlag, on_signals
    from magicseg.evaluate.model_under_test import Target
    from magicseg.evaluate.suite import Suite
    from magicseg.run.attempts import forget_attempts

    given = {
        "benchmarks": benchmark or None,
        "data": None if data is None else str(data),
        "baselines": baseline or None,
        "limit": limit,
        "background": background,
    }
    world = World.from_environment()
    opened = Target.of(target, out=out)
    settings = _settings(opened, given)
    found: list[dict[str, Any]] = []
    failed: list[ImageFailed] = []
    with on_signals(StopFlag(), STOP_SIGNALS, second_acts=not world.launched, then=forget_attempts) as stop:
        suite = Suite.of(opened, settings, device=_device(world))
        share = f", share 1 of {world.size}" if world.size > 1 else ""
        with process_group(world, patience=EVALUATION), _Bars(share) as bars:
            found += suite.evaluate(
                part=(world.rank, world.size),
                report=lambda text: note(f"evaluate: {text}") if world.is_rank_0 else None,
                progress=bars.show if world.is_rank_0 else _no_progress,
                stop=stop,
                failed=failed.append,
            )
        # All ranks have finished their parts, so rank 0 can merge them, whichever rank was the last.
        if world.is_rank_0 and world.size > 1 and not failed:
            found = list(suite.merged())
        if stop() and len(found) < len(set(settings.benchmarks)):
            raise IncompleteError(f"{target}: evaluation was interrupted", hint="repeat the command to resume")
    if world.is_rank_0:
        if as_json:
            if found:
                print_json(found[0] if len(settings.benchmarks) == 1 else found)
        else:
            for results in found:
                _print_scores(results, suite.path_of(results["benchmark"]))
    if failed:
        for failure in failed[1:]:
            note(f"evaluate: {failure.message}")
        raise failed[0]


def _settings(target: "Target", given: Mapping[str, Any]) -> "EvaluateSettings":
    """Return the run's settings, or the defaults, overridden by the given options.

    Raises ConfigError if an option is invalid, or if a model without a run is given without a benchmark.
    """
    from pydantic import ValidationError

    from magicseg.config.evaluation import EvaluateSettings
    from magicseg.core.errors import ConfigError
    from magicseg.core.setting_errors import first_fault
    from magicseg.data.protocol import protocol_names

    base = target.run.config.evaluate.model_dump() if target.run else {}
    if target.run is None and given["benchmarks"] is None:
        raise ConfigError(
            f"{target.path}: is a model without a run: name a benchmark",
            hint=f"--benchmark NAME --data DIR; benchmarks: {', '.join(protocol_names())}",
        )
    try:
        return EvaluateSettings.model_validate(
            base | {key: value for key, value in given.items() if value is not None}
        )
    except ValidationError as error:
        first = first_fault(error)
        option = str(first.location[0]).removesuffix("s")
        raise ConfigError(f"--{option}: {first.message}, got {first.value!r}") from None


def _device(world: Any) -> str:
    from magicseg.core.errors import BackendError

    try:
        return str(world.device)
    except ImportError as error:
        raise BackendError(
            f"evaluation needs torch: {error}", hint="install the model libraries: pip install 'magicseg[models]'"
        ) from error


def _no_progress(_title: str, _done: int, _total: int) -> None:
    """Show no progress: only rank 0 does."""


class _Bars:
    """Successive progress bars, one per title. ``share`` is appended to each title."""

    def __init__(self, share: str) -> None:
        self._share = share

    def __enter__(self) -> "_Bars":
        self._title: str | None = None
        self._stack = contextlib.ExitStack()
        self._done = 0
        return self

    def __exit__(self, *_error: object) -> None:
        self._stack.close()

    def show(self, title: str, done: int, total: int) -> None:
        if title != self._title:
            self._stack.close()
            self._title, self._done = title, 0
            self._bar = self._stack.enter_context(progress(title + self._share, total, "images"))
        self._bar(done - self._done, "")
        self._done = done


def _print_scores(results: Mapping[str, Any], path: Path) -> None:
    from magicseg.evaluate.compare import cell_text, false_positives_text, threshold_warning

    def tell_more(scores: Mapping[str, Any]) -> None:
        for line in false_positives_text(scores):
            note(f"    {line}")
        warning = threshold_warning(scores)
        if warning:
            note(f"    warning: {warning}")

    part = (
        "" if results.get("complete") is not False else f" (of {results['official_images']}: not the whole benchmark)"
    )
    note(f"evaluate: {results['benchmark']}, {results['images']} images{part}")
    if "ground_truth" in results:
        note(f"  ground truth: {results['ground_truth']}")
    for name, value in results["iou"].items():
        note(f"  {name:<20} {'-' if value is None else f'{value:.3f}'}")
    note(f"  mIoU {cell_text(results, 'miou')}, pixel accuracy {cell_text(results, 'pixel_accuracy')}")
    tell_more(results)
    for name, scores in results["baselines"].items():
        note(f"  {name} baseline: mIoU {cell_text(scores, 'miou')}")
        tell_more(scores)
    note(f"  all results: {path}")


def compare(
    results: Annotated[
        list[Path], typer.Argument(metavar="A B...", help="runs, models' folders, or results files of `evaluate`")
    ],
    measure: Annotated[str, typer.Option("--measure", help=f"measure to show: {', '.join(_MEASURES)}")] = "miou",
    as_json: JsonOption = False,
) -> None:
    """Print results side by side with 95 % intervals, and note where they are not comparable.

    For results on the same images, also print the difference to the first, with a paired bootstrap interval.
    """
    from dataclasses import asdict

    from magicseg.core.errors import ConfigError
    from magicseg.evaluate.compare import cell_text, difference_text
    from magicseg.evaluate.compare import compare as compare_results

    if measure not in _MEASURES:
        raise ConfigError(f"--measure {measure!r}: must be one of {', '.join(_MEASURES)}")
    rows = compare_results(results, measure)
    if as_json:
        print_json([asdict(row) for row in rows])
        return
    from rich.table import Table

    table = Table(title=f"{measure} [95 % interval over images]", title_justify="left")
    for title in ("benchmark", "head", *map(str, results)):
        table.add_column(title, justify="left" if title in {"benchmark", "head"} else "right", overflow="fold")
    for row in rows:
        shown = zip(row.cells, row.differences, strict=True)
        texts = [f"{cell_text(cell, measure)}\n{difference_text(change)}".rstrip() for cell, change in shown]
        table.add_row(row.benchmark, row.head, *texts)
    plain_console().print(table)
    for row in rows:
        for line in row.notes:
            note(f"{row.benchmark}, {row.head}: {line}")
