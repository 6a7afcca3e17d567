"""Captions of counterfactuals: the class words of a caption replaced, or the captioner's own text checked."""

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Literal

from magicseg.backends import GenerateRequest, Rejection
from magicseg.labels import Label

REPLACEMENT = "nothing"

_TOKEN = re.compile(r"[^\W_]+")
_START, _END = r"(?<![^\W_])", r"(?![^\W_])"


def counterfactual_caption(
    request: GenerateRequest, method: Literal["replace", "rewrite", "inpaint"]
) -> str | Rejection:
    """The text of the image without the objects, by ``method``; a rejection if it would not be one."""
    if method == "replace":
        return _replaced(request)
    text = request.counterfactual
    if text.casefold().split() == request.caption.casefold().split():
        return Rejection(reason="counterfactual-unchanged", detail=text)
    named = [label.name for label in request.labels if names(text, label)]
    if named:
        return Rejection(reason="counterfactual-names-label", detail=f"{named[0]!r} in {text!r}")
    return text


def _replaced(request: GenerateRequest) -> str | Rejection:
    missing = [label.name for label in request.labels if not names(request.caption, label)]
    if missing:  # replacing the others would leave half of a pair that shows something else
        return Rejection(reason="label-not-in-caption", detail=f"{missing[0]!r} in {request.caption!r}")
    text = replace_labels(request.caption, request.labels)
    if text == request.caption:
        return Rejection(reason="counterfactual-unchanged", detail=request.caption)
    return text


def names(text: str, label: Label) -> bool:
    """Whether ``text`` holds the label: its name, a synonym or a plural, whole words in any case and spacing."""
    return _pattern((label,)).search(text) is not None


def replace_labels(text: str, labels: Iterable[Label]) -> str:
    """``text`` with every name, synonym and plural of ``labels`` replaced by "nothing".

    Longer names first: of the labels "dog" and "hot dog", "a hot dog" becomes "a nothing". A qualifier in parentheses
    goes with its name: "a bow (weapon)" becomes "a nothing".
    """
    return _pattern(tuple(labels)).sub(REPLACEMENT, text)


@lru_cache(4096)
def _pattern(labels: tuple[Label, ...]) -> re.Pattern[str]:
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
