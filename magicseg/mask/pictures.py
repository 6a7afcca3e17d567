"""Class maps and overlays as image files; and labels as they are typed."""

import io

import numpy as np
from PIL import Image as Pictures

from magicseg.backends import ClassMap, Image
from magicseg.labels import IGNORE, Label, Vocabulary, load_vocabulary, vocabulary_names
from magicseg.mask.colours import class_colour, overlay

_PNG_IGNORE = 255


def labels_of(text: str) -> Vocabulary:
    """Labels as typed: a shipped vocabulary's name, a path to a list, or names with commas between.

    Raises: LabelError.
    """
    if text in vocabulary_names() or text.endswith((".txt", ".yaml")):
        return load_vocabulary(text)
    names = [name.strip() for name in text.split(",") if name.strip()]
    return Vocabulary(
        name="typed", labels=tuple(Label(id=place, name=name) for place, name in enumerate(names, start=1))
    )


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
