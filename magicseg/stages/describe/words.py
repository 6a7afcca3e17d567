"""The vocabulary of the grammar's captions, shared by the grammar and by the painter's parser."""

from dataclasses import dataclass

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
SIZES = ("small", "medium-sized", "large")


@dataclass(frozen=True)
class Phrase:
    """A phrase of a caption (``text``) and its key word (``word``), which is part of the text.

    ``shows`` names the things that an image of it usually shows. Such a label cannot be left out of the image.
    """

    word: str
    text: str
    shows: tuple[str, ...] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        """Return its text, and the things that it shows."""
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
OPENINGS = ("", "a photo of ", "a picture of ")  # a caption and its counterfactual have the same opening
EMPTY = "empty"  # describes a scene without objects
# Words without a meaning for the painter. Its parser must know all other words.
FILLERS = frozenset({"a", "an", "the", "of", "on", "in", "at", "by", "and", "photo", "picture", EMPTY})
