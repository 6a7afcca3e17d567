"""Read index maps: PNGs that hold class numbers as palette indices or grey values."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from magicseg.core.errors import DataError
from magicseg.images.reading import MAX_PIXELS, UnreadableImage, image_bytes, opened, without_texts

_MODES = frozenset({"1", "L", "P", "I;16", "I;16B", "I"})
_BIT_DEPTH = 24  # offset of a PNG's bit depth
_HINT = "is it complete? write it again"


def read_index_map(
    path: Path, *, size: tuple[int, int] | None = None, like: str = "the image"
) -> NDArray[np.integer]:
    """Return the stored values of a PNG of palette indices or grey values, 1 to 16 bits.

    Args: size: required (height, width). like: the object that has this size, for the error.
    Returns: integers (height, width).
    Raises: DataError that names the file, if it cannot be read, is damaged, holds colours or has another size.
    """
    try:
        content = without_texts(image_bytes(path))
        # The decoder does not check checksums. `verify` does, but the image must be opened again after it.
        with opened(content, MAX_PIXELS, ("PNG",)) as image:
            if size is not None and image.size != (size[1], size[0]):
                raise DataError(
                    f"{path}: the labels are {image.width} x {image.height} pixels, {like} {size[1]} x {size[0]}",
                    hint="labels belong to the pixels as stored; store an image without an EXIF orientation",
                )
            if image.mode not in _MODES:
                raise DataError(
                    f"{path}: a PNG of mode {image.mode} holds colours, not class numbers",
                    hint="write class numbers as grey values or palette indices, 1 to 16 bits",
                )
            image.verify()
        with opened(content, MAX_PIXELS, ("PNG",)) as image:
            values = np.asarray(image)
            scaled = image.mode == "L"
    except UnreadableImage as error:
        raise DataError(f"{path}: this PNG cannot be read: {error.message}", hint=_HINT) from error
    except (DataError, MemoryError):
        raise
    except Exception as error:  # decoders of damaged files raise errors of any kind
        raise DataError(f"{path}: this PNG cannot be read: {error}", hint=_HINT) from error
    if values.dtype == bool:
        return values.astype(np.uint8)
    bits = content[_BIT_DEPTH]
    # Pillow scales grey values of 2 and 4 bits to 0 to 255.
    return values // (255 // (2**bits - 1)) if scaled and bits < 8 else values
