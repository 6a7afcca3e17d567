"""The formulas of all scores: ratio, IoU, their means. Scores, bootstrap and threshold sweep share them.

Counts are pixels, summed over images. NaN stands for a score without pixels to compute it from.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Counted = NDArray[np.int64] | NDArray[np.float64]


def ratio(part: Counted, whole: Counted) -> NDArray[np.float64]:
    """Divide elementwise. Returns: float64, of the arguments' shape; NaN where ``whole`` is 0."""
    found: NDArray[np.float64] = np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=whole > 0)
    return found


def intersection_over_union(hits: Counted, truth: Counted, predicted: Counted) -> NDArray[np.float64]:
    """Return n_ii / (t_i + p_i - n_ii) by class; NaN where that union is empty.

    Args: hits: n_ii, pixels of class i that were predicted as i. truth: t_i, pixels of class i in the ground truth.
    predicted: p_i, pixels predicted as class i. All of one shape.
    """
    return ratio(hits, truth + predicted - hits)


def mean_of_known(values: NDArray[np.float64], *, axis: int = -1, in_order: bool = False) -> NDArray[np.float64]:
    """Average the values that are not NaN along an axis; NaN where all are.

    Args: in_order: add one value after the other. Otherwise NumPy chooses the order. The two differ in the last bits
    of the mean; each caller keeps its own order, so that scores of earlier versions are reproduced exactly.
    """
    known = ~np.isnan(values)
    kept = np.where(known, values, 0)
    total = np.add.accumulate(kept, axis=axis).take(-1, axis=axis) if in_order else kept.sum(axis=axis)
    return ratio(total, known.sum(axis=axis))


def frequency_weighted(
    iou: NDArray[np.float64],
    truth: Counted,
    *,
    add: Callable[[NDArray[np.float64]], Any] = lambda values: values.sum(axis=-1),
) -> NDArray[np.float64]:
    """Return sum_i t_i IoU_i / sum_i t_i over the last axis.

    Args: iou, truth: (..., classes). add: sums the weighted values over the last axis.
    """
    return ratio(add(np.where(truth > 0, truth * iou, 0)), truth.sum(axis=-1))
