"""Encode, decode and check JPEG streams."""

import contextlib
import io
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from magicseg.images.reading import MAX_PIXELS, UnreadableImage, opened


def encode_jpeg(image: NDArray[np.uint8], quality: int) -> bytes:
    """Encode an RGB image, uint8 (height, width, 3), as a JPEG stream without chroma subsampling."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


def decode_jpeg(stream: bytes, size: int) -> NDArray[np.uint8]:
    """Decode a JPEG stream to uint8 (size, size, 3).

    Raises: ValueError if the image has another size, before memory is allocated; OSError if the stream is damaged.
    """
    with _opened(stream, size) as image:
        return np.asarray(image.convert("RGB"))


def check_jpeg(stream: bytes, size: int) -> None:
    """Raise ValueError or OSError if a stream's header does not belong to a JPEG of ``size`` x ``size`` pixels."""
    with _opened(stream, size):
        pass


@contextlib.contextmanager
def _opened(stream: bytes, size: int) -> Iterator[Image.Image]:
    try:
        with opened(stream, MAX_PIXELS, ("JPEG",)) as image:
            if image.size != (size, size):
                raise ValueError(f"the image is {image.width} x {image.height} pixels, not {size} x {size}")
            yield image
    except UnreadableImage as error:
        raise ValueError(error.message) from error
