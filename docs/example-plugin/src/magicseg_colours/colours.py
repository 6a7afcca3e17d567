"""The colours that are known by name, and how far a pixel is from one."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from magicseg.backends import Image
from magicseg.labels import Label

Colour = tuple[int, int, int]

COLOURS: dict[str, Colour] = {
    "red": (205, 40, 40),
    "green": (30, 160, 50),
    "blue": (40, 70, 200),
    "yellow": (235, 205, 40),
}


def colour_of(label: Label) -> Colour | None:
    """What colour a label names, if any: a "red ball" is red."""
    return next((COLOURS[word] for word in label.text.lower().split() if word in COLOURS), None)


def distance(image: Image, colour: ArrayLike) -> NDArray[np.float32]:
    """Each pixel's distance from a colour in RGB: (height, width), 0 to 442."""
    difference = image.astype(np.float32) - np.asarray(colour, dtype=np.float32)
    far: NDArray[np.float32] = np.sqrt((difference**2).sum(axis=2))
    return far
