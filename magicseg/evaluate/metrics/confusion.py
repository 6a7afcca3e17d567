"""Metrics of semantic segmentation, all computed from one confusion matrix summed over the whole data set."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from magicseg.evaluate.metrics.formulas import frequency_weighted, intersection_over_union, mean_of_known, ratio

Confusion = NDArray[np.int64]  # (classes, classes), pixels; rows are ground truth, columns predictions


class ValueOutOfRange(ValueError):
    """A map holds a value outside the classes. ``where``: which of the two maps."""

    def __init__(self, where: Literal["truth", "prediction"], value: int, count: int, first: int, last: int) -> None:
        super().__init__(
            f"{count} pixels have values that are no class, the first {value}; classes are {first} to {last}"
        )
        self.where = where
        self.value = value


def confusion_matrix(
    truth: NDArray[np.integer], prediction: NDArray[np.integer], classes: int, ignore: int, *, first: int = 0
) -> Confusion:
    """Count pixels by ground-truth class (row) and predicted class (column).

    Pixels whose truth is ``ignore`` are not counted. A prediction of ``ignore`` on a counted pixel is out of range:
    otherwise a model could skip difficult pixels.

    Args: truth, prediction: integers of equal shape. first: the value of the first class; the last is
    ``first + classes - 1``. Matrix row 0 belongs to ``first``.
    Returns: int64 (classes, classes).
    Raises: ValueOutOfRange; ValueError if the shapes differ.
    """
    if truth.shape != prediction.shape:
        raise ValueError(f"truth has shape {truth.shape}, prediction {prediction.shape}")
    quick = _counted_as_bytes(truth, prediction, classes, ignore, first)
    if quick is not None:
        return quick
    counted = truth != ignore
    rows = _numbered(truth[counted], "truth", classes, first)
    columns = _numbered(prediction[counted], "prediction", classes, first)
    counts = np.bincount(rows * classes + columns, minlength=classes * classes)
    return counts.reshape(classes, classes).astype(np.int64, copy=False)


def _counted_as_bytes(
    truth: NDArray[np.integer], prediction: NDArray[np.integer], classes: int, ignore: int, first: int
) -> Confusion | None:
    """Return the matrix if all values fit in a byte and are classes or ignored, else None.

    Counts all pairs of two bytes at once, and finds ignored and invalid values in the table of counts.
    `benchmarks/accumulate.py` measures the gain.
    """
    last = first + classes - 1
    truth_bytes, prediction_bytes = _as_bytes(truth), _as_bytes(prediction)
    if truth_bytes is None or prediction_bytes is None or first < 0 or last > 255:
        return None
    pairs = truth_bytes.ravel().astype(np.uint16)
    pairs <<= 8
    pairs |= prediction_bytes.ravel()
    counts = np.bincount(pairs.astype(np.int64), minlength=1 << 16).reshape(256, 256)
    ignored = 0
    if 0 <= ignore <= 255:
        ignored = int(counts[ignore].sum())
        counts[ignore] = 0
    matrix = counts[first : last + 1, first : last + 1].astype(np.int64)
    return matrix if matrix.sum() + ignored == truth.size else None


def _as_bytes(values: NDArray[np.integer]) -> NDArray[np.uint8] | None:
    if values.size and values.dtype != np.uint8 and (values.max() > 255 or values.min() < 0):
        return None
    return values.astype(np.uint8, copy=False)


def _numbered(
    values: NDArray[np.integer], where: Literal["truth", "prediction"], classes: int, first: int
) -> NDArray[np.int64]:
    last = first + classes - 1
    wrong = (values < first) | (values > last)
    if wrong.any():
        raise ValueOutOfRange(where, int(values[wrong][0]), int(wrong.sum()), first, last)
    return values.astype(np.int64) - first


@dataclass(frozen=True, eq=False)
class Scores:
    """All scores that follow from one confusion matrix (rows are ground truth).

    With n_ij the pixels of class i that were predicted as j, t_i = sum_j n_ij (ground truth) and
    p_i = sum_j n_ji (predicted), following Long, Shelhamer and Darrell, CVPR 2015, section 5. A score without pixels
    to compute it from is None, never 0 or NaN. The formulas are those of `magicseg.evaluate.metrics.formulas`.
    """

    confusion: Confusion

    @cached_property
    def iou(self) -> tuple[float | None, ...]:
        """Intersection over union by class, n_ii / (t_i + p_i - n_ii); None where that union is empty.

        The PASCAL VOC measure (Everingham et al., IJCV 2015, section 4.1.3), over all images at once.
        """
        return tuple(map(_known, self._iou))

    @property
    def miou(self) -> float | None:
        """Mean IoU over the classes with a union: in the ground truth, or predicted anywhere.

        A class that is predicted although no image shows it counts as 0. This is mmsegmentation's mIoU.
        """
        return _known(mean_of_known(self._iou, in_order=True))

    @property
    def miou_over_classes_in_ground_truth(self) -> float | None:
        """Mean IoU over the classes that occur in the ground truth, t_i > 0.

        A class that no image shows is left out, whether it is predicted or not.
        """
        return _known(mean_of_known(np.where(self._truth > 0, self._iou, np.nan), in_order=True))

    @property
    def pixel_accuracy(self) -> float | None:
        """Share of counted pixels with the right class: sum_i n_ii / sum_i t_i."""
        return _known(ratio(self._hits.sum(), self._truth.sum()))

    @property
    def mean_accuracy(self) -> float | None:
        """Mean recall, n_ii / t_i, over the classes that occur in the ground truth."""
        return _known(mean_of_known(ratio(self._hits, self._truth), in_order=True))

    @property
    def frequency_weighted_iou(self) -> float | None:
        """Mean IoU weighted by the classes' share of the ground truth: sum_i t_i IoU_i / sum_i t_i."""
        return _known(frequency_weighted(self._iou, self._truth, add=lambda values: np.float64(math.fsum(values))))

    @property
    def pixels(self) -> int:
        """Number of counted pixels, whose ground truth is a class."""
        return int(self.confusion.sum())

    def to_dict(self, names: Sequence[str]) -> dict[str, Any]:
        """Return the scores as JSON values. Args: names: of the classes, in the matrix's order."""
        return {
            "pixels": self.pixels,
            "miou": self.miou,
            "miou_over_classes_in_ground_truth": self.miou_over_classes_in_ground_truth,
            "iou": dict(zip(names, self.iou, strict=True)),
            "pixel_accuracy": self.pixel_accuracy,
            "mean_accuracy": self.mean_accuracy,
            "confusion": self.confusion.tolist(),
        }

    @cached_property
    def _iou(self) -> NDArray[np.float64]:
        return intersection_over_union(self._hits, self._truth, self._predicted)

    @cached_property
    def _hits(self) -> NDArray[np.int64]:
        return np.diagonal(self.confusion)

    @cached_property
    def _truth(self) -> NDArray[np.int64]:
        return np.asarray(self.confusion.sum(axis=1))

    @cached_property
    def _predicted(self) -> NDArray[np.int64]:
        return np.asarray(self.confusion.sum(axis=0))


def _known(score: NDArray[np.float64]) -> float | None:
    return None if np.isnan(score) else float(score)
