"""Colours of classes, and overlays of class maps on images."""

from typing import Any

import numpy as np

from magicseg.backends import ClassMap, Image
from magicseg.labels import BACKGROUND, IGNORE

_MASK_STRENGTH = 0.6

# Sasha Trubetskoy's list of simple, distinct colours (2017), without grey, black and white.
_DISTINCT = (
    *("e6194b", "3cb44b", "ffe119", "4363d8", "f58231", "911eb4", "42d4f4", "f032e6", "bfef45", "fabed4"),
    *("469990", "dcbeff", "9a6324", "fffac8", "800000", "aaffc3", "808000", "ffd8b1", "000075"),
)


def overlay(image: Image, mask: ClassMap) -> Image:
    """Return the image in grey with every class in its colour. Ignored pixels are striped black and white."""
    light = np.dot(image, np.array([0.299, 0.587, 0.114]))
    shown: np.ndarray[Any, np.dtype[np.float64]] = np.repeat(light[..., None] * 0.75 + 40, 3, axis=2)
    rows, columns = np.mgrid[: mask.shape[0], : mask.shape[1]]
    stripes = ((rows + columns) // 3 % 2 * 255)[..., None]
    for value in np.unique(mask).tolist():
        where = mask == value
        if value == IGNORE:
            shown[where] = (stripes * 0.5 + shown * 0.5)[where]
        elif value != BACKGROUND:
            shown[where] = np.array(class_colour(value)) * _MASK_STRENGTH + image[where] * (1 - _MASK_STRENGTH)
    blended: Image = np.clip(shown, 0, 255).astype(np.uint8)
    return blended


def class_colour(id_: int) -> tuple[int, int, int]:
    """Return a class's colour, RGB.

    The first ids have colours that are far apart from each other. Later ones differ in hue from their neighbours by
    the golden angle.
    """
    if 1 <= id_ <= len(_DISTINCT):
        red, green, blue = bytes.fromhex(_DISTINCT[id_ - 1])
        return red, green, blue
    hue = (id_ * 137.508) % 360
    lightness = 0.55 if id_ % 2 else 0.45
    chroma = (1 - abs(2 * lightness - 1)) * 0.75
    second = chroma * (1 - abs(hue / 60 % 2 - 1))
    sextant = int(hue // 60)
    channels = [
        (chroma, second, 0.0),
        (second, chroma, 0.0),
        (0.0, chroma, second),
        (0.0, second, chroma),
        (second, 0.0, chroma),
        (chroma, 0.0, second),
    ][sextant]
    red, green, blue = (round((value + lightness - chroma / 2) * 255) for value in channels)
    return red, green, blue


def css_colour(id_: int) -> str:
    """Return a class's colour in CSS notation, ``#rrggbb``."""
    return "#{:02x}{:02x}{:02x}".format(*class_colour(id_))
