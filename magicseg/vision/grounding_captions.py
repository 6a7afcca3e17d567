"""Captions for grounded detectors, and which of their tokens belong to which label.

Scores are read from the tokens inside a label's own span of characters. Phrases that a library decodes from tokens
are joined word pieces, and cannot be told apart again.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from magicseg.labels import Label

_SEPARATORS = re.compile(r"[.?]+")  # grounded detectors end a phrase at these


@dataclass(frozen=True)
class GroundedCaption:
    """``text`` names the labels at ``places`` of a request; ``spans``: each name's first character and last + 1."""

    text: str
    places: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]


def detection_names(labels: Sequence[Label]) -> list[str]:
    """What a detector is asked for: the labels' texts in lower case, whole names where two texts are the same."""
    texts = [label.text for label in labels]
    names = [label.name if texts.count(label.text) > 1 else label.text for label in labels]
    return [" ".join(_SEPARATORS.sub(" ", name).casefold().split()) for name in names]


def grounded_captions(names: Sequence[str], fits: Callable[[str], bool]) -> list[GroundedCaption]:
    """Captions "cat. dog." that hold all names, as few as fit.

    Args: fits: whether a text is short enough for the text encoder.
    Raises: ValueError naming the name that alone is too long, or that holds no letter.
    """
    captions: list[GroundedCaption] = []
    places: list[int] = []
    for place, name in enumerate(names):
        if not any(character.isalnum() for character in name):
            raise ValueError(f"label {name!r} has nothing to look for")
        if not fits(_caption([name], [place]).text):
            raise ValueError(f"label {name!r} alone is longer than the text encoder takes")
        if places and not fits(_caption([names[p] for p in [*places, place]], [*places, place]).text):
            captions.append(_caption([names[p] for p in places], places))
            places = []
        places.append(place)
    if places:
        captions.append(_caption([names[p] for p in places], places))
    return captions


def _caption(names: Sequence[str], places: Sequence[int]) -> GroundedCaption:
    spans: list[tuple[int, int]] = []
    text = ""
    for name in names:
        start = len(text)
        text += f"{name}. "
        spans.append((start, start + len(name)))
    return GroundedCaption(text.rstrip(), tuple(places), tuple(spans))


def tokens_of_spans(offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> list[list[int]]:
    """For every span the numbers of the tokens that lie in it.

    Args: offsets: first and last character + 1 of every token; (0, 0) for those that are not of the text.
    """
    return [
        [number for number, (first, last) in enumerate(offsets) if start <= first < last <= end]
        for start, end in spans
    ]
