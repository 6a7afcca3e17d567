"""Captions for grounded detectors, and the tokens of each label in them.

Scores are read from the tokens inside a label's span of characters. Phrases that a library decodes from tokens are
joined word pieces, and may belong to several labels.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from magicseg.labels import Label

_SEPARATORS = re.compile(r"[.?]+")  # grounded detectors end a phrase at these


@dataclass(frozen=True)
class GroundedCaption:
    """``text`` names the labels at ``places`` of a request. ``spans``: each name's first character and last + 1."""

    text: str
    places: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]


def detection_names(labels: Sequence[Label]) -> list[str]:
    """Return the names to query: the labels' texts in lower case, or whole names if two texts are the same."""
    texts = [label.text for label in labels]
    names = [label.name if texts.count(label.text) > 1 else label.text for label in labels]
    return [" ".join(_SEPARATORS.sub(" ", name).casefold().split()) for name in names]


def grounded_captions(names: Sequence[str], fits: Callable[[str], bool]) -> list[GroundedCaption]:
    """Return as few captions like "cat. dog." as hold all names.

    Args: fits: whether a text is short enough for the text encoder.
    Raises ValueError if a name alone is too long, or holds no letter or digit.
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
    """Return the positions of the tokens inside every span.

    Args: offsets: first and last character + 1 of every token; (0, 0) for special tokens.
    """
    return [
        [number for number, (first, last) in enumerate(offsets) if start <= first < last <= end]
        for start, end in spans
    ]
