"""Whether a text names a label, and where: what captions, counterfactuals and checks of answers agree on."""

import re
from collections.abc import Mapping
from functools import lru_cache

from magicseg.labels.vocabulary import Label

_TOKEN = re.compile(r"[^\W_]+")
_START, _END = r"(?<![^\W_])", r"(?![^\W_])"


def names(text: str, label: Label) -> bool:
    """Whether ``text`` holds the label: its name, a synonym or a plural, whole words in any case and spacing."""
    return mentions((label,)).search(text) is not None


@lru_cache(4096)
def mentions(labels: tuple[Label, ...]) -> re.Pattern[str]:
    """A pattern of every name, synonym and plural of ``labels``, longer ones first, with their qualifiers."""
    forms: dict[str, int] = {}
    for label in labels:
        forms |= _forms(label)
    longest_first = sorted(forms, key=lambda form: -forms[form])
    return re.compile("|".join(longest_first) or r"(?!)", re.IGNORECASE)


@lru_cache(8192)
def _forms(label: Label) -> Mapping[str, int]:
    """Patterns of a label's forms, each with the form's length."""
    tail = rf"(?:[\s_]*\(\s*{_flexible(label.qualifier)}\s*\))?" if label.qualifier else ""
    return {_bounded(form) + tail: len(form) for form in label.forms}


def _bounded(form: str) -> str:
    """A pattern for a form as whole words; its first or last character may be a sign."""
    start = _START if form[:1].isalnum() else ""
    end = _END if form[-1:].isalnum() else ""
    return f"{start}{_flexible(form)}{end}"


def _flexible(form: str) -> str:
    """Spaces, hyphens and underscores are alike between words, and so are the two apostrophes."""
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
