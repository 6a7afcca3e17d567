"""Instances as plain numbers in a pair's quality record, so that a later stage does not run the detector again."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from magicseg.backends import Instances, PairInstances

_MOST_VALUES = 2000  # a quality record holds 64 KiB; a number takes up to 22 characters
_KEYS = ("found_boxes", "found_labels", "found_scores", "label_scores", "counterfactual_label_scores")


def kept_instances(image: Instances, counterfactual: Instances) -> dict[str, list[float]]:
    """Return a valid pair's instances, exact to the bit: nothing was found in the counterfactual.

    Empty if they are too many for a quality record.
    """
    values: tuple[NDArray[Any], ...] = (
        image.boxes.ravel(),
        image.labels,
        image.scores,
        image.best,
        counterfactual.best,
    )
    if len(counterfactual) or sum(each.size for each in values) > _MOST_VALUES:
        return {}
    return {key: _numbers(array) for key, array in zip(_KEYS, values, strict=True)}


def read_instances(quality: Mapping[str, Any], labels: int) -> PairInstances | None:
    """Return what `kept_instances` wrote of a pair with so many labels; None if a record lacks it or is malformed."""
    try:
        boxes, places, scores, best, remaining = (np.array(quality[key], np.float32) for key in _KEYS)
    except (KeyError, ValueError, TypeError, OverflowError):
        return None
    shapes = [(4 * len(places),), (len(places),), (len(places),), (labels,), (labels,)]
    arrays = (boxes, places, scores, best, remaining)
    if [each.shape for each in arrays] != shapes or not all(np.isfinite(each).all() for each in arrays):
        return None
    if not np.isin(places, np.arange(labels)).all():
        return None
    nothing = np.zeros(0, np.float32)
    return PairInstances(
        image=Instances(boxes=boxes.reshape(-1, 4), labels=places.astype(np.int64), scores=scores, best=best),
        counterfactual=Instances(
            boxes=nothing.reshape(0, 4), labels=nothing.astype(np.int64), scores=nothing, best=remaining
        ),
    )


def _numbers(values: NDArray[Any]) -> list[float]:
    """Return float32 values or integers as the shortest numbers that read as the same float32."""
    if values.dtype.kind == "i":
        return values.tolist()  # type: ignore[no-any-return]
    short = [float(str(value)) for value in values]
    return [near if np.float32(near) == value else float(value) for near, value in zip(short, values, strict=True)]
