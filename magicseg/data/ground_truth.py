"""Reading benchmarks in their official layouts: images, and ground truth in the numbers of the vocabulary."""

import hashlib
import math
import struct
import warnings
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from magicseg.core.documents import read_bytes
from magicseg.core.errors import DataError
from magicseg.core.text import first_acting, printable
from magicseg.data.coco_class_maps import InstanceFile, read_instances
from magicseg.data.protocol import Labels, Protocol
from magicseg.images.index_maps import read_index_map
from magicseg.images.listing import files_below
from magicseg.images.reading import MAX_PIXELS, read_image
from magicseg.labels import BACKGROUND

_SHOWN = 5
_NO_CLASS = -1
_TABLE = 1 << 16


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """One split of one benchmark on disk; all its files are there (`open_data_set` looked).

    ``label_paths`` are one per image, or all the same file. ``upright``: images are read as their EXIF orientation
    turns them, since the labels are drawn so; else as stored.
    """

    protocol: Protocol
    folder: Path
    names: tuple[str, ...]
    image_paths: tuple[Path, ...]
    label_paths: tuple[Path, ...]
    layout: Labels
    instances: Callable[[str], NDArray[np.uint16]] | None = None
    upright: bool = False

    @cached_property
    def place(self) -> dict[str, int]:
        """Where each name stands in ``names``."""
        return {name: number for number, name in enumerate(self.names)}

    @cached_property
    def meaning(self) -> "Meaning":
        """What the numbers in the label files mean."""
        return Meaning(self.layout, self.protocol)

    def image(self, name: str) -> NDArray[np.uint8]:
        """Return the image, uint8 (H, W, 3), RGB. Raises: DataError."""
        return read_image(self.image_paths[self.place[name]], upright=self.upright)

    def truth(self, name: str) -> NDArray[np.uint16]:
        """The ground truth, uint16 (H, W): vocabulary numbers, or the protocol's ``ignore_value``.

        Where background is no class, its pixels are ignored. Raises: DataError that names the file.
        """
        path = self.label_paths[self.place[name]]
        numbers = self.instances(name) if self.instances else self.meaning.of_truth(read_labels(path), path)
        if self.protocol.counts_background:
            return numbers
        return np.where(numbers == BACKGROUND, np.uint16(self.protocol.ignore_value), numbers)

    def pair(self, name: str) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
        """Image and ground truth. Raises: DataError, also where their sizes disagree."""
        image, truth = self.image(name), self.truth(name)
        if image.shape[:2] != truth.shape:
            place = self.place[name]
            raise DataError(
                f"{self.image_paths[place]}: the image is {size_text(image)} pixels, its label in "
                f"{self.label_paths[place]} {size_text(truth)}",
                hint=f"are both of {self.protocol.name}? unpack them again",
            )
        return image, truth

    def digest(self) -> str:
        """SHA-256 over the names and the sizes in bytes of all files: cheap, and enough to tell one set from another.

        What was really read is digested by content, in the results.
        """
        content = hashlib.sha256(self.layout.path.encode())
        for name, *paths in zip(self.names, self.image_paths, self.label_paths, strict=True):
            content.update("\0".join([name, *(str(path.stat().st_size) for path in paths), "\n"]).encode())
        return content.hexdigest()


class Meaning:
    """The numbers of one layout of label files, turned into the vocabulary's."""

    def __init__(self, layout: Labels, protocol: Protocol) -> None:
        self.layout = layout
        count = len(protocol.labels)
        self.class_values = layout.class_values or tuple(range(1, count + 1))
        table = np.full(_TABLE, BACKGROUND if layout.other_values == "background" else _NO_CLASS, np.int32)
        table[list(layout.background_values)] = BACKGROUND
        table[list(self.class_values)] = np.arange(1, count + 1)
        table[list(layout.ignored_values)] = protocol.ignore_value
        self._table = table

    def of(self, values: NDArray[np.integer]) -> NDArray[np.int32]:
        """Vocabulary numbers by pixel, the protocol's ignore value, or -1 for what the layout does not know."""
        if values.size and (values.min() < 0 or values.max() >= _TABLE):
            inside = (values >= 0) & (values < _TABLE)
            return np.where(inside, self._table[np.where(inside, values, 0)], _NO_CLASS).astype(np.int32)
        found: NDArray[np.int32] = self._table[values]
        return found

    def of_truth(self, values: NDArray[np.integer], path: Path) -> NDArray[np.uint16]:
        """The same for a label file. Raises: DataError where a number has no meaning."""
        numbers = self.of(values)
        wrong = numbers == _NO_CLASS
        if wrong.any():
            raise DataError(
                f"{path}: {wrong.sum()} pixels have values that are no class, the first {values[wrong][0]}; "
                f"classes are {spans(self.class_values)}",
                hint="is this a label file of the benchmark, unchanged?",
            )
        return numbers.astype(np.uint16)


def data_folder(protocol: Protocol, data: Path) -> Path:
    """The benchmark's own folder: DATA itself, or, where DATA holds several data sets, the one in it."""
    there = [data / name for name in protocol.folders if (data / name).is_dir()]
    if not there or any((data / _filled(images, protocol, "x")).parent.is_dir() for images in protocol.images):
        return data
    return there[0]


def open_data_set(protocol: Protocol, folder: Path, *, with_images: bool = True) -> DataSet:
    """Find the split's images and labels, and check that none is missing. No image is decoded.

    Raises: DataError that says which files are missing, how many, and where they come from.
    """
    if not folder.is_dir():
        raise DataError(
            f"{folder}: there is no such folder", hint=f"give the folder of {protocol.name}: {protocol.origin}"
        )
    layout = _layout_there(protocol, folder)
    images = _kind_there(protocol, folder)
    index: InstanceFile | None = None
    if "{name}" not in layout.path:
        path = folder / _filled(layout.path, protocol, None)
        index = read_instances(path, protocol.labels)
        names = read_list_of(protocol, folder) if protocol.split_lists else list(index.names)
        unknown = [name for name in names if name not in index.images]
        if unknown:
            raise DataError(f"{path}: there is no image {unknown[0]} in it ({len(unknown)} of {len(names)} are not)")
        label_paths = [path] * len(names)
    else:
        names = (
            read_list_of(protocol, folder) if protocol.split_lists else _names_of(protocol, folder, images, layout)
        )
        label_paths = [folder / _filled(layout.path, protocol, name) for name in names]
    image_paths = [folder / _filled(images, protocol, name) for name in names]
    where = f"is {folder} the whole of {protocol.name}? {protocol.origin}"
    require(list(dict.fromkeys(label_paths)), where)
    if with_images:
        require(image_paths, where)
    upright = with_images and index is not None and index.drawn_upright(names, image_paths)
    return DataSet(
        protocol=protocol,
        folder=folder,
        names=tuple(names),
        image_paths=tuple(image_paths),
        label_paths=tuple(label_paths),
        layout=layout,
        instances=index.truth if index is not None else None,
        upright=upright,
    )


def read_list_of(protocol: Protocol, folder: Path) -> list[str]:
    """The image names of the protocol's list: of the first of its files that is there. Raises: DataError."""
    candidates = [folder / _filled(item, protocol, None) for item in protocol.split_lists]
    path = next((item for item in candidates if item.is_file()), candidates[0])
    return read_list(path, hint=f"give the folder that has the benchmark's own layout: {protocol.origin}")


def read_list(path: Path, *, hint: str) -> list[str]:
    """Return the names in a file, one a line.

    Raises: DataError for an unreadable, empty or repetitive list, or a name that leads out of the data set.
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
        if first_acting(name) or Path(name).is_absolute() or ".." in Path(name).parts:
            raise DataError(f"{path}:{number}: {printable(name, 100)!r} is not the name of an image in the data set")
    if not first_line:
        raise DataError(f"{path}: the list names no image")
    return list(first_line)


def read_labels(path: Path) -> NDArray[np.integer]:
    """The numbers in a label file, integers (H, W): a PNG, or a MATLAB file's ``LabelMap``. Raises: DataError."""
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
        raise DataError(f"{path}: its LabelMap is not a picture of whole numbers")
    return numbers.astype(np.int64)


def require(paths: Sequence[Path], hint: str) -> None:
    """Raises: DataError that counts the files that are not there and names the first few."""
    missing = [path for path in paths if not path.is_file()]
    if missing:
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise DataError(
            f"{len(missing)} of {len(paths)} files are missing: {', '.join(map(str, missing[:_SHOWN]))}{more}",
            hint=hint,
        )


def spans(values: Sequence[int]) -> str:
    """Numbers for people: ``0 to 20``, ``7, 8, 11 to 13``."""
    found: list[list[int]] = []
    for value in sorted(values):
        if found and value == found[-1][1] + 1:
            found[-1][1] = value
        else:
            found.append([value, value])
    return ", ".join(f"{a} to {b}" if b > a + 1 else f"{a}, {b}" if b > a else str(a) for a, b in found)


def size_text(array: NDArray[np.integer]) -> str:
    """Width and height of an array (height, width, ...)."""
    height, width = array.shape[:2]
    return f"{width} x {height}"


def _filled(pattern: str, protocol: Protocol, name: str | None) -> str:
    filled = pattern.replace("{split}", protocol.split)
    return filled if name is None else filled.replace("{name}", name)


def _found(folder: Path, pattern: str) -> list[str]:
    """The names of all files that fit a pattern, sorted; the name may have folders in it."""
    before, _, after = pattern.partition("{name}")
    start, _, stem = before.rpartition("/")
    top = folder / start
    if not top.is_dir():
        return []
    return sorted(
        item[len(stem) : len(item) - len(after)]
        for item in files_below(top)
        if item.startswith(stem) and item.endswith(after)
    )


def _is_there(folder: Path, pattern: str) -> bool:
    return bool(_found(folder, pattern)) if "{name}" in pattern else (folder / pattern).is_file()


def _layout_there(protocol: Protocol, folder: Path) -> Labels:
    if len(protocol.labels_in) == 1 and protocol.split_lists:
        return protocol.labels_in[0]  # what is missing is named file by file
    for layout in protocol.labels_in:
        if _is_there(folder, _filled(layout.path, protocol, None)):
            return layout
    wanted = ", or ".join(str(folder / _filled(layout.path, protocol, "*")) for layout in protocol.labels_in)
    raise DataError(f"{folder}: there are no labels of {protocol.name}: {wanted}", hint=protocol.origin)


def _kind_there(protocol: Protocol, folder: Path) -> str:
    if len(protocol.images) == 1:
        return protocol.images[0]
    for pattern in protocol.images:
        if _is_there(folder, _filled(pattern, protocol, None)):
            return pattern
    return protocol.images[0]


def _names_of(protocol: Protocol, folder: Path, images: str, layout: Labels) -> list[str]:
    """The names of all images of the split, and of labels that have lost theirs."""
    names = _found(folder, _filled(images, protocol, None))
    known = set(names)
    # A label that is made of another, NAME_something, is of an image that is there.
    lost = [
        name
        for name in _found(folder, _filled(layout.path, protocol, None))
        if name not in known and name.rpartition("_")[0] not in known
    ]
    if not names:
        wanted = ", or ".join(str(folder / _filled(pattern, protocol, "*")) for pattern in protocol.images)
        raise DataError(f"{folder}: there are no images of {protocol.name}: {wanted}", hint=protocol.origin)
    return sorted([*names, *lost])
