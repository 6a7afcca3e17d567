"""Encode class maps and overlays as image files."""

import io

import numpy as np
from PIL import Image as PillowImage

from magicseg.backends import ClassMap, Image
from magicseg.images.colours import class_colour, overlay
from magicseg.labels import IGNORE

_PNG_IGNORE = 255


def class_png(mask: ClassMap, classes: int) -> bytes:
    """Encode a class map as PNG.

    Up to 254 classes: 8 bits with a palette of the classes' colours; 255 marks ignored pixels. More classes: 16 bits;
    65535 marks ignored pixels.
    """
    buffer = io.BytesIO()
    if classes >= _PNG_IGNORE:
        PillowImage.fromarray(mask).save(buffer, "PNG")
        return buffer.getvalue()
    image = PillowImage.fromarray(np.where(mask == IGNORE, _PNG_IGNORE, mask).astype(np.uint8), mode=None)
    colours = [(0, 0, 0), *(class_colour(id_) for id_ in range(1, _PNG_IGNORE)), (224, 224, 192)]
    image.putpalette([channel for colour in colours for channel in colour])
    image.save(buffer, "PNG")
    return buffer.getvalue()


def overlay_jpeg(image: Image, mask: ClassMap) -> bytes:
    """Encode the overlay of a class map on its image as JPEG."""
    buffer = io.BytesIO()
    PillowImage.fromarray(overlay(image, mask)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
