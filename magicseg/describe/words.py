"""The words that captions of the template grammar are made of, shared by who writes and who reads them."""

from dataclasses import dataclass

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
SIZES = ("small", "medium-sized", "large")


@dataclass(frozen=True)
class Phrase:
    """A choice by its key word and as it stands in a caption; ``text`` contains ``word``."""

    word: str
    text: str


PLACES = (
    Phrase("left", "on the left"),
    Phrase("middle", "in the middle"),
    Phrase("right", "on the right"),
)
SCENES = (
    Phrase("beach", "on a beach"),
    Phrase("meadow", "in a meadow"),
    Phrase("street", "on a street"),
    Phrase("desert", "in a desert"),
    Phrase("snowfield", "on a snowfield"),
    Phrase("room", "in a room"),
    Phrase("lake", "by a lake"),
)
LIGHTS = (
    Phrase("dawn", "at dawn"),
    Phrase("noon", "at noon"),
    Phrase("dusk", "at dusk"),
    Phrase("night", "at night"),
    Phrase("fog", "in fog"),
)
OPENINGS = ("", "a photo of ", "a picture of ")  # in front of a caption and of its counterfactual alike
EMPTY = "empty"  # says of a scene that it holds no object
# Words without a meaning of their own: all others must be known to who reads a caption.
FILLERS = frozenset({"a", "an", "the", "of", "on", "in", "at", "by", "and", "photo", "picture", EMPTY})
