"""Outlines of objects to one class map: overlaps, small islands, uncertain pixels."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from magicseg.backends import ClassMap
from magicseg.labels import BACKGROUND, IGNORE

Where = NDArray[np.bool_]  # (height, width)


@dataclass(frozen=True, kw_only=True)
class Outline:
    """An object's pixels, its uncertain pixels, its label's id and its score."""

    inside: Where
    unsure: Where
    label_id: int
    score: float


def outline(logits: NDArray[np.float32], *, label_id: int, score: float, min_island: float, margin: float) -> Outline:
    """Threshold an object's logits.

    Args: logits: (height, width), above 0 inside. min_island: parts below this share of the image are dropped, except
    the largest. margin: pixels with logits nearer to 0 are uncertain.
    """
    inside = without_islands(logits > 0, min_island)
    unsure = (np.abs(logits) < margin) & (inside | (logits <= 0))
    return Outline(inside=inside, unsure=unsure, label_id=label_id, score=score)


def without_islands(inside: Where, min_share: float) -> Where:
    """Drop the connected parts (8 neighbours) below a share of the image; the largest part always stays."""
    from scipy.ndimage import label

    if min_share <= 0 or not inside.any():
        return inside
    parts, _ = label(inside, structure=np.ones((3, 3)))
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    keep = sizes >= min_share * inside.size
    keep[sizes.argmax()] = True
    keep[0] = False
    kept: Where = keep[parts]
    return kept


def class_map(outlines: Iterable[Outline], shape: tuple[int, ...]) -> ClassMap:
    """Compose a class map. Where objects overlap, the better score wins, and of equal scores the smaller object.

    An object's uncertain pixels become IGNORE, unless an object with a better score covers them. The outlines are
    consumed one by one and not kept.
    """
    result = np.full(shape, BACKGROUND, dtype=np.uint16)
    front = np.zeros(shape, np.int32)  # number of the object in front, from 1
    keys: list[tuple[float, int]] = []
    for number, one in enumerate(outlines, start=1):
        key = (one.score, -int(one.inside.sum()))
        beaten = np.array([True, *(key >= other for other in keys)])
        keys.append(key)
        wins = (one.inside | one.unsure) & beaten[front]
        result[wins] = one.label_id
        result[wins & one.unsure] = IGNORE
        front[wins] = number
    return result


def box_agreement(inside: Where, box: NDArray[np.float32]) -> float:
    """Return the IoU of an outline's bounding box and the detector's box; 0 for an empty outline."""
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    if not rows.size:
        return 0.0
    own = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=np.float64)
    low, high = np.maximum(own[:2], box[:2]), np.minimum(own[2:], box[2:])
    shared = float(np.prod(np.maximum(high - low, 0)))
    total = float(np.prod(own[2:] - own[:2]) + np.prod(box[2:] - box[:2])) - shared
    return shared / total if total > 0 else 0.0


def agreement(one: Where, other: Where) -> float:
    """Return the IoU of two areas; 1 if both are empty."""
    union = int((one | other).sum())
    return int((one & other).sum()) / union if union else 1.0
