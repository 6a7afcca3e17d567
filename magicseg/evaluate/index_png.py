"""PNG files that hold class numbers."""

import io
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from magicseg.errors import DataError

_INDEX_MODES = ("P", "L", "I;16", "I")


def read_index_png(path: Path) -> NDArray[np.integer]:
    """The numbers in a PNG of palette indices or grey values, 8 or 16 bits.

    Returns: integers (height, width).
    Raises: DataError for a file that cannot be read, is damaged, or holds colours.
    """
    try:
        content = path.read_bytes()
        # The decoder does not look at checksums; `verify` does nothing else, and spends the image.
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            image.verify()
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            if image.mode not in _INDEX_MODES:
                raise DataError(
                    f"{path}: a PNG of mode {image.mode} holds colours, not class numbers",
                    hint="write class numbers as grey values or palette indices, 8 or 16 bits",
                )
            return np.asarray(image)
    except (OSError, SyntaxError, ValueError, EOFError, zlib.error, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: this PNG cannot be read: {error}", hint="is it complete? write it again") from error
