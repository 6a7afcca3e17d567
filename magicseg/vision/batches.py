"""Batches whose make-up changes results by rounding at most: rows of one shape together, the last batch padded."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

Row = TypeVar("Row")
BOXES_PER_CALL = 4  # of an image, in one call of a segmenter's decoder


@dataclass(frozen=True)
class HasBatch:
    """What a detector or segmenter gets for a stage's settings: images in one call, and which setting says so."""

    batch_size: int
    setting: str = "mask.batch_size"


def fixed_batches(
    rows: Sequence[Row], size: int, shape: Callable[[Row], Hashable]
) -> Iterator[tuple[list[int], list[Row]]]:
    """Yield places and rows, always ``size`` rows of one ``shape``, those left over padded with their last.

    The places are those of the rows that count: what the padding gives is to be dropped. With the same number of rows
    of the same shape in every call, a row's result does not depend on its neighbours, but for rounding: a CPU rounds
    some functions of a tensor's last elements otherwise, and GroundingDINO subtracts a batch's maximum.
    """
    groups: dict[Hashable, list[int]] = {}
    for place, row in enumerate(rows):
        groups.setdefault(shape(row), []).append(place)
    for places in groups.values():
        for start in range(0, len(places), size):
            chosen = places[start : start + size]
            padded = [*chosen, *[chosen[-1]] * (size - len(chosen))]
            yield chosen, [rows[place] for place in padded]
