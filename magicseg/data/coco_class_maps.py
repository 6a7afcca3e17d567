"""Draw COCO instances as class maps, by one of two rules for overlapping instances and crowd regions.

`FILE_ORDER` is for benchmarks, `SMALL_ON_TOP` for training folders in COCO's layout (``coco:`` in ``train.sources``).
Label maps are never drawn: those of COCO-Stuff come as PNG files, whose ids mmsegmentation's converter renumbers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from magicseg.core.errors import DataError, LabelError
from magicseg.data.coco import CocoFile, CocoImage, draw, drawn_upright, read_coco
from magicseg.labels import BACKGROUND, IGNORE, Vocabulary


@dataclass(frozen=True)
class DrawingRule:
    """How instances that overlap are drawn, and what the pixels of a crowd region become.

    ``small_on_top``: draw crowds first, then the others from the largest annotated area to the smallest, ids breaking
    ties; else draw in the order of the file. ``ignore_crowds``: crowds become IGNORE; else pixels of their class.
    """

    small_on_top: bool
    ignore_crowds: bool

    def in_order(self, instances: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Return an image's instances in the order of drawing; a later one covers earlier ones."""
        if not self.small_on_top:
            return list(instances)
        return sorted(instances, key=lambda each: (not each["crowd"], -each["area"], each["id"]))


FILE_ORDER = DrawingRule(small_on_top=False, ignore_crowds=False)
"""The order of cocostuffapi's ``cocoSegmentationToSegmentationMap`` with ``includeCrowd=True`` (its default is False)
and ``checkUniquePixelLabel=False``, by which scores on instances are computed."""

SMALL_ON_TOP = DrawingRule(small_on_top=True, ignore_crowds=True)
"""The order in which detectron2's ``Visualizer.overlay_instances`` draws masks that come without boxes: by area,
largest first, so that a small instance stays visible on a large one. detectron2's training code draws no class maps.
Crowd regions are ignored, as in COCO's own evaluation of instances (``iscrowd``)."""


@dataclass(frozen=True)
class InstanceMaps:
    """The class maps of a file of instances.

    ``images``: by name. ``numbers``: vocabulary ids by the category's index in the file.
    """

    file: CocoFile = field(repr=False)
    images: Mapping[str, CocoImage] = field(repr=False)
    numbers: tuple[int, ...] = field(repr=False)
    rule: DrawingRule = FILE_ORDER

    @property
    def names(self) -> tuple[str, ...]:
        """The images' names, sorted: file names without their extension."""
        return tuple(sorted(self.images))

    def truth(self, name: str) -> NDArray[np.uint16]:
        """Return vocabulary ids by pixel, uint16 (H, W); BACKGROUND outside all instances; IGNORE by the rule."""
        image = self.images[name]
        ids = np.full((image.height, image.width), BACKGROUND, np.uint16)
        for each in self.rule.in_order(image.instances()):
            ids[draw(each["segmentation"], image.height, image.width)] = self._id(each)
        return ids

    def labels(self, name: str) -> NDArray[np.uint16]:
        """Return the ids of an image's instances, uint16 (n,), ascending, without ignored ones. Nothing is drawn."""
        ids = {self._id(each) for each in self.images[name].instances()}
        return np.array(sorted(ids - {IGNORE}), np.uint16)

    def drawn_upright(self, names: Sequence[str], paths: Sequence[Path]) -> bool:
        """Return whether these images are annotated upright, see `magicseg.data.coco.drawn_upright`."""
        return drawn_upright(self.file, [self.images[name] for name in names], paths)

    def _id(self, instance: Mapping[str, Any]) -> int:
        return IGNORE if instance["crowd"] and self.rule.ignore_crowds else self.numbers[instance["category"] - 1]


def read_instances(path: Path, vocabulary: Vocabulary) -> InstanceMaps:
    """Read an ``instances_*.json`` for a benchmark. Categories are the vocabulary's labels of the same names.

    Raises DataError if the file is missing or damaged, or the vocabulary lacks a category.
    """
    try:
        file = read_coco(path)
        numbers = tuple(vocabulary.by_name(name).id for name in file.categories)
    except FileNotFoundError as error:
        raise DataError(f"{path}: this file of instances is missing", hint="unpack the annotations") from error
    except LabelError as error:
        raise DataError(f"{path}: {error}", hint=error.hint) from error
    names = [str(PurePosixPath(each.file_name).with_suffix("")) for each in file.images]
    return InstanceMaps(file, by_name(file, names), numbers)


def by_name(file: CocoFile, names: Sequence[str]) -> dict[str, CocoImage]:
    """Return the images of a file by these names, one per image. Raises DataError if two have the same name."""
    images: dict[str, CocoImage] = {}
    for name, image in zip(names, file.images, strict=True):
        if images.setdefault(name, image) is not image:
            raise DataError(f"{file.path}: {images[name].file_name} and {image.file_name} have the same name")
    return images
