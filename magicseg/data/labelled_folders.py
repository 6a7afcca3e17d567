"""Photographs with labels as training data: folders in the layouts of PASCAL VOC and COCO.

VOC: JPEGImages/NAME.jpg, SegmentationClass/NAME.png (or SegmentationClassAug, where it has all of the split),
ImageSets/Segmentation/SPLIT.txt. COCO: SPLIT/FILE and annotations/instances_SPLIT.json. There is no counterfactual.

Images are read as they are stored, whatever their EXIF orientation says: labels are drawn on the stored pixels. Where
COCO's annotations are drawn on turned images, images are turned (`magicseg.data.coco.drawn_upright`).
"""

import hashlib
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from magicseg.core.documents import read_bytes
from magicseg.core.errors import DataError, LabelError
from magicseg.core.files import to_json
from magicseg.core.text import first_acting, printable
from magicseg.data.coco import CocoImage, draw, drawn_upright, read_coco
from magicseg.images.index_maps import read_index_map
from magicseg.images.listing import ENDINGS, files_below, is_system_name
from magicseg.images.reading import read_image, read_size
from magicseg.labels import BACKGROUND, IGNORE, Label, Vocabulary, load_vocabulary
from magicseg.labels.vocabulary import name_key

_VOC_IGNORE = 255
_SHOWN = 5
_READERS = 8

Pairs = tuple[list[NDArray[np.uint8]], None, list[NDArray[np.uint16]]]


@dataclass(frozen=True)
class _Folder(ABC):
    """Base class of both layouts: samples are numbered in the order of the split's list, one sample per shard.

    ``upright``: images are turned as their EXIF orientation says.
    """

    path: Path
    split: str
    vocabulary: Vocabulary = field(repr=False)
    names: tuple[str, ...] = field(repr=False)
    upright: bool = False

    shard_size: ClassVar[int] = 1
    allowed: ClassVar[None] = None

    @property
    def indices(self) -> NDArray[np.int64]:
        """All images of the split."""
        return np.arange(len(self.names))

    @property
    def image_size(self) -> int | None:
        """Side of the images where all are square and alike, else None; from the files' headers."""
        sizes: set[tuple[int, int]] = set()
        for name in self.names:
            stored = read_size(self.image_path(name))
            sizes.add((stored.width, stored.height))
            if len(sizes) > 1:
                return None
        width, height = sizes.pop()
        return width if width == height else None

    @abstractmethod
    def image_path(self, name: str) -> Path:
        """Where an image lies."""

    @abstractmethod
    def mask(self, index: int, size: tuple[int, int]) -> NDArray[np.uint16]:
        """Ids of `vocabulary`, 0 for background, IGNORE: uint16 of ``size`` (height, width)."""

    def read(self, indices: NDArray[np.int64]) -> Pairs:
        """Images uint8 (H, W, 3), no counterfactuals, masks uint16 (H, W), in the order of ``indices``.

        Raises: DataError naming the file that cannot be read or does not fit.
        """
        images = [read_image(self.image_path(self.names[index]), upright=self.upright) for index in indices]
        masks = [self.mask(int(index), image.shape[:2]) for index, image in zip(indices, images, strict=True)]
        return images, None, masks

    def labels(self) -> NDArray[np.uint16]:
        """Ids of each image's labels, (images, most), 0 where it has fewer. Reads every label file."""
        found = []
        for index, name in enumerate(self.names):
            stored = read_size(self.image_path(name))
            ids = np.unique(self.mask(index, (stored.height, stored.width)))
            found.append(ids[(ids != BACKGROUND) & (ids != IGNORE)])
        return padded(found)

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What tells these data from others, as JSON values; where they lie does not count."""


def padded(rows: Iterable[NDArray[np.uint16]]) -> NDArray[np.uint16]:
    """Rows of different length as one array, filled up with 0."""
    rows = list(rows)
    table = np.zeros((len(rows), max([1, *map(len, rows)])), np.uint16)
    for place, row in enumerate(rows):
        table[place, : len(row)] = row
    return table


def _listing(paths: Iterable[Path]) -> str:
    """SHA-256 of the names and sizes of files."""
    return hashlib.sha256(to_json([[path.name, path.stat().st_size] for path in paths])).hexdigest()


@dataclass(frozen=True)
class VocFolder(_Folder):
    """PASCAL VOC's layout. Label files hold 0 for background, the ids of ``vocabulary``, and 255 for what is ignored.

    ``label_folder``: SegmentationClassAug (with the labels of SBD) where it has all of the split, else
    SegmentationClass. ``images``: file names by name, where they are not NAME.jpg.
    """

    label_folder: str = "SegmentationClass"
    images: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def open(cls, path: Path, split: str, vocabulary: Vocabulary) -> Self:
        """Read the split's list and look whether all its files are there.

        Args: vocabulary: the labels of the ids in the label files; the layout does not contain them.
        Raises: DataError naming what is missing.
        """
        list_path = path / "ImageSets" / "Segmentation" / f"{split}.txt"
        names = _read_names(list_path)
        augmented = all((path / "SegmentationClassAug" / f"{name}.png").is_file() for name in names)
        label_folder = "SegmentationClassAug" if augmented else "SegmentationClass"
        images = _other_endings(path / "JPEGImages", names)
        folder = cls(path, split, vocabulary, names, label_folder=label_folder, images=images)
        _require([folder.image_path(name) for name in names], list_path)
        _require([folder.label_path(name) for name in names], list_path)
        return folder

    def image_path(self, name: str) -> Path:
        """Where an image lies."""
        return self.path / "JPEGImages" / self.images.get(name, f"{name}.jpg")

    def label_path(self, name: str) -> Path:
        """Where its label file lies."""
        return self.path / self.label_folder / f"{name}.png"

    def mask(self, index: int, size: tuple[int, int]) -> NDArray[np.uint16]:
        """Ids of `vocabulary`, 0 for background, IGNORE: uint16 of ``size`` (height, width)."""
        path = self.label_path(self.names[index])
        values = read_index_map(path, size=size).astype(np.uint16)
        values[values == _VOC_IGNORE] = IGNORE
        unknown = values[(values > len(self.vocabulary)) & (values != IGNORE)]
        if unknown.size:
            raise DataError(
                f"{path}: holds {unknown[0]}, which is not an id of the vocabulary {self.vocabulary.name} "
                f"(1 to {len(self.vocabulary)})",
                hint="name the source's vocabulary in the order of its ids: {voc: ..., split: ..., labels: FILE}",
            )
        return values

    def check_ids(self) -> None:
        """Decode all label files. Raises: DataError that names one with an id that the vocabulary lacks."""

        def check(index: int) -> None:
            stored = read_size(self.label_path(self.names[index]))
            self.mask(index, (stored.height, stored.width))

        with ThreadPoolExecutor(_READERS) as pool:
            deque(pool.map(check, range(len(self.names))), maxlen=0)

    def identity(self) -> dict[str, Any]:
        """Return names, SHA-256 of all label files, names and sizes of images; labels too, if they are not VOC's."""
        labels = hashlib.sha256()
        for name in self.names:
            labels.update(hashlib.sha256(self.label_path(name).read_bytes()).digest())
        images = _listing(self.image_path(name) for name in self.names)
        classes = {} if is_vocs(self.vocabulary) else {"classes": list(self.vocabulary.names)}
        return {"layout": "voc", "split": self.split, "labels": labels.hexdigest(), "images": images, **classes}


@dataclass(frozen=True)
class CocoFolder(_Folder):
    """COCO's layout of instances, drawn as a class map.

    Crowds become IGNORE. Instances are drawn over them and over each other from the largest to the smallest, so that
    a small one stays visible on a large one: the order in which detectron2's visualiser draws them.
    """

    annotated: tuple[CocoImage, ...] = field(default=(), repr=False)
    digest: str = ""

    @classmethod
    def open(cls, path: Path, split: str) -> Self:
        """Read the instances, and check that all images exist and have the annotated size.

        Raises: DataError naming what is missing or malformed.
        """
        file = path / "annotations" / f"instances_{split}.json"
        try:
            content = read_coco(file)
            known = {name_key(label.name): label.synonyms for label in load_vocabulary("coco80").labels}
            labels = tuple(
                Label(id=place, name=name, synonyms=known.get(name_key(name), ()))
                for place, name in enumerate(content.categories, start=1)
            )
            vocabulary = Vocabulary(name=f"coco-{split}", labels=labels, source=str(file))
        except FileNotFoundError as error:
            there = sorted(each.stem.removeprefix("instances_") for each in file.parent.glob("instances_*.json"))
            raise DataError(
                f"{file}: there is no such file (COCO annotations)",
                hint=f"splits here: {', '.join(there)}" if there else "give the folder with annotations/ in it",
            ) from error
        except LabelError as error:
            raise DataError(f"{file}: {error}", hint=error.hint or "give every category a different name") from error
        names = tuple(image.file_name for image in content.images)
        folder = cls(path, split, vocabulary, names, annotated=content.images, digest=content.digest)
        paths = [folder.image_path(name) for name in names]
        _require(paths, file)
        return replace(folder, upright=drawn_upright(content, content.images, paths))

    def image_path(self, name: str) -> Path:
        """Where an image lies."""
        return self.path / self.split / name

    def mask(self, index: int, size: tuple[int, int]) -> NDArray[np.uint16]:
        """Ids of `vocabulary`, 0 for background, IGNORE: uint16 of ``size`` (height, width)."""
        image = self.annotated[index]
        if size != (image.height, image.width):
            raise DataError(
                f"{self.image_path(image.file_name)}: the image is {size[1]} x {size[0]} pixels, its annotations "
                f"{image.width} x {image.height}",
                hint="it has changed since training began; copy it again",
            )
        mask = np.full(size, BACKGROUND, np.uint16)
        for each in sorted(image.instances(), key=lambda each: (not each["crowd"], -each["area"], each["id"])):
            mask[draw(each["segmentation"], *size)] = IGNORE if each["crowd"] else each["category"]
        return mask

    def labels(self) -> NDArray[np.uint16]:
        """Ids of each image's labels, (images, most), 0 where it has fewer. Crowds do not count."""
        return padded(
            np.unique([each["category"] for each in image.instances() if not each["crowd"]]).astype(np.uint16)
            for image in self.annotated
        )

    def identity(self) -> dict[str, Any]:
        """SHA-256 of the annotation file, names and sizes of the images."""
        images = _listing(self.image_path(name) for name in self.names)
        turned = {"upright": True} if self.upright else {}
        return {"layout": "coco", "split": self.split, "labels": self.digest, "images": images, **turned}


def is_vocs(vocabulary: Vocabulary) -> bool:
    """Return whether a vocabulary has the labels of PASCAL VOC in VOC's order."""
    return list(map(name_key, vocabulary.names)) == list(map(name_key, load_vocabulary("voc20").names))


def _read_names(path: Path) -> tuple[str, ...]:
    """Return the images' names in a split's list. Raises: DataError."""
    try:
        names = tuple(read_bytes(path).decode().split())
    except (FileNotFoundError, DataError, UnicodeDecodeError) as error:
        lists = sorted(each.stem for each in path.parent.glob("*.txt") if not is_system_name(each.name))
        raise DataError(
            f"{path}: the list of images cannot be read: {error}",
            hint=f"splits here: {', '.join(lists)}" if lists else "give the folder VOCdevkit/VOC2012",
        ) from error
    if not names:
        raise DataError(f"{path}: the list names no image")
    if len(set(names)) < len(names):
        raise DataError(f"{path}: the list has images twice")
    for name in names:
        if first_acting(name) or Path(name).is_absolute() or ".." in Path(name).parts:
            raise DataError(f"{path}: {printable(name, 100)!r} is not the name of an image in this data set")
    return names


def _other_endings(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Return the file names of images that are not NAME.jpg but NAME.JPG, NAME.png, ..., by name.

    Raises: DataError for a name that several such files have.
    """
    there: dict[str, list[str]] = {}
    found = {}
    for name in names:
        if (folder / f"{name}.jpg").is_file():
            continue
        if not there and folder.is_dir():
            for file in files_below(folder):
                if Path(file).suffix.lower() in ENDINGS:
                    there.setdefault(str(Path(file).with_suffix("")), []).append(file)
        files = there.get(name, [])
        if len(files) > 1:
            raise DataError(f"{folder}: {', '.join(sorted(files))} all have the image name {name}")
        if files:
            found[name] = files[0]
    return found


def _require(paths: list[Path], listed_in: Path) -> None:
    missing = [path for path in paths if not path.is_file()]
    if missing:
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise DataError(
            f"{listed_in}: {len(missing)} of {len(paths)} files in this list are missing: "
            f"{', '.join(map(str, missing[:_SHOWN]))}{more}",
            hint="is the data set complete? or choose another split",
        )
