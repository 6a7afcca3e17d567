"""Read ``RUN/results`` for the report: scores with intervals, baselines, classes, figures."""

import base64
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image as PILImage

from magicseg.config.evaluation import OWN_MASKS
from magicseg.core.documents import read_bytes, read_json
from magicseg.core.dotted_keys import flattened
from magicseg.core.errors import DataError
from magicseg.core.text import size_text
from magicseg.evaluate.threshold import Threshold

MEASURES = {
    "miou": "mIoU",
    "miou_over_classes_in_ground_truth": "mIoU, classes in ground truth",
    "frequency_weighted_iou": "frequency-weighted IoU",
    "mean_boundary_iou": "mean boundary IoU",
    "pixel_accuracy": "pixel accuracy",
    "mean_accuracy": "mean accuracy",
}
FALSE_POSITIVES = {
    "pixels": "predicted pixels",
    "own_pixels": "pixels of removed classes",
    "own_images": "images with a removed class",
    "found": "with the objects: found",
}
_BASELINES = {
    "vanilla": "dense zero-shot CLIP, unmodified",
    "maskclip": "dense zero-shot CLIP, values of the last layer",
    "sclip": "dense zero-shot CLIP, self-self attention",
    "clearclip": "dense zero-shot CLIP, self-self attention, without last residual and MLP",
    "memory-bank": "prototypes of the generated images",
    "untrained": "the same architecture at step 0",
    "background": "background everywhere",
}
_FIGURES = {
    "best": "Images with the best mean IoU",
    "worst": "Images with the worst mean IoU",
    "classes": "IoU by class, best first, with intervals",
    "confusion": "Confusion matrix",
}
_CHARTS = ("classes", "confusion")
MANY_CLASSES = 40
_MOST_CONFUSIONS = 25
_MOST_BYTES = 4_000_000  # limit for one figure
_MOST_CHARACTERS = 32_000_000  # limit for all figures in the page


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A score as a fraction, None if undefined, and its 95 % interval, None if unknown."""

    value: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True, kw_only=True)
class HeadScores:
    """One row of the table of scores.

    ``measures``, ``false_positives``: those of `MEASURES` and `FALSE_POSITIVES` that are available. ``threshold``: as
    text. ``iou``: by class.
    """

    title: str
    note: str
    measures: Mapping[str, Estimate]
    false_positives: Mapping[str, Estimate]
    threshold: str | None
    iou: Mapping[str, float | None]


@dataclass(frozen=True, kw_only=True)
class ClassScores:
    """One row of the table of classes. ``baselines``: IoU, in the order of `Scores.with_classes`."""

    name: str
    iou: Estimate
    boundary: Estimate | None
    baselines: Sequence[float | None]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell of the confusion matrix: ``share`` of its row's pixels, as a fraction, and number of pixels."""

    share: float | None
    pixels: int
    diagonal: bool


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A PNG in the page. ``chart``: whether it plots numbers that the tables also show, instead of images."""

    what: str
    source: str
    chart: bool


@dataclass(frozen=True, kw_only=True)
class ShownScores:
    """The content of one file of ``RUN/results`` for the page.

    ``coverage``: which part of the benchmark was scored, as text; None if the file does not say. ``whole``: False if
    only a part of the benchmark was scored. ``matrix``: None if there are too many classes to show it.
    ``confusions``: then the largest errors instead: true class, predicted class, share of the true class's pixels.
    ``counterfactuals``: number of counterfactual images that the model was scored on. ``left_out``: figures that are
    too large for the page.
    """

    benchmark: str
    images: int | None
    whole: bool
    coverage: str | None
    model: HeadScores
    baselines: Sequence[HeadScores]
    conventions: Mapping[str, str]
    counterfactuals: int | None
    false_positive_conventions: Mapping[str, str]
    classes: Sequence[ClassScores]
    names: Sequence[str]
    matrix: Sequence[Sequence[Cell]] | None
    confusions: Sequence[tuple[str, str, float]]
    figures: Sequence[Figure]
    left_out: Sequence[str]
    provenance: Mapping[str, str]

    @property
    def heads(self) -> tuple[HeadScores, ...]:
        """Return the model's scores, then the baselines'."""
        return (self.model, *self.baselines)

    @property
    def measures(self) -> list[str]:
        """Return the `MEASURES` that at least one head has."""
        return [name for name in MEASURES if any(name in head.measures for head in self.heads)]

    @property
    def with_classes(self) -> list[HeadScores]:
        """Return the baselines whose IoU by class is known."""
        return [head for head in self.baselines if head.iou]

    @property
    def miou(self) -> Estimate:
        """Return the model's mIoU."""
        return self.model.measures["miou"]


@dataclass(frozen=True)
class ComparedRun:
    """Another run to compare with. ``note``: its differing settings. ``results``: its folder of results."""

    name: str
    note: str
    results: Path


def read_results(folder: Path, *, beside: Sequence[ComparedRun] = ()) -> tuple[list[ShownScores], list[str]]:
    """Return all results in a folder, ordered by file name, and messages about unreadable files.

    Args: folder: ``RUN/results``, as `magicseg.evaluate.suite` writes it; files of earlier versions, which lack
        intervals, are read too. beside: other runs, whose results of the same name are listed after the baselines.
    """
    found: list[ShownScores] = []
    faults: list[str] = []
    left = _MOST_CHARACTERS
    for path in sorted(folder.glob("*.json")):
        try:
            data = read_json(path, dict[str, Any], nan=True)
            figures, left_out, damaged = _figures(folder, _figures_folder(path.stem, data), left)
            found.append(_scores(path.stem, data, figures, left_out, _compared_scores(path.name, beside, faults)))
        except DataError as error:
            faults.append(error.message)
            continue
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            faults.append(f"results/{path.name} cannot be read: {type(error).__name__}: {error}")
            continue
        left -= sum(len(figure.source) for figure in figures)
        faults += damaged
    return found, faults


def _compared_scores(file: str, beside: Sequence[ComparedRun], faults: list[str]) -> list[HeadScores]:
    """Return other runs' scores of the same benchmark. Messages about unreadable files are appended to ``faults``."""
    found = []
    for other in beside:
        try:
            found.append(_head(other.name, other.note, read_json(other.results / file, dict[str, Any], nan=True)))
        except FileNotFoundError:
            faults.append(f"{other.name} has no {file} yet")
        except DataError as error:
            faults.append(error.message)
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            faults.append(f"{other.results / file} cannot be read: {type(error).__name__}: {error}")
    return found


def _scores(
    stem: str,
    data: Mapping[str, Any],
    figures: Sequence[Figure],
    left_out: Sequence[str],
    others: Sequence[HeadScores],
) -> ShownScores:
    if missing := sorted({"miou", "iou"} - data.keys()):
        raise ValueError(f"it lacks {' and '.join(missing)}")
    model = _head("this model", "", data)
    baselines = [
        _head(f"{name} (baseline)", _BASELINES.get(name, ""), values)
        for name, values in (data.get("baselines") or {}).items()
    ]
    baselines += others
    names = [str(name) for name in data.get("classes") or model.iou]
    confusion = data.get("confusion") or []
    if confusion and (len(confusion) != len(names) or any(len(row) != len(names) for row in confusion)):
        raise ValueError(f"the confusion matrix does not fit the {len(names)} classes")
    matrix = [_matrix_row(index, row) for index, row in enumerate(confusion)]
    too_large = len(names) > MANY_CLASSES
    boundary = data.get("boundary_iou") or {}
    spread, boundary_spread = data.get("iou_interval") or {}, data.get("boundary_iou_interval") or {}
    return ShownScores(
        benchmark=str(data.get("benchmark", stem)),
        images=_count(data.get("images")),
        whole=data.get("complete") is not False,
        coverage=_coverage(data),
        model=model,
        baselines=baselines,
        conventions=_texts(data.get("conventions")),
        counterfactuals=_count((data.get("false_positives") or {}).get("images")),
        false_positive_conventions=_texts(data.get("false_positive_conventions")),
        classes=[
            ClassScores(
                name=name,
                iou=Estimate(value=value, interval=_interval(spread.get(name))),
                boundary=Estimate(value=_number(boundary[name]), interval=_interval(boundary_spread.get(name)))
                if name in boundary
                else None,
                baselines=[head.iou.get(name) for head in baselines if head.iou],
            )
            for name, value in model.iou.items()
        ],
        names=names,
        matrix=None if too_large or not matrix else matrix,
        confusions=_confusions(names, matrix) if too_large else (),
        figures=figures,
        left_out=left_out,
        provenance=flat(data.get("provenance") or {}),
    )


def _head(title: str, note: str, data: Mapping[str, Any]) -> HeadScores:
    return HeadScores(
        title=title,
        note=note,
        measures=_estimates(MEASURES, data),
        false_positives=_estimates(FALSE_POSITIVES, data.get("false_positives") or {}),
        threshold=_threshold(data.get("threshold")),
        iou={str(name): _number(value) for name, value in (data.get("iou") or {}).items()},
    )


def _estimates(names: Iterable[str], data: Mapping[str, Any]) -> dict[str, Estimate]:
    """Return the named scores that are in ``data``."""
    return {
        name: Estimate(value=_number(data[name]), interval=_interval(data.get(f"{name}_interval")))
        for name in names
        if name in data
    }


def _texts(data: Mapping[str, Any] | None) -> dict[str, str]:
    return {str(name): str(text) for name, text in (data or {}).items()}


def _threshold(data: Mapping[str, Any] | None) -> str | None:
    """Return the threshold and its origin as text."""
    if data is None:
        return None
    threshold = Threshold.from_dict(data)
    where = {
        "swept": f"swept on {data.get('images')} images of the split {data.get('split')!r}",
        "default": "the protocol's",
    }.get(threshold.origin, threshold.origin)
    warning = f" ({threshold.warning})" if threshold.warning else ""
    return f"{threshold.text}, {where}{warning}"


def _coverage(data: Mapping[str, Any]) -> str | None:
    if "complete" not in data:
        return None
    images, there, official = (_count(data.get(key)) for key in ("images", "images_in_data_set", "official_images"))
    scored = (
        f"{images} of the data set's {there} images, evenly spread"
        if data.get("limited")
        else f"all {images} images of the data set"
    )
    if data.get("benchmark") == OWN_MASKS:
        return f"Scored on {scored}: pairs held out of training. Their masks are the run's own and no ground truth."
    truth = f" Ground truth: {data['ground_truth']}." if "ground_truth" in data else ""
    if data["complete"]:
        return f"The whole benchmark: {scored}; {official} are published.{truth}"
    if data["complete"] is None:
        return f"Scored on {scored}; the protocol does not say how many are published.{truth}"
    return f"Not the whole benchmark: {scored}; {official} are published.{truth}"


def _figures_folder(stem: str, data: Mapping[str, Any]) -> str | None:
    """Return the folder of a file's figures in ``RUN/results``; None if the file is not named after its benchmark."""
    benchmark = str(data.get("benchmark"))
    if not re.fullmatch(re.escape(benchmark) + r"(-limit-\d+)?", stem):
        return None  # a benchmark's name is arbitrary text, such as "../.."
    return f"{benchmark}/model" + (f"/limit-{_count(data['images'])}" if data.get("limited") else "")


def _figures(results: Path, folder: str | None, left: int) -> tuple[list[Figure], list[str], list[str]]:
    """Return the figures in a folder, the figures that are too large, and messages about damaged figures.

    Args: left: characters left for figures in the page.
    """
    found: list[Figure] = []
    left_out: list[str] = []
    damaged: list[str] = []
    for name, what in {} if folder is None else _FIGURES.items():
        where = f"{folder}/{name}.png"
        path = results / where
        try:
            if not path.is_file():
                continue
            size = path.stat().st_size
            if size > _MOST_BYTES or size * 4 / 3 > left:
                left_out.append(f"{what}: too large for this page ({size_text(size)}), see results/{where}")
                continue
            content = read_bytes(path, limit=_MOST_BYTES)
            with PILImage.open(io.BytesIO(content), formats=["PNG"]) as image:
                image.verify()
        except (OSError, ValueError, SyntaxError, DataError, PILImage.DecompressionBombError) as error:
            damaged.append(f"results/{where} cannot be shown: {error}")
            continue
        source = "data:image/png;base64," + base64.b64encode(content).decode("ascii")
        left -= len(source)
        found.append(Figure(what=what, source=source, chart=name in _CHARTS))
    return found, left_out, damaged


def _matrix_row(index: int, row: Sequence[int]) -> list[Cell]:
    total = sum(row)
    return [
        Cell(share=count / total if total else None, pixels=int(count), diagonal=column == index)
        for column, count in enumerate(row)
    ]


def _confusions(classes: Sequence[str], matrix: Sequence[Sequence[Cell]]) -> list[tuple[str, str, float]]:
    mistakes = [
        (classes[row], classes[column], cell.share)
        for row, cells in enumerate(matrix)
        for column, cell in enumerate(cells)
        if row != column and cell.share
    ]
    return sorted(mistakes, key=lambda mistake: -mistake[2])[:_MOST_CONFUSIONS]


def flat(values: Mapping[str, Any]) -> dict[str, str]:
    """Flatten nested mappings to texts. Keys are joined by dots."""
    return {key: str(value) for key, value in flattened(values).items()}


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _count(value: Any) -> int | None:
    return None if value is None else int(value)


def _interval(ends: Any) -> tuple[float, float] | None:
    if ends is None:
        return None
    low, high = (float(end) for end in ends)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{ends} is not an interval")
    return low, high
