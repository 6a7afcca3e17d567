"""Convert COCO instances to class maps with the ids of a benchmark's vocabulary."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from magicseg.core.errors import DataError, LabelError
from magicseg.data.coco import CocoFile, CocoImage, draw, drawn_upright, read_coco
from magicseg.labels import BACKGROUND, Vocabulary


@dataclass(frozen=True)
class InstanceFile:
    """A file of instances. ``images``: by name; ``numbers``: the vocabulary's, by the category's place from 1."""

    file: CocoFile = field(repr=False)
    images: Mapping[str, CocoImage] = field(repr=False)
    numbers: tuple[int, ...] = field(repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        """The images' names, sorted: file names without their ending."""
        return tuple(sorted(self.images))

    def truth(self, name: str) -> NDArray[np.uint16]:
        """Return vocabulary numbers by pixel, uint16 (H, W), background where no instance is.

        Instances are drawn in the file's order, so that a later one lies above an earlier one; crowds are pixels of
        their class like any others. COCO-Stuff's own tools draw maps in this order (cocostuffapi,
        ``cocoSegmentationToSegmentationMap``, with ``includeCrowd``).
        """
        image = self.images[name]
        numbers = np.full((image.height, image.width), BACKGROUND, np.uint16)
        for instance in image.instances():
            inside = draw(instance["segmentation"], image.height, image.width)
            numbers[inside] = self.numbers[instance["category"] - 1]
        return numbers

    def drawn_upright(self, names: Sequence[str], paths: Sequence[Path]) -> bool:
        """Return whether these images are annotated upright, see `magicseg.data.coco.drawn_upright`."""
        return drawn_upright(self.file, [self.images[name] for name in names], paths)


def read_instances(path: Path, vocabulary: Vocabulary) -> InstanceFile:
    """Read an ``instances_*.json``. Categories are the vocabulary's labels of the same names.

    Raises: DataError for a file that is missing or damaged, or a category that the vocabulary lacks.
    """
    try:
        file = read_coco(path)
        numbers = tuple(vocabulary.by_name(name).id for name in file.categories)
    except FileNotFoundError as error:
        raise DataError(f"{path}: this file of instances is missing", hint="unpack the annotations") from error
    except LabelError as error:
        raise DataError(f"{path}: {error}", hint=error.hint) from error
    images: dict[str, CocoImage] = {}
    for image in file.images:
        name = str(PurePosixPath(image.file_name).with_suffix(""))
        if images.setdefault(name, image) is not image:
            raise DataError(f"{path}: {images[name].file_name} and {image.file_name} have the same name")
    return InstanceFile(file, images, numbers)
