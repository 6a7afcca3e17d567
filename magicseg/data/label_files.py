"""Read label files: maps of class numbers as PNG or MATLAB files, what their numbers mean, and lists of images."""

import math
import struct
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from magicseg.core.documents import read_bytes
from magicseg.core.errors import DataError
from magicseg.core.text import first_control_character, printable
from magicseg.data.protocol import Labels, Protocol
from magicseg.images.index_maps import read_index_map
from magicseg.images.reading import MAX_PIXELS
from magicseg.labels import BACKGROUND

_SHOWN = 5
_NO_CLASS = -1
_TABLE = 1 << 16


class Meaning:
    """A table from the numbers of one layout of label files to the vocabulary's ids."""

    def __init__(self, layout: Labels, protocol: Protocol) -> None:
        self.layout = layout
        self._hint = f"is this a label file of {protocol.name}, unchanged? {protocol.origin}"
        count = len(protocol.labels)
        self.class_values = layout.class_values or tuple(range(1, count + 1))
        table = np.full(_TABLE, BACKGROUND if layout.other_values == "background" else _NO_CLASS, np.int32)
        table[list(layout.background_values)] = BACKGROUND
        table[list(self.class_values)] = np.arange(1, count + 1)
        table[list(layout.ignored_values)] = protocol.ignore_value
        self._table = table

    def of(self, values: NDArray[np.integer]) -> NDArray[np.int32]:
        """Return vocabulary ids by pixel, int32; the protocol's ignore value; -1 for unknown numbers."""
        if values.size and (values.min() < 0 or values.max() >= _TABLE):
            inside = (values >= 0) & (values < _TABLE)
            return np.where(inside, self._table[np.where(inside, values, 0)], _NO_CLASS).astype(np.int32)
        found: NDArray[np.int32] = self._table[values]
        return found

    def of_truth(self, values: NDArray[np.integer], path: Path) -> NDArray[np.uint16]:
        """Return the ids of a label file, uint16. Raises DataError if a number is unknown."""
        numbers = self.of(values)
        wrong = numbers == _NO_CLASS
        if wrong.any():
            raise DataError(
                f"{path}: {wrong.sum()} pixels have values that are no class, the first {values[wrong][0]}; "
                f"classes are {spans(self.class_values)}",
                hint=self._hint,
            )
        return numbers.astype(np.uint16)


def read_labels(path: Path) -> NDArray[np.integer]:
    """Return the numbers in a PNG or in a MATLAB file's ``LabelMap``, integers (H, W).

    Raises DataError if the file is missing or damaged.
    """
    if path.suffix != ".mat":
        return read_index_map(path)
    from scipy.io import loadmat, whosmat
    from scipy.io.matlab import MatReadError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            claimed = [math.prod(shape) for name, shape, _ in whosmat(path) if name == "LabelMap"]
            if max(claimed, default=0) > MAX_PIXELS:
                raise ValueError(f"its LabelMap has {max(claimed):,} values; the limit is {MAX_PIXELS:,}")
            values = loadmat(path, variable_names=["LabelMap"])["LabelMap"]
    except (
        OSError,
        MatReadError,
        LookupError,
        ArithmeticError,
        ValueError,
        TypeError,
        NotImplementedError,
        EOFError,
        zlib.error,
        struct.error,
        Warning,
    ) as error:
        raise DataError(
            f"{path}: this label file cannot be read: {type(error).__name__}: {error}",
            hint="is it complete? unpack it again",
        ) from error
    numbers = np.asarray(values)
    if numbers.ndim != 2 or numbers.dtype.kind not in "iuf" or (numbers != numbers.astype(np.int64)).any():
        raise DataError(f"{path}: its LabelMap is not a two-dimensional array of whole numbers")
    return numbers.astype(np.int64)


def read_list(path: Path, *, hint: str) -> list[str]:
    """Return the names in a file, one per line.

    Raises DataError if the file is unreadable or empty, or a name is repeated or points outside the data set.
    """
    try:
        lines = read_bytes(path).decode().splitlines()
    except (FileNotFoundError, DataError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: the list of images cannot be read: {error}", hint=hint) from error
    first_line: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        name = line.strip()
        if name and first_line.setdefault(name, number) != number:
            raise DataError(f"{path}:{number}: image {name} is already on line {first_line[name]}")
        if first_control_character(name) or Path(name).is_absolute() or ".." in Path(name).parts:
            raise DataError(f"{path}:{number}: {printable(name, 100)!r} is not the name of an image in the data set")
    if not first_line:
        raise DataError(f"{path}: the list names no image")
    return list(first_line)


def require(paths: Sequence[Path], hint: str) -> None:
    """Raise DataError if files are missing. It counts them and names the first few."""
    missing = [path for path in paths if not path.is_file()]
    if missing:
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise DataError(
            f"{len(missing)} of {len(paths)} files are missing: {', '.join(map(str, missing[:_SHOWN]))}{more}",
            hint=hint,
        )


def spans(values: Sequence[int]) -> str:
    """Format numbers as ranges: ``0 to 20``, ``7, 8, 11 to 13``."""
    found: list[list[int]] = []
    for value in sorted(values):
        if found and value == found[-1][1] + 1:
            found[-1][1] = value
        else:
            found.append([value, value])
    return ", ".join(f"{a} to {b}" if b > a + 1 else f"{a}, {b}" if b > a else str(a) for a, b in found)


def size_text(array: NDArray[np.integer]) -> str:
    """Format the size of an array (height, width, ...) as ``width x height``."""
    height, width = array.shape[:2]
    return f"{width} x {height}"
