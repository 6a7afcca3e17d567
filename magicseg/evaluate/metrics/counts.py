"""Count each image, and compute all scores and intervals from the counts, for every benchmark alike."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from magicseg.evaluate.metrics.boundary import DILATION_RATIO, band_width, boundary_counts
from magicseg.evaluate.metrics.confusion import Confusion, Scores, confusion_matrix
from magicseg.evaluate.metrics.false_positives import false_positives
from magicseg.evaluate.metrics.intervals import (
    LEAST_IMAGES,
    LEVEL,
    RESAMPLES,
    ImageCounts,
    Interval,
    intervals,
    measures,
)

COUNTS_RECIPE = 1
"""Version: increased when the counts of the same maps change."""

RECIPE = 2
"""Version: increased when the scores of the same counts, or their description, change."""

CONVENTIONS = {
    "miou": "mean IoU over the classes in the ground truth or predicted anywhere (mmsegmentation's mIoU)",
    "miou_over_classes_in_ground_truth": "mean IoU over the classes that occur in the ground truth",
    "mean_accuracy": "mean recall over the classes that occur in the ground truth",
    "frequency_weighted_iou": "mean IoU weighted by the classes' pixels in the ground truth",
    "boundary_iou": f"IoU of bands along outlines, {DILATION_RATIO:g} of the diagonal wide (arXiv 2103.16562)",
    "mean_boundary_iou": "mean boundary IoU over the classes with a band in either map",
    "interval": f"{LEVEL:.0%} BCa bootstrap over images, {RESAMPLES} resamples of a fixed set of classes; none below "
    f"{LEAST_IMAGES} images",
}

_SINGLE = (
    "miou",
    "miou_over_classes_in_ground_truth",
    "pixel_accuracy",
    "mean_accuracy",
    "frequency_weighted_iou",
    "mean_boundary_iou",
)


@dataclass(frozen=True, eq=False)
class ImageResult:
    """One image: its confusion matrix, and pixels in bands along outlines, int64 (3, classes).

    ``counterfactual``: pixels of its counterfactual by predicted class, int64 (classes,), if it has one.
    """

    confusion: Confusion
    boundary: NDArray[np.int64]
    counterfactual: NDArray[np.int64] | None = None


def count_image(
    truth: NDArray[np.integer],
    prediction: NDArray[np.integer],
    classes: int,
    ignore: int,
    *,
    first: int = 0,
    counterfactual: NDArray[np.integer] | None = None,
) -> ImageResult:
    """Count one image; see `confusion_matrix` and `boundary_counts`.

    Args: counterfactual: the prediction on the image's counterfactual, (H, W), if it has one.
    """
    height, width = truth.shape
    predicted = None if counterfactual is None else np.bincount(counterfactual.ravel() - first, minlength=classes)
    return ImageResult(
        confusion_matrix(truth, prediction, classes, ignore, first=first),
        boundary_counts(truth, prediction, classes, ignore, first=first, width=band_width((height, width))),
        predicted,
    )


def tabulate(images: Sequence[ImageResult], classes: int) -> tuple[Confusion, ImageCounts]:
    """Return the summed confusion matrix, and the counts by image."""
    total = np.zeros((classes, classes), np.int64)
    rows = np.zeros((6, len(images), classes), np.int64)
    for number, image in enumerate(images):
        total += image.confusion
        rows[0, number] = np.diagonal(image.confusion)
        rows[1, number] = image.confusion.sum(axis=1)
        rows[2, number] = image.confusion.sum(axis=0)
        rows[3:, number] = image.boundary
    found = [image.counterfactual for image in images if image.counterfactual is not None]
    return total, ImageCounts(*rows, counterfactual=np.stack(found) if found and len(found) == len(images) else None)


def scored(confusion: Confusion, counts: ImageCounts, names: Sequence[str]) -> dict[str, Any]:
    """Return all scores as JSON values.

    Args: names: the classes' names in the matrix's order.
    Returns: what `Scores.to_dict` gives; ``frequency_weighted_iou``, ``boundary_iou`` by class and
        ``mean_boundary_iou``; for each single score NAME an interval ``NAME_interval``, [low, high] or None;
        ``iou_interval`` and ``boundary_iou_interval`` by class; ``false_positives`` if images have counterfactuals.
    """
    scores = Scores(confusion)
    found, spread = measures({name: table.sum(axis=0) for name, table in counts.tables.items()}), intervals(counts)
    boundary = [None if np.isnan(value) else float(value) for value in found["boundary_iou"]]
    mean_boundary = float(found["mean_boundary_iou"])
    false = false_positives(counts)
    return {
        **scores.to_dict(names),
        "frequency_weighted_iou": scores.frequency_weighted_iou,
        "boundary_iou": dict(zip(names, boundary, strict=True)),
        "mean_boundary_iou": None if np.isnan(mean_boundary) else mean_boundary,
        **{f"{name}_interval": _listed(spread[name][0]) for name in _SINGLE},
        **{
            f"{name}_interval": dict(zip(names, map(_listed, spread[name]), strict=True))
            for name in ("iou", "boundary_iou")
        },
        **({} if false is None else {"false_positives": false}),
    }


def image_scores(counts: ImageCounts) -> NDArray[np.float64]:
    """Return each image's mean IoU over the classes in its ground truth or prediction; NaN if all is ignored."""
    return measures(counts.tables)["miou"]


def _listed(interval: Interval) -> list[float] | None:
    return None if interval is None else list(interval)
