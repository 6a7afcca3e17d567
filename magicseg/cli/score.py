"""``magicseg score``: score predicted class maps on a benchmark."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from magicseg.cli.options import JsonOption
from magicseg.cli.output import plain_console

if TYPE_CHECKING:
    from magicseg.evaluate.score_predictions import ScoreResult


def score(
    benchmark: Annotated[str, typer.Option(help="benchmark, such as voc21")],
    data: Annotated[Path, typer.Option(help="data set in its published layout, such as VOCdevkit/VOC2012")],
    predictions: Annotated[Path, typer.Option(help="folder of index PNGs, NAME.png or NAME.jpg.png")],
    as_json: JsonOption = False,
) -> None:
    """Score predicted class maps on a benchmark."""
    import json

    from magicseg.core.documents import without_nan
    from magicseg.data.protocol import load_protocol
    from magicseg.evaluate.score_predictions import score as score_predictions

    result = score_predictions(load_protocol(benchmark), data, predictions)
    if as_json:
        typer.echo(json.dumps(without_nan(result.to_dict()), allow_nan=False))
    else:
        _print_table(result)


def _print_table(result: "ScoreResult") -> None:
    from rich.table import Table

    scores = result.scores
    title = f"{result.benchmark}: {result.images} images, {scores.pixels} pixels"
    table = Table(title=title, title_justify="left")
    table.add_column("class")
    table.add_column("IoU (%)", justify="right")
    for name, value in zip(result.classes, scores.iou, strict=True):
        table.add_row(name, _percent(value))
    table.add_section()
    table.add_row("mean IoU", _percent(scores.miou))
    table.add_row("mean IoU, classes in ground truth", _percent(scores.miou_over_classes_in_ground_truth))
    table.add_row("pixel accuracy", _percent(scores.pixel_accuracy))
    table.add_row("mean accuracy", _percent(scores.mean_accuracy))
    plain_console().print(table)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"
