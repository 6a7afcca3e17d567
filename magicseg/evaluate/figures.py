"""Draw a benchmark's results as PNG files: confusion matrix, IoU by class, best and worst images."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from magicseg.config.evaluation import OWN_MASKS
from magicseg.core.errors import BackendError
from magicseg.core.files import storage_errors
from magicseg.data.labelled_images import LabelledImages
from magicseg.data.protocol import Protocol
from magicseg.evaluate.decoding import label_image
from magicseg.evaluate.threshold import Threshold
from magicseg.images.colours import css_colour, overlay
from magicseg.labels import BACKGROUND, IGNORE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from magicseg.evaluate.heads.head import Head

EXAMPLES = 4
_BARS = 60  # classes in a column
_NAMED = 8  # classes in an image's legend
_DPI = 110
_EXAMPLE_SIDE = 1024  # least side in pixels to which a large image is subsampled
_TITLE_CHARACTERS = 11  # per inch of width


def write_charts(results: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write ``confusion.png`` and ``classes.png`` from the content of a ``results.json``. No model is needed.

    Raises: BackendError without matplotlib, StoreError.
    """
    title = chart_title(results)
    figures = {
        "confusion.png": _confusion(
            np.array(results["confusion"]), list(results["iou"]), title, truth=_truth(results["benchmark"])
        ),
        "classes.png": _classes(results, title),
    }
    return [_save(figure, folder / name) for name, figure in figures.items()]


def chart_title(results: Mapping[str, Any]) -> str:
    """Return the title that both charts share."""
    return f"{results['head']} on {results['benchmark']}, {results['images']} images"


def _truth(benchmark: str) -> str:
    """Return what a benchmark's scores are against."""
    return "own masks" if benchmark == OWN_MASKS else "ground truth"


def write_examples(
    head: "Head",
    data: LabelledImages,
    results: Mapping[str, Any],
    folder: Path,
    *,
    count: int = EXAMPLES,
) -> list[Path]:
    """Write ``best.png`` and ``worst.png``: image, ground truth and prediction of the best and the worst images.

    Args: head: the head of ``results``; its predictions are computed again.
    Raises: DataError, BackendError, StoreError.
    """
    import torch

    protocol = data.protocol
    known = results["threshold"]
    threshold = None if known is None else Threshold.from_dict(known)
    head.prepare(protocol.queries)
    written = []
    with torch.inference_mode():
        for name in ("best", "worst"):
            rows = [(item, *_example(head, data, item["image"], threshold)) for item in results[name][:count]]
            if rows:
                title = f"{results['head']} on {results['benchmark']}: {name} images by their own mean IoU"
                written.append(_save(_pictures(rows, protocol, title), folder / f"{name}.png"))
    return written


def _example(
    head: "Head", data: LabelledImages, name: str, threshold: Threshold | None
) -> tuple[NDArray[np.uint8], NDArray[np.uint16], NDArray[np.uint16]]:
    """Return image, ground truth and prediction. Ignored pixels are IGNORE in both; large images are subsampled."""
    image, truth = data.pair(name)
    numbers = label_image(head, image, data.protocol, threshold, name)
    step = max(1, max(truth.shape) // _EXAMPLE_SIDE)
    image, truth, numbers = (
        image[::step, ::step].copy(),
        truth[::step, ::step].copy(),
        numbers[::step, ::step].copy(),
    )
    ignored = truth == data.protocol.ignore_value
    return image, np.where(ignored, IGNORE, truth).astype(np.uint16), numbers


def _confusion(matrix: NDArray[np.int64], names: Sequence[str], title: str, *, truth: str) -> "Figure":
    """Draw the confusion matrix. Rows sum to 1, so that rare classes are as visible as common ones."""
    count = len(names)
    side = max(5.0, 2.5 + 0.13 * count)
    figure = _figure(side + 1.2, side)
    axes = figure.add_subplot()
    sums = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(matrix, sums, out=np.full(matrix.shape, np.nan), where=sums > 0)
    shown = axes.imshow(shares, cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
    axes.set_facecolor("lightgrey")
    font = 9 if count <= 30 else 7
    axes.set_xticks(range(count), names, rotation=90, fontsize=font)
    axes.set_yticks(range(count), names, fontsize=font)
    _title(figure, f"{title}\nrows: {truth} (grey: none), as shares of it; columns: predicted")
    figure.colorbar(shown, ax=axes, fraction=0.04, pad=0.02)
    return figure


def _classes(results: Mapping[str, Any], title: str) -> "Figure":
    """Draw IoU by class, best first, with intervals. Classes without pixels are listed, not drawn as 0."""
    iou, spread = results["iou"], results["iou_interval"]
    known = sorted((name for name in iou if iou[name] is not None), key=lambda name: (-iou[name], name))
    columns = [known[start : start + _BARS] for start in range(0, len(known), _BARS)] or [[]]
    longest = max((len(name) for name in known), default=1)
    height = 1.6 + 0.19 * max(map(len, columns))
    figure = _figure(len(columns) * (3.6 + 0.07 * longest), max(3.0, height))
    for axes, names in zip(figure.subplots(1, len(columns), squeeze=False)[0], columns, strict=True):
        values = np.array([iou[name] for name in names], float)
        ends = np.array([spread[name] or (iou[name], iou[name]) for name in names], float).reshape(-1, 2)
        errors = np.clip(np.stack([values - ends[:, 0], ends[:, 1] - values]), 0, None)
        places = np.arange(len(names))
        axes.barh(places, values * 100, xerr=errors * 100, color="#4878a8", ecolor="#222222", capsize=1.5)
        axes.set_yticks(places, names, fontsize=8)
        axes.set_ylim(max(1, len(columns[0])) - 0.5, -0.5)
        axes.set_xlim(0, 100)
        axes.set_xlabel("IoU, %")
        axes.grid(axis="x", alpha=0.3)
    missing = [name for name in iou if iou[name] is None]
    mean = "-" if results["miou"] is None else f"{100 * results['miou']:.1f}"
    left_out = f"; {len(missing)} classes without pixels" if missing else ""
    _title(figure, f"{title}\nmean IoU {mean} %, 95 % intervals over images where known{left_out}")
    return figure


def _pictures(
    rows: Sequence[tuple[Mapping[str, Any], NDArray[np.uint8], NDArray[np.uint16], NDArray[np.uint16]]],
    protocol: Protocol,
    title: str,
) -> "Figure":
    from matplotlib.patches import Patch

    figure = _figure(13.5, 0.6 + 3.3 * len(rows))
    # Ticks of so many classes would be illegible, and they are slow.
    grid = figure.subplots(len(rows), 3, squeeze=False, subplot_kw={"xticks": [], "yticks": []})
    names = {label.id: protocol.spelling.get(label.name, label.name) for label in protocol.labels.labels}
    for axes, (item, image, truth, predicted) in zip(grid, rows, strict=True):
        shown = {
            "image": image,
            _truth(protocol.name): overlay(image, truth),
            "prediction": overlay(image, predicted),
        }
        for place, (what, picture) in zip(axes, shown.items(), strict=True):
            place.imshow(picture, interpolation="nearest")
            place.set_axis_off()
            place.set_title(f"{item['image']}: {100 * item['miou']:.1f} %" if what == "image" else what, fontsize=9)
        for place, numbers in zip(axes[1:], (truth, predicted), strict=True):
            values, sizes = np.unique(numbers, return_counts=True)
            order = [
                int(value) for value in values[np.argsort(-sizes, kind="stable")] if value not in (BACKGROUND, IGNORE)
            ]
            patches = [Patch(color=css_colour(value), label=names[value]) for value in order[:_NAMED]]
            if len(order) > _NAMED:
                patches.append(Patch(color="none", label=f"and {len(order) - _NAMED} more"))
            if patches:
                place.legend(handles=patches, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=7, frameon=False)
    _title(figure, title)
    return figure


def _title(figure: "Figure", text: str) -> None:
    """Write a title above a figure, wrapped to its width."""
    width = max(20, int(figure.get_figwidth() * _TITLE_CHARACTERS))
    lines = [line for paragraph in text.splitlines() for line in textwrap.wrap(paragraph, width)]
    figure.suptitle("\n".join(lines), fontsize=11)


def _figure(width: float, height: float) -> "Figure":
    try:
        from matplotlib import rcParams
        from matplotlib.figure import Figure
    except ImportError as error:
        raise BackendError(
            f"figures need matplotlib: {error}", hint="install the model libraries: pip install 'magicseg[models]'"
        ) from error
    rcParams["text.parse_math"] = False  # a $ in a name is not a formula
    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: "Figure", path: Path) -> Path:
    """Write a PNG without date and versions: the same results give the same bytes."""
    with storage_errors(path, "evaluate again"):
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=_DPI, format="png", metadata={"Software": None})
    return path
