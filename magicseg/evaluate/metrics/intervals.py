"""Confidence intervals of scores and of differences of scores, by resampling images."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields

import numpy as np
from numpy.random import Generator, Philox
from numpy.typing import NDArray

from magicseg.evaluate.metrics.formulas import frequency_weighted, intersection_over_union, mean_of_known, ratio

RESAMPLES = 1000
LEVEL = 0.95
LEAST_IMAGES = 10
"""With fewer images, or fewer that show a class in either map, no interval is given."""

_AT_ONCE = 1 << 24  # numbers in a block of weights

Interval = tuple[float, float] | None
Sums = Mapping[str, NDArray[np.float64]]
Measures = dict[str, NDArray[np.float64]]


@dataclass(frozen=True, eq=False)
class ImageCounts:
    """Pixels by image and class, int64 (images, classes).

    ``hits`` n_ii, ``truth`` t_i and ``predicted`` p_i are those of `magicseg.evaluate.metrics.confusion.Scores`;
    likewise for the boundary bands. ``counterfactual``: pixels of the image's counterfactual by predicted class; None
    if images have no counterfactuals.
    """

    hits: NDArray[np.int64]
    truth: NDArray[np.int64]
    predicted: NDArray[np.int64]
    boundary_hits: NDArray[np.int64]
    boundary_truth: NDArray[np.int64]
    boundary_predicted: NDArray[np.int64]
    counterfactual: NDArray[np.int64] | None = field(default=None, kw_only=True)

    @property
    def tables(self) -> Sums:
        """The counts of images with a ground truth, by name, as float64."""
        return {name: getattr(self, name).astype(np.float64) for name in TABLES}


TABLES = tuple(item.name for item in fields(ImageCounts) if item.name != "counterfactual")
"""Names of the counts that all scores but those on counterfactuals are computed from."""


def measures(sums: Sums, whole: Sums | None = None) -> Measures:
    """Compute all scores from sums over images; NaN for a score without pixels.

    Args:
        sums: the fields of `ImageCounts` summed over images, (..., classes).
        whole: the sums over all images, (classes,), if ``sums`` are of resamples. Then every mean is over the
            classes with pixels in ``whole``. A class without pixels in a resample keeps its value in ``whole``.
            Leaving it out would raise the mean of most resamples, since rare classes score low.

    Returns: by name: (...), but ``iou`` and ``boundary_iou`` (..., classes).
    """
    whole = sums if whole is None else whole

    def fixed(score: Callable[[Sums], NDArray[np.float64]]) -> NDArray[np.float64]:
        own = score(sums)
        return np.where(np.isnan(own), score(whole), own)

    iou = fixed(lambda table: intersection_over_union(table["hits"], table["truth"], table["predicted"]))
    boundary = fixed(
        lambda table: intersection_over_union(
            table["boundary_hits"], table["boundary_truth"], table["boundary_predicted"]
        )
    )
    pixels = sums["truth"].sum(axis=-1)
    return {
        "iou": iou,
        "miou": mean_of_known(iou),
        "miou_over_classes_in_ground_truth": mean_of_known(np.where(whole["truth"] > 0, iou, np.nan)),
        "pixel_accuracy": ratio(sums["hits"].sum(axis=-1), pixels),
        "mean_accuracy": mean_of_known(fixed(lambda table: ratio(table["hits"], table["truth"]))),
        "frequency_weighted_iou": frequency_weighted(iou, sums["truth"]),
        "boundary_iou": boundary,
        "mean_boundary_iou": mean_of_known(boundary),
    }


def intervals(
    counts: ImageCounts, *, seed: int = 0, resamples: int = RESAMPLES, level: float = LEVEL
) -> dict[str, list[Interval]]:
    """BCa intervals of all `measures` under resampling of images with replacement.

    As many images as there are, drawn with replacement, ``resamples`` times; each time the measures of the sums, over
    a fixed set of classes. Bias-corrected and accelerated: Efron and Tibshirani 1993, section 14.3; the acceleration
    is by leaving out one image at a time. (scipy.stats.bootstrap would gather all images' counts for each of them.)
    The interval says how much a score depends on which images were scored, not on the seed of training. Draws depend
    on ``seed`` and the number of images alone.

    Returns: by measure, a list with one interval, or for ``iou`` and ``boundary_iou`` one per class. None where there
        is no score, fewer than `LEAST_IMAGES` images have pixels of it, or the resamples' median is so far from the
        score that the interval would not hold it.
    """
    tables = counts.tables
    whole = _sums(tables)
    found = _bca(
        _flat(measures(whole)),
        _join([_flat(measures(sums, whole)) for sums in _resampled(tables, seed, resamples)]),
        _flat(measures({name: whole[name] - table for name, table in tables.items()}, whole)),
        level,
    )
    enough = {
        "iou": ((counts.truth + counts.predicted) > 0).sum(axis=0),
        "boundary_iou": ((counts.boundary_truth + counts.boundary_predicted) > 0).sum(axis=0),
    }
    return {
        name: [
            interval if number >= LEAST_IMAGES else None
            for interval, number in zip(
                each, enough.get(name, np.full(len(each), len(counts.hits))).tolist(), strict=True
            )
        ]
        for name, each in found.items()
    }


def difference_interval(
    first: ImageCounts,
    second: ImageCounts,
    measure: str,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Interval:
    """The BCa interval of a single measure's difference, second less first, over the same images.

    Every resample draws the same images for both. Returns None as `intervals` does.
    """
    tables = [counts.tables for counts in (first, second)]
    if len(first.hits) != len(second.hits):
        raise ValueError(f"{len(first.hits)} and {len(second.hits)} images")
    if len(first.hits) < LEAST_IMAGES:
        return None
    wholes = [_sums(table) for table in tables]

    def difference(pair: Sequence[Sums]) -> Measures:
        low, high = (measures(sums, whole)[measure] for sums, whole in zip(pair, wholes, strict=True))
        return _flat({measure: high - low})

    drawn = zip(*(_resampled(table, seed, resamples) for table in tables), strict=True)
    left_out = [
        {name: whole[name] - values for name, values in table.items()}
        for table, whole in zip(tables, wholes, strict=True)
    ]
    (found,) = _bca(difference(wholes), _join([difference(pair) for pair in drawn]), difference(left_out), level)[
        measure
    ]
    return found


def ratio_intervals(
    parts: NDArray[np.float64],
    wholes: NDArray[np.float64],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> list[Interval]:
    """BCa intervals of ratios of sums over images, sum_i parts_ik / sum_i wholes_ik, drawn as `intervals` does.

    Args: parts, wholes: (images, ratios). Returns: one per ratio; None as for `intervals`.
    """
    if len(parts) < LEAST_IMAGES:
        return [None] * parts.shape[1]
    tables = {"parts": parts, "wholes": wholes}
    sums = _sums(tables)

    def ratios(of: Sums) -> Measures:
        return {"ratio": np.atleast_2d(ratio(of["parts"], of["wholes"]))}

    drawn = _join([ratios(resampled) for resampled in _resampled(tables, seed, resamples)])
    left_out = ratios({name: sums[name] - table for name, table in tables.items()})
    return _bca(ratios(sums), drawn, left_out, level)["ratio"]


def _resampled(tables: Sums, seed: int, resamples: int) -> Iterator[Sums]:
    """Sums over resamples of the images, (a block of resamples, classes)."""
    images = len(next(iter(tables.values())))
    block = max(1, min(resamples, _AT_ONCE // max(1, images)))
    rng = Generator(Philox(seed))
    for start in range(0, resamples, block):
        weights = _weights(rng, min(block, resamples - start), images)
        yield {name: weights @ table for name, table in tables.items()}


def _weights(rng: Generator, number: int, images: int) -> NDArray[np.float64]:
    """How often each image was drawn, float64 (number, images). Whole numbers, so that sums below 2^53 are exact."""
    drawn = rng.integers(0, images, (number, images))
    drawn += np.arange(number)[:, None] * images
    times = np.bincount(drawn.ravel(), minlength=number * images).reshape(number, images)
    return times.astype(np.float64)


def _bca(score: Measures, resampled: Measures, left_out: Measures, level: float) -> dict[str, list[Interval]]:
    """Intervals by name. Args: score: (1, columns). resampled: (B, columns). left_out: (images, columns)."""
    return {
        name: [
            _interval(float(score[name][0, column]), resampled[name][:, column], left_out[name][:, column], level)
            for column in range(score[name].shape[1])
        ]
        for name in score
    }


def _interval(score: float, resampled: NDArray[np.float64], left_out: NDArray[np.float64], level: float) -> Interval:
    from scipy.special import ndtr, ndtri

    resampled = resampled[~np.isnan(resampled)]
    if np.isnan(score) or not resampled.size:
        return None
    # Sums of the same images in another order differ in their last bits.
    same = np.isclose(resampled, score, rtol=1e-12, atol=1e-12)
    if same.all():
        return score, score
    bias = ndtri(((resampled < score) & ~same).mean() + same.mean() / 2)
    tail = ndtri((1 - level) / 2)
    if not abs(bias) < -tail:
        return None
    influence = np.nanmean(left_out) - left_out[~np.isnan(left_out)]
    spread = (influence**2).sum()
    acceleration = (influence**3).sum() / (6 * spread**1.5) if spread > 0 else 0.0
    moved = bias + np.array([tail, -tail])
    places = ndtr(bias + moved / np.maximum(1 - acceleration * moved, 1e-6))
    low, high = np.quantile(resampled, places)
    return min(float(low), score), max(float(high), score)


def _sums(tables: Sums) -> Sums:
    return {name: table.sum(axis=0) for name, table in tables.items()}


def _flat(values: Measures) -> Measures:
    """By name (rows, columns): a single resample is one row, a single measure one column."""
    flat = {}
    for name, value in values.items():
        by_class = name in {"iou", "boundary_iou"}
        flat[name] = value.reshape(-1, value.shape[-1] if by_class else 1)
    return flat


def _join(blocks: list[Measures]) -> Measures:
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
