"""Read image files, of every colour mode of Pillow, as 8-bit RGB.

`decode_image` and `read_image` apply the same rules in every command:

- Grey images of more than 8 bits (modes I, I;16, F) are scaled: the darkest value becomes black, the brightest white.
- Transparent pixels are blended with white.
- ``upright=True`` applies the EXIF orientation. Images with label maps are read as stored.
- An image of more than `MAX_PIXELS` pixels is refused before memory is allocated for it.
"""

import contextlib
import io
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from magicseg.core.documents import read_bytes
from magicseg.core.errors import DataError
from magicseg.core.text import printable

MAX_PIXELS = 200_000_000
"""Default limit on the pixels of an image; no sensor of a camera or phone has more."""

MAX_FILE_BYTES = 4 << 30

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "AVIF", "JPEG2000", "PPM", "QOI", "SGI")
"""Supported formats of Pillow. Their decoders run no other program and read no other file."""

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Texts and colour profiles, which do not affect pixels. Pillow refuses an image if they are larger than its limit.
_PNG_TEXTS = frozenset({b"tEXt", b"zTXt", b"iTXt", b"iCCP"})
_ROWS = 256  # rows that are converted at a time
_QUARTER_TURNS = frozenset({5, 6, 7, 8})

_pillow_limit = threading.Lock()


class UnreadableImage(DataError):
    """An image cannot be read. The message is only the reason; it does not name the file."""


class ImageTooLarge(UnreadableImage):
    """An image has more pixels than the limit."""


@dataclass(frozen=True)
class DecodedImage:
    """``pixels``: uint8 (height, width, 3), RGB, read-only, of the first page. ``pages``: pages in the file."""

    pixels: NDArray[np.uint8]
    pages: int


def decode_image(content: bytes, *, upright: bool, max_pixels: int = MAX_PIXELS) -> DecodedImage:
    """Return the first page of an image file.

    Args: upright: apply the EXIF orientation.
    Raises: UnreadableImage if the image is too large, damaged, or not in one of `FORMATS`.
    """
    try:
        try:
            return _decoded(content, upright, max_pixels)
        except ValueError:
            # A text or a colour profile may exceed Pillow's limits: try without them.
            shorter = without_texts(content)
            if shorter is content:
                raise
            return _decoded(shorter, upright, max_pixels)
    except (UnreadableImage, MemoryError):
        raise
    except Exception as error:  # decoders of damaged files raise errors of any kind
        raise UnreadableImage(_reason(error)) from error


def _decoded(content: bytes, upright: bool, max_pixels: int) -> DecodedImage:
    with opened(content, max_pixels) as image:
        if upright:
            ImageOps.exif_transpose(image, in_place=True)
        return DecodedImage(rgb_pixels(image), _pages(image))


def read_image(path: Path, *, upright: bool = False) -> NDArray[np.uint8]:
    """Return the first page of an image file as uint8 (height, width, 3), RGB, read-only.

    Args: upright: apply the EXIF orientation; if False, return the pixels as stored.
    Raises: DataError that names the file, if it is missing, too large, damaged, or not in one of `FORMATS`.
    """
    try:
        return decode_image(image_bytes(path), upright=upright).pixels
    except UnreadableImage as error:
        raise _named(path, error.message) from error


def image_bytes(path: Path) -> bytes:
    """Return an image file's content. Raises: UnreadableImage if it is missing or not a regular file."""
    try:
        return read_bytes(path, limit=MAX_FILE_BYTES)
    except FileNotFoundError as error:
        raise UnreadableImage("there is no such file") from error
    except DataError as error:
        raise UnreadableImage(error.message.removeprefix(f"{path}: ")) from error


def _named(path: Path, reason: str) -> DataError:
    return DataError(f"{path}: this image cannot be read: {reason}", hint="is it complete? copy it again")


@dataclass(frozen=True)
class StoredSize:
    """Size of an image as stored, in pixels. ``turned``: whether its EXIF orientation is a quarter turn."""

    height: int
    width: int
    turned: bool


def read_size(path: Path) -> StoredSize:
    """Return an image's size from its file header. Raises: DataError that names the file."""
    try:
        try:
            with path.open("rb") as file, _opened(file) as image:
                return _stored_size(image)
        except ValueError:  # as in `decode_image`
            with _opened(io.BytesIO(without_texts(path.read_bytes()))) as image:
                return _stored_size(image)
    except Exception as error:  # decoders of damaged files raise errors of any kind
        raise _named(path, _reason(error)) from error


def _stored_size(image: Image.Image) -> StoredSize:
    # Pillow already applies the orientation of a TIFF, also to its size.
    turned = image.format != "TIFF" and image.getexif().get(ExifTags.Base.Orientation) in _QUARTER_TURNS
    return StoredSize(image.height, image.width, turned)


def rgb_pixels(image: Image.Image) -> NDArray[np.uint8]:
    """Return any image of Pillow as uint8 (height, width, 3), RGB, read-only.

    Raises: ValueError for values that are not finite.
    """
    if image.mode == "F" or image.mode.startswith("I"):
        image = Image.fromarray(_stretched(np.asarray(image)))
    elif image.has_transparency_data:
        image = image.convert("LA") if image.mode == "La" else image
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def without_texts(content: bytes) -> bytes:
    """Return a PNG without its texts and colour profiles. Other content is returned unchanged."""
    if not content.startswith(_PNG_SIGNATURE):
        return content
    whole, kept, start = memoryview(content), [], 0
    position = len(_PNG_SIGNATURE)
    while position + 8 <= len(content):
        end = position + 12 + int.from_bytes(whole[position : position + 4], "big")
        if bytes(whole[position + 4 : position + 8]) in _PNG_TEXTS:
            kept.append(whole[start:position])
            start = min(end, len(content))
        position = end
    return b"".join([*kept, whole[start:]]) if kept else content


@contextlib.contextmanager
def opened(content: bytes, max_pixels: int, formats: tuple[str, ...] = FORMATS) -> Iterator[Image.Image]:
    """Open an image without decoding it, and check its size.

    Raises: UnreadableImage if it is too large; any exception of the decoder if the file is damaged.
    """
    with _opened(io.BytesIO(content), formats) as image:
        width, height = image.size
        if width * height > max_pixels:
            raise ImageTooLarge(f"it is {width:,} x {height:,} pixels; the limit is {max_pixels:,} pixels in all")
        yield image


@contextlib.contextmanager
def _opened(file: IO[bytes], formats: tuple[str, ...] = FORMATS) -> Iterator[Image.Image]:
    with _pillow_limit:  # Pillow's own limit is global to the process; callers check `max_pixels` instead
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(file, formats=formats)
        finally:
            Image.MAX_IMAGE_PIXELS = before
    with image:
        yield image


def _pages(image: Image.Image) -> int:
    if image.format == "MPO":  # cameras append previews and depth maps to the photograph
        return 1
    try:
        return int(getattr(image, "n_frames", 1))
    except Exception:  # a later page is damaged
        return 1


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):  # its message shows a Python object
        return "its format is not supported"
    return printable(f"{type(error).__name__}: {error}".removesuffix(": "), 300)


def _stretched(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Return grey values of any type as uint8, scaled so that the lowest is 0 and the highest 255."""
    low, high = float(np.min(values)), float(np.max(values))
    if not np.isfinite(high - low):
        raise ValueError("some of its values are not finite numbers")
    grey = np.empty(values.shape, np.uint8)
    for row in range(0, len(values), _ROWS):
        block = values[row : row + _ROWS].astype(np.float64)
        grey[row : row + _ROWS] = np.round((block - low) * (255 / (high - low or 1)))
    return grey
