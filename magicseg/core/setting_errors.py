"""Convert pydantic's validation errors of settings and documents to plain text."""

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from magicseg.core.text import printable

_TAG = re.compile(r"[\w-]*\[.*\]")  # pydantic's names of types and alternatives: literal['all'], [key]

_UNKNOWN_KEY = "extra_forbidden"


@dataclass(frozen=True)
class Fault:
    """One fault. ``location`` holds the keys and positions that lead to ``value``; ``kind`` is pydantic's name."""

    location: tuple[str | int, ...]
    kind: str
    message: str
    value: Any

    @property
    def key(self) -> str:
        """Return the dotted key, escaped for a message; empty for a fault of the whole document."""
        return printable(".".join(map(str, self.location)), 200)

    @property
    def is_unknown_key(self) -> bool:
        """Return whether the fault is an unknown key."""
        return self.kind == _UNKNOWN_KEY

    def __str__(self) -> str:
        """Return ``key: message``."""
        return ": ".join(filter(None, [self.key, self.message]))


def faults(error: ValidationError) -> list[Fault]:
    """Return all faults. Values may be secret: pydantic's messages do not quote them."""
    return [_fault(details) for details in error.errors(include_url=False)]


def first_fault(error: ValidationError) -> Fault:
    """Return the fault to report: an unknown key if any, because it explains a missing key."""
    return _fault(min(error.errors(include_url=False), key=lambda details: details["type"] != _UNKNOWN_KEY))


def _fault(details: ErrorDetails) -> Fault:
    location = tuple(part for part in details["loc"] if not _TAG.fullmatch(str(part)))
    message = printable(details["msg"].removeprefix("Value error, "), 500)
    return Fault(location, details["type"], message, details["input"])


def nearest(key: str, known: Iterable[str]) -> str | None:
    """Return the known key that is most like ``key``, or None if no key is similar."""
    found = difflib.get_close_matches(key, list(known), n=1, cutoff=0.5)
    return found[0] if found else None
