"""Find labels in text. Captions, counterfactuals and checks of language model answers use the same rules."""

import re
from collections.abc import Mapping
from functools import lru_cache

from magicseg.labels.vocabulary import Label

_TOKEN = re.compile(r"[^\W_]+")
_START, _END = r"(?<![^\W_])", r"(?![^\W_])"


def names(text: str, label: Label) -> bool:
    """Return whether ``text`` contains the label's name, a synonym or a plural.

    Only whole words match. Case and spacing do not matter.
    """
    return mentions((label,)).search(text) is not None


@lru_cache(4096)
def mentions(labels: tuple[Label, ...]) -> re.Pattern[str]:
    """Return a pattern that matches all names, synonyms and plurals of ``labels``, longest first, with qualifiers."""
    forms: dict[str, int] = {}
    for label in labels:
        forms |= _forms(label)
    longest_first = sorted(forms, key=lambda form: -forms[form])
    return re.compile("|".join(longest_first) or r"(?!)", re.IGNORECASE)


@lru_cache(8192)
def _forms(label: Label) -> Mapping[str, int]:
    """Return a mapping from the pattern of each form of a label to the form's length."""
    tail = rf"(?:[\s_]*\(\s*{_flexible(label.qualifier)}\s*\))?" if label.qualifier else ""
    return {_bounded(form) + tail: len(form) for form in label.forms}


def _bounded(form: str) -> str:
    """Return a pattern that matches a form as whole words. Its first or last character may be a symbol."""
    start = _START if form[:1].isalnum() else ""
    end = _END if form[-1:].isalnum() else ""
    return f"{start}{_flexible(form)}{end}"


def _flexible(form: str) -> str:
    """Return a pattern that treats spaces, hyphens and underscores alike, and both apostrophes alike."""
    parts: list[str] = []
    last = 0
    for match in _TOKEN.finditer(form):
        parts += [_gap(form[last : match.start()]), re.escape(match[0])]
        last = match.end()
    return "".join([*parts, _gap(form[last:])])


def _gap(gap: str) -> str:
    if gap and not gap.strip(" -_"):
        return r"[\s_-]+"
    return "".join("['’]" if sign in "'’" else r"\s+" if sign.isspace() else re.escape(sign) for sign in gap)
