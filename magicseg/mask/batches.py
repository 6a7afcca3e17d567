"""Batches whose make-up changes results by rounding at most: rows of one shape together, the last batch padded."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import TypeVar

Row = TypeVar("Row")


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
