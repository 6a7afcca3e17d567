"""What can be told of an image by itself: its hash, sharpness and contrast."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pictures

from magicseg.backends import Image


def grey(image: Image) -> NDArray[np.float32]:
    """Luminance (height, width), 0 to 255."""
    return np.asarray(Pictures.fromarray(image).convert("L"), dtype=np.float32)


def sharpness(image: Image) -> float:
    """Variance of the Laplacian of the grey image: low where it is blurred (Pech-Pacheco et al., ICPR 2000)."""
    values = grey(image)
    inner = values[1:-1, 1:-1]
    around = values[:-2, 1:-1] + values[2:, 1:-1] + values[1:-1, :-2] + values[1:-1, 2:]
    return float((around - 4 * inner).var())


def contrast(image: Image) -> float:
    """Standard deviation of the grey image; 0 for a black one."""
    return float(grey(image).std())


def difference_hash(image: Image) -> str:
    """64 bits as 16 hexadecimal digits: which of neighbouring cells of a 9 x 8 thumbnail is darker.

    Near duplicates differ in few bits. The library ImageHash does the same, and brings SciPy and PyWavelets with it.
    """
    small = np.asarray(Pictures.fromarray(image).convert("L").resize((9, 8), Pictures.Resampling.LANCZOS))
    bits = small[:, 1:] > small[:, :-1]
    return np.packbits(bits).tobytes().hex()
