"""Read COCO instances: one JSON file of polygons and run lengths (RLE) for a whole split.

Ids, sizes, coordinates and run lengths are checked when the file is read, before pycocotools draws any of them.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NotRequired

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json
from typing_extensions import TypedDict  # pydantic does not take that of typing before Python 3.12

from magicseg.core.documents import read_bytes
from magicseg.core.errors import BackendError, DataError
from magicseg.core.setting_errors import first_fault
from magicseg.core.text import first_control_character, printable
from magicseg.images.reading import MAX_PIXELS, read_size
from magicseg.labels.vocabulary_files import MAX_NAME

_FILE_BYTES = 8 << 30
_NUMBER_DIGITS = 18
# pycocotools allocates about 100 bytes for every pixel of a polygon's outline.
_OUTLINE_PIXELS = 2_000_000
_HINT = "is the file complete? export it again"
_READERS = 8

Number = int | float | str


class _ImageEntry(TypedDict):
    id: Number
    file_name: str
    height: Number
    width: Number


class _CategoryEntry(TypedDict):
    id: Number
    name: str


class _AnnotationEntry(TypedDict):
    id: NotRequired[Number]
    image_id: Number
    category_id: Number
    segmentation: Any
    iscrowd: NotRequired[int | bool | None]
    area: NotRequired[float | None]


class _InstancesFile(TypedDict):
    images: list[_ImageEntry]
    categories: list[_CategoryEntry]
    annotations: list[_AnnotationEntry]


_instances_file = TypeAdapter(_InstancesFile)


@dataclass(frozen=True)
class CocoImage:
    """An image as the file declares it: size in pixels, and instances as JSON text, which is quick to pickle."""

    file_name: str
    height: int
    width: int
    _instances: bytes = field(repr=False)

    def instances(self) -> list[dict[str, Any]]:
        """Return the instances in the file's order.

        Each has ``id``, ``category`` (index into the file's categories, from 1), ``crowd`` (bool), ``area`` (pixels)
        and ``segmentation`` (for `draw`).
        """
        found: list[dict[str, Any]] = json.loads(self._instances)
        return found


@dataclass(frozen=True)
class CocoFile:
    """A validated instances file. ``categories`` (names) and ``images`` are sorted by id."""

    path: Path
    categories: tuple[str, ...]
    images: tuple[CocoImage, ...] = field(repr=False)
    digest: str = ""


def read_coco(path: Path) -> CocoFile:
    """Read and check an ``instances_*.json``.

    Ids are integers; a string of digits is converted. Annotations without any polygon are skipped.

    Raises: FileNotFoundError; BackendError without pycocotools; DataError that names the annotation and image of the
    first fault: duplicate or dangling ids, sizes above the limit, coordinates that are not finite or far outside the
    image, polygons of fewer than three points, run lengths that do not fill the image.
    """
    try:
        import pycocotools.mask  # noqa: F401
    except ImportError as error:
        raise BackendError(
            f"instances need pycocotools: {error}", hint="install the model libraries: pip install 'magicseg[models]'"
        ) from error
    content = read_bytes(path, limit=_FILE_BYTES, hint=_HINT)
    try:
        return _checked(_parsed(content), path, hashlib.sha256(content).hexdigest())
    except _Fault as fault:
        raise DataError(f"{path}: {fault}", hint=_HINT) from fault


def draw(segmentation: Any, height: int, width: int) -> NDArray[np.bool_]:
    """Return the mask of an instance that `read_coco` has checked, bool (height, width)."""
    from pycocotools import mask as coco

    if isinstance(segmentation, Mapping):
        runs = {"size": [height, width], "counts": segmentation["counts"]}
        if not isinstance(runs["counts"], str):
            runs = coco.frPyObjects(runs, height, width)
    else:
        runs = coco.merge(coco.frPyObjects(segmentation, height, width))
    return np.asarray(coco.decode(runs), bool)


def drawn_upright(file: CocoFile, images: Sequence[CocoImage], paths: Sequence[Path]) -> bool:
    """Return whether the instances are drawn on images after their EXIF rotation.

    Annotation tools differ in this. A file is annotated upright if it declares, for some image, the height and width
    of the rotated pixels instead of the stored pixels. Only the image headers are read.

    Args: images: the images of the file that are used. paths: their paths.
    Raises: DataError that names an image whose size is not the declared one, or two images if the file mixes both.
    """
    upright = stored = None
    with ThreadPoolExecutor(_READERS) as pool:
        for image, path, size in zip(images, paths, pool.map(read_size, paths), strict=True):
            declared = image.height, image.width
            if declared == (size.height, size.width):
                if size.turned and size.height != size.width:
                    stored = stored or path
            elif size.turned and declared == (size.width, size.height):
                upright = upright or path
            else:
                raise DataError(
                    f"{path}: the image is {size.width} x {size.height} pixels; {file.path} says "
                    f"{image.width} x {image.height}",
                    hint="annotations and images must be of the same release",
                )
    if upright is not None and stored is not None:
        raise DataError(
            f"{file.path}: {upright} is annotated after its EXIF rotation, {stored} before it",
            hint="annotate all images the same way, or remove their EXIF orientation",
        )
    return upright is not None


class _Fault(Exception):
    """A fault in an entry of the file."""


def _parsed(content: bytes) -> _InstancesFile:
    try:
        return _instances_file.validate_python(from_json(content), strict=True)
    except ValidationError as error:
        raise _Fault(f"this is not a COCO instances file: {first_fault(error)}") from error
    except ValueError as error:
        raise _Fault(f"this is not JSON: {printable(str(error), 200)}") from error


def _checked(document: _InstancesFile, path: Path, digest: str) -> CocoFile:
    categories = sorted(document["categories"], key=lambda entry: _number(entry["id"]))
    entries = sorted(document["images"], key=lambda entry: _number(entry["id"]))
    if not entries:
        raise _Fault("the file lists no images")
    for category in categories:
        _check_name(category["name"])
    sizes = [_size(entry) for entry in entries]
    image_places, category_places = _by_id(entries, "image"), _by_id(categories, "category")
    instances: list[list[dict[str, Any]]] = [[] for _ in entries]
    for order, annotation in enumerate(document["annotations"]):
        image = None
        try:
            image = _place(image_places, annotation["image_id"], "image")
            category_place = _place(category_places, annotation["category_id"], "category")
            if annotation["segmentation"] == []:
                continue
            _check_shape(annotation["segmentation"], *sizes[image])
            area = annotation.get("area")
            if area is None or not math.isfinite(area):
                area = _area(annotation["segmentation"])
            instances[image].append(
                {
                    "id": _number(annotation.get("id", order)),
                    "category": category_place + 1,
                    "crowd": bool(annotation.get("iscrowd")),
                    "area": area,
                    "segmentation": annotation["segmentation"],
                }
            )
        except _Fault as fault:
            name = f"annotation {_shown(annotation.get('id', f'number {order + 1}'))}"
            where = "" if image is None else f" of {printable(entries[image]['file_name'], 200)}"
            raise _Fault(f"{name}{where}: {fault}") from fault
    images = [
        CocoImage(entry["file_name"], *size, json.dumps(own).encode())
        for entry, size, own in zip(entries, sizes, instances, strict=True)
    ]
    return CocoFile(path, tuple(category["name"] for category in categories), tuple(images), digest)


def _number(value: Number) -> int:
    """Return an id or a size as an integer, from a number or a string of digits."""
    if isinstance(value, str):
        digits = value.removeprefix("-")
        if digits.isascii() and digits.isdecimal() and len(digits) <= _NUMBER_DIGITS:
            return int(value)
    elif abs(value) < 10**_NUMBER_DIGITS and int(value) == value:
        return int(value)
    raise _Fault(f"{_shown(value)} is not a whole number")


def _by_id(entries: Sequence[_ImageEntry] | Sequence[_CategoryEntry], what: str) -> dict[int, int]:
    """Return a mapping from id to index of an entry."""
    places: dict[int, int] = {}
    for place, entry in enumerate(entries):
        number = _number(entry["id"])
        if places.setdefault(number, place) != place:
            raise _Fault(f"{what} {number} occurs twice")
    return places


def _place(places: Mapping[int, int], id_: Number, what: str) -> int:
    found = places.get(_number(id_))
    if found is None:
        raise _Fault(f"it refers to {what} {_shown(id_)}, which is not in the file")
    return found


def _check_name(name: str) -> None:
    acting = first_control_character(name)
    if acting:
        raise _Fault(f"the category name {printable(name, 60)!r} holds the control character {acting}")
    if not name.strip() or len(name) > MAX_NAME:
        raise _Fault(f"the category name {printable(name, 60)!r} does not have 1 to {MAX_NAME} characters")


def _size(entry: _ImageEntry) -> tuple[int, int]:
    """Check an image's declared size and file name, and return its height and width in pixels."""
    name = entry["file_name"]
    path = PurePosixPath(name)
    if first_control_character(name) or not path.name or path.is_absolute() or ".." in path.parts:
        raise _Fault(f"{printable(name, 200)!r} is not the name of a file in the data set's folder")
    height, width = _number(entry["height"]), _number(entry["width"])
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise _Fault(
            f"the image {printable(name, 200)} is declared as {width:,} x {height:,} pixels; "
            f"the limit is {MAX_PIXELS:,} pixels in all"
        )
    return height, width


def _check_shape(segmentation: Any, height: int, width: int) -> None:
    if isinstance(segmentation, list):
        for part in segmentation:
            _check_polygon(part, height, width)
        at_most = sum(map(len, segmentation)) / 2 * 3 * max(height, width)
        if at_most > _OUTLINE_PIXELS and sum(map(_outline, segmentation)) > _OUTLINE_PIXELS:
            raise _Fault(f"its outlines are longer than {_OUTLINE_PIXELS:,} pixels")
        return
    if not isinstance(segmentation, dict):
        raise _Fault("its segmentation is neither polygons nor run lengths")
    if segmentation.get("size") != [height, width]:
        size = _shown(segmentation.get("size"))
        raise _Fault(f"its size is {size} (height, width), but the image is declared as [{height}, {width}]")
    counts = segmentation.get("counts")
    runs = _unpacked(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not all(type(run) is int and run >= 0 for run in runs):
        raise _Fault("its run lengths cannot be read")
    if sum(runs) != height * width:
        raise _Fault("its run lengths do not fill the image")


def _check_polygon(part: Any, height: int, width: int) -> None:
    if not isinstance(part, list) or not set(map(type, part)) <= {int, float}:
        raise _Fault("one of its polygons is not a list of numbers")
    if len(part) < 6 or len(part) % 2:
        raise _Fault(f"one of its polygons has {len(part)} numbers; it needs three points or more, x and y in turn")
    try:
        finite = all(map(math.isfinite, part))
    except OverflowError:  # a whole number of more than 300 digits
        finite = False
    if not finite:
        raise _Fault("one of its polygons has coordinates that are not finite numbers")
    xs, ys = part[::2], part[1::2]
    if min(xs) < -width or max(xs) > 2 * width or min(ys) < -height or max(ys) > 2 * height:
        raise _Fault(f"one of its polygons lies far outside its image of {width} x {height} pixels")


def _outline(part: Sequence[float]) -> float:
    """Return the length of a polygon's outline in pixels, as pycocotools traces it."""
    xs, ys = part[::2], part[1::2]
    return sum(max(abs(xs[n] - xs[n - 1]), abs(ys[n] - ys[n - 1])) for n in range(len(xs)))


def _area(segmentation: Any) -> float:
    """Return the area of a validated shape in pixels."""
    if isinstance(segmentation, dict):
        counts = segmentation["counts"]
        runs = _unpacked(counts) if isinstance(counts, str) else counts
        return float(sum((runs or [])[1::2]))
    twice = 0.0
    for part in segmentation:
        xs, ys = part[::2], part[1::2]
        twice += abs(sum(xs[n - 1] * ys[n] - xs[n] * ys[n - 1] for n in range(len(xs))))
    return twice / 2


def _unpacked(text: str) -> list[int] | None:
    """Decode COCO's compressed run lengths; return None if they are damaged.

    A number is a sequence of characters with 5 bits each, the lowest bits first. From the fourth number on, it is the
    difference to the number two positions before (``rleFrString`` in COCO's maskApi.c, which checks nothing).
    """
    if not text or not text.isascii():
        return None
    codes = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64) - ord("0")
    ends = np.flatnonzero((codes & 32) == 0)
    if codes.min() < 0 or codes.max() > 63 or len(ends) == 0 or ends[-1] != len(codes) - 1:
        return None
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 7:
        return None
    shifts = 5 * (np.arange(len(codes)) - np.repeat(starts, lengths))
    numbers = np.add.reduceat((codes & 31) << shifts, starts)
    numbers -= np.where(codes[ends] & 16, np.int64(1) << (5 * lengths), 0)
    numbers[1::2], numbers[2::2] = np.cumsum(numbers[1::2]), np.cumsum(numbers[2::2])
    runs: list[int] = numbers.tolist()
    return runs


def _shown(value: Any) -> str:
    try:
        return printable(repr(value), 60)
    except ValueError:  # a whole number of thousands of digits
        return "a number of thousands of digits"
