"""Nested mappings, setting by setting."""

from collections.abc import Iterator, Mapping
from typing import Any

Assignment = tuple[tuple[Any, ...], Any]
"""The keys from the outermost group to a setting, and its value."""


def assignments(value: Any, path: tuple[Any, ...] = ()) -> Iterator[Assignment]:
    """Yield every single setting in a group below ``path``. A value that is not a group is yielded as one setting."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from assignments(inner, (*path, key))
    else:
        yield path, value


def flattened(values: Mapping[str, Any], separator: str = ".") -> dict[str, Any]:
    """Return nested mappings as one mapping with joined keys: ``{"a": {"b": 1}}`` becomes ``{"a.b": 1}``.

    Empty groups have no entry.
    """
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= {f"{key}{separator}{name}": inner for name, inner in flattened(value, separator).items()}
        else:
            found[key] = value
    return found
