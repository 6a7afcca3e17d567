"""Photographs with labels as training data: folders in the layouts of PASCAL VOC and COCO.

VOC: JPEGImages/NAME.jpg, SegmentationClass/NAME.png (or SegmentationClassAug, where it has all of the split),
ImageSets/Segmentation/SPLIT.txt. COCO: SPLIT/FILE and annotations/instances_SPLIT.json. Images are read as they are
stored, whatever their EXIF orientation says: the labels are drawn on the stored pixels. There is no counterfactual.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from magicseg.errors import DataError
from magicseg.evaluate.index_png import read_index_png
from magicseg.labels import BACKGROUND, IGNORE, Label, Vocabulary, load_vocabulary
from magicseg.labels.vocabulary import name_key
from magicseg.run.files import to_json

_VOC_IGNORE = 255
_SHOWN = 5

Pairs = tuple[list[NDArray[np.uint8]], None, list[NDArray[np.uint16]]]


def read_photograph(path: Path) -> NDArray[np.uint8]:
    """An image file as uint8 (height, width, 3), RGB; grey becomes three equal channels.

    Raises: DataError naming a file that is missing, cut short or no image.
    """
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{path}: this image cannot be read: {error}", hint="is it complete? copy it anew from the data set"
        ) from error


@dataclass(frozen=True)
class _Folder(ABC):
    """What both layouts share: samples are numbered in the order of the split's list, each a shard of its own."""

    path: Path
    split: str
    vocabulary: Vocabulary = field(repr=False)
    names: tuple[str, ...] = field(repr=False)

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
            with Image.open(self.image_path(name)) as image:
                sizes.add(image.size)
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
        images = [read_photograph(self.image_path(self.names[index])) for index in indices]
        masks = [self.mask(int(index), image.shape[:2]) for index, image in zip(indices, images, strict=True)]
        return images, None, masks

    def labels(self) -> NDArray[np.uint16]:
        """Ids of each image's labels, (images, most), 0 where it has fewer. Reads every label file."""
        found = []
        for index, name in enumerate(self.names):
            with Image.open(self.image_path(name)) as image:
                width, height = image.size
            ids = np.unique(self.mask(index, (height, width)))
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
    """PASCAL VOC's layout. Label files hold 0 for background, 1 to 20, and 255 for what is ignored.

    ``label_folder``: SegmentationClassAug (with the labels of SBD) where it has all of the split, else
    SegmentationClass.
    """

    label_folder: str = "SegmentationClass"

    @classmethod
    def open(cls, path: Path, split: str) -> Self:
        """Read the split's list and look whether all its files are there.

        Raises: DataError naming what is missing.
        """
        list_path = path / "ImageSets" / "Segmentation" / f"{split}.txt"
        try:
            names = tuple(list_path.read_text(encoding="utf-8").split())
        except (OSError, UnicodeDecodeError) as error:
            lists = sorted(each.stem for each in list_path.parent.glob("*.txt"))
            raise DataError(
                f"{list_path}: the list of images cannot be read: {error}",
                hint=f"splits here: {', '.join(lists)}" if lists else "give the folder VOCdevkit/VOC2012",
            ) from error
        if not names:
            raise DataError(f"{list_path}: the list names no image")
        if len(set(names)) < len(names):
            raise DataError(f"{list_path}: the list has images twice")
        augmented = all((path / "SegmentationClassAug" / f"{name}.png").is_file() for name in names)
        label_folder = "SegmentationClassAug" if augmented else "SegmentationClass"
        folder = cls(path, split, load_vocabulary("voc20"), names, label_folder)
        _require([folder.image_path(name) for name in names], list_path)
        _require([folder.label_path(name) for name in names], list_path)
        return folder

    def image_path(self, name: str) -> Path:
        """Where an image lies."""
        return self.path / "JPEGImages" / f"{name}.jpg"

    def label_path(self, name: str) -> Path:
        """Where its label file lies."""
        return self.path / self.label_folder / f"{name}.png"

    def mask(self, index: int, size: tuple[int, int]) -> NDArray[np.uint16]:
        """Ids of `vocabulary`, 0 for background, IGNORE: uint16 of ``size`` (height, width)."""
        path = self.label_path(self.names[index])
        values = read_index_png(path).astype(np.uint16)
        if values.shape != size:
            raise DataError(f"{path}: the labels are {_size(values.shape)} pixels, the image {_size(size)}")
        values[values == _VOC_IGNORE] = IGNORE
        unknown = values[(values > len(self.vocabulary)) & (values != IGNORE)]
        if unknown.size:
            raise DataError(f"{path}: holds {unknown[0]}, which is no class of PASCAL VOC")
        return values

    def identity(self) -> dict[str, Any]:
        """Names, SHA-256 of all label files, names and sizes of the images."""
        labels = hashlib.sha256()
        for name in self.names:
            labels.update(hashlib.sha256(self.label_path(name).read_bytes()).digest())
        images = _listing(self.image_path(name) for name in self.names)
        return {"layout": "voc", "split": self.split, "labels": labels.hexdigest(), "images": images}


@dataclass(frozen=True)
class CocoFolder(_Folder):
    """COCO's layout of instances, drawn as a class map.

    Crowds become IGNORE. Instances are drawn over them and over each other from the largest to the smallest, so that
    a small one stays visible on a large one: the order in which detectron2's visualiser draws them.
    """

    # Each image's annotations as JSON text: compact, and quick to hand to a reading process.
    annotations: tuple[bytes, ...] = field(default=(), repr=False)
    digest: str = ""

    @classmethod
    def open(cls, path: Path, split: str) -> Self:
        """Read the instances and look whether all images are there.

        Raises: DataError naming what is missing or malformed.
        """
        file = path / "annotations" / f"instances_{split}.json"
        try:
            content = file.read_bytes()
            document = json.loads(content)
            categories = sorted(document["categories"], key=lambda category: int(category["id"]))
            ids = {category["id"]: place for place, category in enumerate(categories, start=1)}
            images = sorted(document["images"], key=lambda image: int(image["id"]))
            drawn: defaultdict[int, list[Mapping[str, Any]]] = defaultdict(list)
            for annotation in document["annotations"]:
                drawn[annotation["image_id"]].append(
                    {
                        "id": annotation["id"],
                        "label": ids[annotation["category_id"]],
                        "crowd": bool(annotation.get("iscrowd", 0)),
                        "area": annotation["area"],
                        "segmentation": annotation["segmentation"],
                    }
                )
            known = load_vocabulary("coco80")
            by_key = {name_key(label.name): label.synonyms for label in known.labels}
            labels = tuple(
                Label(id=place, name=category["name"], synonyms=by_key.get(name_key(category["name"]), ()))
                for place, category in enumerate(categories, start=1)
            )
            names = tuple(str(image["file_name"]) for image in images)
            annotations = tuple(json.dumps(drawn[image["id"]]).encode() for image in images)
        except OSError as error:
            there = sorted(each.stem.removeprefix("instances_") for each in file.parent.glob("instances_*.json"))
            raise DataError(
                f"{file}: the annotations cannot be read: {error.strerror or error}",
                hint=f"splits here: {', '.join(there)}" if there else "give the folder with annotations/ in it",
            ) from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(
                f"{file}: these are no COCO instances: {type(error).__name__}: {error}", hint="is it complete?"
            ) from error
        if not names:
            raise DataError(f"{file}: there is no image in it")
        vocabulary = Vocabulary(name=f"coco-{split}", labels=labels, source=str(file))
        folder = cls(path, split, vocabulary, names, annotations, hashlib.sha256(content).hexdigest())
        _require([folder.image_path(name) for name in names], file)
        return folder

    def image_path(self, name: str) -> Path:
        """Where an image lies."""
        return self.path / self.split / name

    def mask(self, index: int, size: tuple[int, int]) -> NDArray[np.uint16]:
        """Ids of `vocabulary`, 0 for background, IGNORE: uint16 of ``size`` (height, width)."""
        mask = np.full(size, BACKGROUND, np.uint16)
        drawn = json.loads(self.annotations[index])
        for each in sorted(drawn, key=lambda each: (not each["crowd"], -each["area"], each["id"])):
            inside = self._inside(each, size, self.names[index])
            mask[inside] = IGNORE if each["crowd"] else each["label"]
        return mask

    def _inside(self, annotation: Mapping[str, Any], size: tuple[int, int], name: str) -> NDArray[np.bool_]:
        from pycocotools import mask as coco

        height, width = size
        shape = annotation["segmentation"]
        what = f"{self.path / 'annotations'}/instances_{self.split}.json: annotation {annotation['id']} of {name}"
        if isinstance(shape, Mapping) and list(shape.get("size", [])) != [height, width]:
            raise DataError(
                f"{what} is drawn on {shape.get('size')} (height, width), the image has {[height, width]}"
            )
        try:
            if isinstance(shape, Mapping):
                rle = coco.frPyObjects(shape, height, width) if isinstance(shape["counts"], list) else shape
            else:
                rle = coco.merge(coco.frPyObjects(shape, height, width))
            return np.asarray(coco.decode(rle), bool)
        except Exception as error:  # the library raises bare Exception
            raise DataError(f"{what} cannot be drawn: {error}") from error

    def labels(self) -> NDArray[np.uint16]:
        """Ids of each image's labels, (images, most), 0 where it has fewer. Crowds do not count."""
        each = (json.loads(text) for text in self.annotations)
        return padded(np.unique([one["label"] for one in row if not one["crowd"]]).astype(np.uint16) for row in each)

    def identity(self) -> dict[str, Any]:
        """SHA-256 of the annotation file, names and sizes of the images."""
        images = _listing(self.image_path(name) for name in self.names)
        return {"layout": "coco", "split": self.split, "labels": self.digest, "images": images}


def _require(paths: list[Path], listed_in: Path) -> None:
    missing = [path for path in paths if not path.is_file()]
    if missing:
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise DataError(
            f"{listed_in}: {len(missing)} of {len(paths)} files in this list are missing: "
            f"{', '.join(map(str, missing[:_SHOWN]))}{more}",
            hint="is the data set complete? or choose another split",
        )


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]}"
