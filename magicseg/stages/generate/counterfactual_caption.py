"""Captions of counterfactuals: the class words of a caption replaced, or the captioner's own text checked."""

from collections.abc import Iterable
from typing import Literal

from magicseg.backends import GenerateRequest, Rejection
from magicseg.labels import Label
from magicseg.labels.mentions import mentions, names

REPLACEMENT = "nothing"


def counterfactual_caption(
    request: GenerateRequest, method: Literal["replace", "rewrite", "inpaint"]
) -> str | Rejection:
    """Return the counterfactual's caption, by ``method``; a rejection if it names a label or equals the caption."""
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
    if missing:  # the counterfactual would still show that label
        return Rejection(reason="label-not-in-caption", detail=f"{missing[0]!r} in {request.caption!r}")
    text = replace_labels(request.caption, request.labels)
    if text == request.caption:
        return Rejection(reason="counterfactual-unchanged", detail=request.caption)
    return text


def replace_labels(text: str, labels: Iterable[Label]) -> str:
    """Replace every name, synonym and plural of ``labels`` in ``text`` by "nothing".

    Longer names first: of the labels "dog" and "hot dog", "a hot dog" becomes "a nothing". A qualifier in parentheses
    goes with its name: "a bow (weapon)" becomes "a nothing".
    """
    return mentions(tuple(labels)).sub(REPLACEMENT, text)
