"""Measures of a single image: its hash, sharpness and contrast."""

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from magicseg.backends import Image


def grey(image: Image) -> NDArray[np.float32]:
    """Return the luminance (height, width), 0 to 255."""
    return np.asarray(PIL.Image.fromarray(image).convert("L"), dtype=np.float32)


def sharpness(image: Image) -> float:
    """Return the variance of the Laplacian of the grey image: low if it is blurred (Pech-Pacheco et al. 2000)."""
    values = grey(image)
    inner = values[1:-1, 1:-1]
    around = values[:-2, 1:-1] + values[2:, 1:-1] + values[1:-1, :-2] + values[1:-1, 2:]
    return float((around - 4 * inner).var())


def contrast(image: Image) -> float:
    """Return the standard deviation of the grey image, 0 for a black image."""
    return float(grey(image).std())


def difference_hash(image: Image) -> str:
    """Return 64 bits as 16 hexadecimal digits: the signs of horizontal differences in a 9 x 8 thumbnail.

    Near duplicates differ in few bits. The library ImageHash does the same, and brings SciPy and PyWavelets with it.
    """
    small = np.asarray(PIL.Image.fromarray(image).convert("L").resize((9, 8), PIL.Image.Resampling.LANCZOS))
    bits = small[:, 1:] > small[:, :-1]
    return np.packbits(bits).tobytes().hex()
