"""The words that captions of the template grammar are made of, shared by who writes and who reads them."""

from dataclasses import dataclass

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
SIZES = ("small", "medium-sized", "large")


@dataclass(frozen=True)
class Phrase:
    """A choice by its key word and as it stands in a caption; ``text`` contains ``word``.

    ``shows`` names what a picture of it shows anyway: for these it is no counterfactual.
    """

    word: str
    text: str
    shows: tuple[str, ...] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        """What it says, and what it shows."""
        return (self.text, *self.shows)


PLACES = (
    Phrase("left", "on the left"),
    Phrase("middle", "in the middle"),
    Phrase("right", "on the right"),
)
_OUTDOORS = ("sky", "cloud", "ground", "earth", "horizon")
SCENES = (
    Phrase("beach", "on a beach", (*_OUTDOORS, "sand", "sea", "water", "ocean", "wave", "shore")),
    Phrase("meadow", "in a meadow", (*_OUTDOORS, "grass", "field", "hill", "plant", "lawn")),
    Phrase(
        "street",
        "on a street",
        ("road", "sidewalk", "pavement", "wall", "brick", "building", "ground", "kerb", "asphalt"),
    ),
    Phrase("desert", "in a desert", (*_OUTDOORS, "sand", "dune", "sun", "hill")),
    Phrase("snowfield", "on a snowfield", (*_OUTDOORS, "snow", "mountain", "ice", "hill")),
    Phrase("room", "in a room", ("wall", "floor", "ceiling", "window", "door", "furniture", "carpet")),
    Phrase("lake", "by a lake", (*_OUTDOORS, "water", "shore", "hill", "mountain", "sea")),
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
