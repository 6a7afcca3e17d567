"""Picture files: photographs in, class maps and overlays out; and labels as they are typed."""

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pictures
from PIL import ImageOps

from magicseg.backends import ClassMap, Image
from magicseg.errors import DataError
from magicseg.labels import IGNORE, Label, Vocabulary, load_vocabulary, vocabulary_names
from magicseg.mask.colours import class_colour, overlay

ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})
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


def photographs_in(folder: Path, out: Path) -> list[str]:
    """The images in a folder and below, by their names in it, but for those in OUT: they are ours.

    Raises: DataError if there are none, or all would lie in OUT.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder", hint="--images FOLDER")
    whole, ours = folder.resolve(), out.resolve()
    if whole.is_relative_to(ours):
        raise DataError(
            f"{out}: the photographs lie in it, and masks would be taken for photographs",
            hint=f"choose another folder, beside them or inside: --out {folder}/masks",
        )
    names = sorted(
        path.relative_to(whole).as_posix()
        for path in whole.rglob("*")
        if path.suffix.lower() in ENDINGS and path.is_file() and not path.is_relative_to(ours)
    )
    if not names:
        raise DataError(f"{folder}: holds no images", hint=f"their names end in {', '.join(sorted(ENDINGS))}")
    return names


def read_pixels(content: bytes) -> Image:
    """A picture's pixels, turned as EXIF says; of grey of more than 8 bits the darkest is black, the brightest white.

    Raises: whatever parsers raise.
    """
    with Pictures.open(io.BytesIO(content)) as picture:
        turned = ImageOps.exif_transpose(picture)
        if turned.mode == "F" or turned.mode.startswith("I"):  # I, I;16, I;16B: what is above 255 would be white
            turned = Pictures.fromarray(_in_8_bits(np.asarray(turned, dtype=np.float64)))
        return np.asarray(turned.convert("RGB"))


def _in_8_bits(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    low, high = float(values.min()), float(values.max())
    if not np.isfinite(high - low):
        raise ValueError("some of its values are not finite numbers")
    return np.round((values - low) * (255 / (high - low or 1))).astype(np.uint8)


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
