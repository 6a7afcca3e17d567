"""Format and parse sets of shard numbers as text: ``0-3,7``."""

from collections.abc import Iterable

from magicseg.core.errors import RunError


def format_ranges(numbers: Iterable[int]) -> str:
    """Return ascending numbers as text like ``0-3,7``; the empty string for an empty set."""
    parts: list[str] = []
    run: list[int] = []
    for number in sorted(set(numbers)):
        if run and number == run[-1] + 1:
            run[1:] = [number]
            continue
        if run:
            parts.append("-".join(map(str, run)))
        run = [number]
    if run:
        parts.append("-".join(map(str, run)))
    return ",".join(parts)


def count_ranges(text: str, *, count: int) -> int:
    """Return how many numbers a text of `format_ranges` contains: ascending, each below ``count``.

    The numbers are not expanded in memory. Raises: ValueError for any other text.
    """
    total, before = 0, -1
    for part in text.split(",") if text else ():
        first, dash, last = part.partition("-")
        last = last if dash else first
        if not (first.isascii() and first.isdigit() and last.isascii() and last.isdigit()) or len(last) > 12:
            raise ValueError(f"{part[:40]!r} is not a range")
        low, high = int(first), int(last)
        if not before < low <= high < count:
            raise ValueError(f"{part!r} is not in ascending order below {count}")
        total += high - low + 1
        before = high
    return total


def parse_ranges(text: str, *, count: int | None = None) -> list[int]:
    """Return the numbers of a text like ``0-3,7``, sorted, without duplicates.

    Args: count: the number of shards; all numbers must lie below it.
    Raises: RunError that names the invalid part.
    """
    numbers: set[int] = set()
    for part in text.split(",") if text else ():
        first, dash, last = part.strip().partition("-")
        last = last if dash else first
        if not (first.isascii() and first.isdigit() and last.isascii() and last.isdigit()):
            raise RunError(f"{part!r} is not a range of shards", hint="write numbers and ranges: --shards 0-3,7")
        if len(last) > 12 or len(first) > 12:
            raise RunError(f"{part[:40]!r} is too large for a shard", hint="write numbers and ranges: --shards 0-3,7")
        low, high = int(first), int(last)
        if low > high:
            raise RunError(f"{part!r} is in descending order", hint=f"--shards {high}-{low}")
        if count is not None and high >= count:
            raise RunError(f"shard {high} does not exist: the run has {count}", hint=f"--shards 0-{count - 1}")
        numbers.update(range(low, high + 1))
    return sorted(numbers)
