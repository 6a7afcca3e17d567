"""Class maps and overlays as image files."""

import io

import numpy as np
from PIL import Image as Pictures

from magicseg.backends import ClassMap, Image
from magicseg.images.colours import class_colour, overlay
from magicseg.labels import IGNORE

_PNG_IGNORE = 255


def class_png(mask: ClassMap, classes: int) -> bytes:
    """A class map as PNG: 8 bits with the classes' colours and 255 to ignore; above 254 classes 16 bits and 65535."""
    buffer = io.BytesIO()
    if classes >= _PNG_IGNORE:
        Pictures.fromarray(mask).save(buffer, "PNG")
        return buffer.getvalue()
    picture = Pictures.fromarray(np.where(mask == IGNORE, _PNG_IGNORE, mask).astype(np.uint8), mode=None)
    colours = [(0, 0, 0), *(class_colour(id_) for id_ in range(1, _PNG_IGNORE)), (224, 224, 192)]
    picture.putpalette([channel for colour in colours for channel in colour])
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def overlay_jpeg(image: Image, mask: ClassMap) -> bytes:
    """A class map over its image, as JPEG."""
    buffer = io.BytesIO()
    Pictures.fromarray(overlay(image, mask)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
