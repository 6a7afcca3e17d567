"""Batches of rows of one shape, the last one padded. A row's neighbours change its result by rounding at most."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

Row = TypeVar("Row")
BOXES_PER_CALL = 4  # boxes of one image in one call of a segmenter's decoder


@dataclass(frozen=True)
class HasBatch:
    """What a detector or segmenter gets as settings: images per call, and the setting's key for messages."""

    batch_size: int
    setting: str = "mask.batch_size"


def fixed_batches(
    rows: Sequence[Row], size: int, shape: Callable[[Row], Hashable]
) -> Iterator[tuple[list[int], list[Row]]]:
    """Yield positions and rows: always ``size`` rows of one ``shape``, an incomplete batch padded with its last row.

    The positions are those of the real rows; drop the results of the padding. With the same number of rows of one
    shape in every call, a row's result depends on its neighbours by rounding only: a CPU rounds some functions of a
    tensor's last elements differently, and GroundingDINO subtracts a batch's maximum.
    """
    groups: dict[Hashable, list[int]] = {}
    for place, row in enumerate(rows):
        groups.setdefault(shape(row), []).append(place)
    for places in groups.values():
        for start in range(0, len(places), size):
            chosen = places[start : start + size]
            padded = [*chosen, *[chosen[-1]] * (size - len(chosen))]
            yield chosen, [rows[place] for place in padded]
