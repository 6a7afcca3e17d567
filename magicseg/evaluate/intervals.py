"""Confidence intervals by resampling images."""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
from numpy.random import Generator, Philox
from numpy.typing import NDArray

RESAMPLES = 1000
LEVEL = 0.95
_AT_ONCE = 1 << 24  # numbers in a block of weights

Interval = tuple[float, float] | None
Sums = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True, eq=False)
class ImageCounts:
    """Pixels by image and class, int64 (images, classes).

    ``hits`` n_ii, ``truth`` t_i and ``predicted`` p_i of `magicseg.evaluate.metrics.Scores`; the same of the boundary
    bands.
    """

    hits: NDArray[np.int64]
    truth: NDArray[np.int64]
    predicted: NDArray[np.int64]
    boundary_hits: NDArray[np.int64]
    boundary_truth: NDArray[np.int64]
    boundary_predicted: NDArray[np.int64]


def measures(sums: Sums) -> dict[str, NDArray[np.float64]]:
    """All measures from sums over images, NaN for what has no pixels.

    Args: sums: the fields of `ImageCounts` summed over images, (..., classes).
    Returns: by name: (...), but ``iou`` and ``boundary_iou`` (..., classes).
    """
    hits, truth, predicted = sums["hits"], sums["truth"], sums["predicted"]
    iou = _ratio(hits, truth + predicted - hits)
    pixels = truth.sum(axis=-1)
    boundary = _ratio(
        sums["boundary_hits"], sums["boundary_truth"] + sums["boundary_predicted"] - sums["boundary_hits"]
    )
    return {
        "iou": iou,
        "miou": _mean(iou),
        "miou_over_classes_in_ground_truth": _mean(np.where(truth > 0, iou, np.nan)),
        "pixel_accuracy": _ratio(hits.sum(axis=-1), pixels),
        "mean_accuracy": _mean(_ratio(hits, truth)),
        "frequency_weighted_iou": _ratio(np.nansum(np.where(truth > 0, truth * iou, 0), axis=-1), pixels),
        "boundary_iou": boundary,
        "mean_boundary_iou": _mean(boundary),
    }


def intervals(
    counts: ImageCounts, *, seed: int = 0, resamples: int = RESAMPLES, level: float = LEVEL
) -> dict[str, list[Interval]]:
    """Percentile intervals of all `measures` under resampling of images with replacement.

    As many images as there are, drawn with replacement, ``resamples`` times; each time the measures of the sums; the
    interval is from the (1 - level) / 2 to the (1 + level) / 2 quantile of those that are defined (Efron and
    Tibshirani 1993, section 13.3). It says how much the score hangs on which images were asked, not on the seed of
    training. Draws depend on ``seed`` and the number of images alone.

    Returns: by measure, a list with one interval, or for ``iou`` and ``boundary_iou`` one per class; None where no
        resample has pixels to compute it from.
    """
    images = len(counts.hits)
    block = max(1, min(resamples, _AT_ONCE // max(1, images)))
    rng = Generator(Philox(seed))
    found: dict[str, list[NDArray[np.float64]]] = {}
    tables = {item.name: getattr(counts, item.name).astype(np.float64) for item in fields(counts)}
    for start in range(0, resamples, block):
        number = min(block, resamples - start)
        weights = _weights(rng, number, images)
        for name, values in measures({key: weights @ table for key, table in tables.items()}).items():
            found.setdefault(name, []).append(values.reshape(number, -1))
    return {name: _percentiles(np.concatenate(values), level) for name, values in found.items()}


def _weights(rng: Generator, number: int, images: int) -> NDArray[np.float64]:
    """How often each image was drawn, float64 (number, images). Whole numbers, so that sums below 2^53 are exact."""
    drawn = rng.integers(0, images, (number, images))
    drawn += np.arange(number)[:, None] * images
    times = np.bincount(drawn.ravel(), minlength=number * images).reshape(number, images)
    return times.astype(np.float64)


def _percentiles(values: NDArray[np.float64], level: float) -> list[Interval]:
    tails = [(1 - level) / 2, (1 + level) / 2]
    found: list[Interval] = []
    for column in values.T:
        known = column[~np.isnan(column)]
        if known.size:
            low, high = np.quantile(known, tails)
            found.append((float(low), float(high)))
        else:
            found.append(None)
    return found


def _ratio(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    ratio: NDArray[np.float64] = np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=whole > 0)
    return ratio


def _mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    known = ~np.isnan(values)
    return _ratio(np.where(known, values, 0).sum(axis=-1), known.sum(axis=-1))
