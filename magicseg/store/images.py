"""JPEG streams and pixel arrays."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def encode_jpeg(image: NDArray[np.uint8], quality: int) -> bytes:
    """An RGB image, uint8 (height, width, 3), as a JPEG stream without chroma subsampling."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


def decode_jpeg(stream: bytes) -> NDArray[np.uint8]:
    """A JPEG stream as uint8 (height, width, 3)."""
    with Image.open(io.BytesIO(stream), formats=["JPEG"]) as image:
        return np.asarray(image.convert("RGB"))
