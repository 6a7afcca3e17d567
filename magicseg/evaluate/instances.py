"""COCO's instances as class maps: one file of polygons and run lengths for a whole split."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from magicseg.errors import BackendError, DataError, LabelError
from magicseg.labels import BACKGROUND, Vocabulary


@dataclass(frozen=True)
class InstanceFile:
    """The images of a file of instances. ``images``: height and width by name."""

    path: Path
    images: Mapping[str, tuple[int, int]]
    instances: Mapping[str, Sequence[tuple[int, Any]]] = field(repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        """The images' names, sorted: file names without their ending."""
        return tuple(sorted(self.images))

    def truth(self, name: str) -> NDArray[np.uint16]:
        """Vocabulary numbers by pixel, uint16 (H, W), background where no instance is.

        Instances are drawn in the file's order, so that a later one lies above an earlier one; crowds are pixels of
        their class like any others. COCO-Stuff's own tools draw maps in this order (cocostuffapi,
        ``cocoSegmentationToSegmentationMap``, with ``includeCrowd``).

        Raises: DataError for a shape that is none.
        """
        height, width = self.images[name]
        numbers = np.full((height, width), BACKGROUND, np.uint16)
        for number, segmentation in self.instances.get(name, ()):
            numbers[self._mask(segmentation, height, width, name)] = number
        return numbers

    def _mask(self, segmentation: Any, height: int, width: int, name: str) -> NDArray[np.bool_]:
        from pycocotools import mask as coco_mask

        if isinstance(segmentation, list) and all(_is_polygon(part) for part in segmentation):
            if not segmentation:
                return np.zeros((height, width), bool)
            runs = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
        elif _is_runs(segmentation, height, width):
            runs = coco_mask.frPyObjects(segmentation, height, width)
        elif _is_packed(segmentation, height, width):
            runs = segmentation
        else:
            raise DataError(f"{self.path}: image {name} has an instance that is neither polygons nor run lengths")
        try:
            return np.asarray(coco_mask.decode(runs), bool)
        except ValueError as error:
            raise DataError(f"{self.path}: image {name} has run lengths that fit no image: {error}") from error


def read_instances(path: Path, vocabulary: Vocabulary) -> InstanceFile:
    """Read an ``instances_*.json``. Categories are the vocabulary's labels of the same names.

    Raises: DataError for a damaged file, or a category that the vocabulary lacks.
    """
    try:
        import pycocotools.mask  # noqa: F401
    except ImportError as error:
        raise BackendError(
            f"instances need pycocotools: {error}", hint="install the model libraries: pip install 'magicseg[models]'"
        ) from error
    try:
        content = json.loads(path.read_bytes())
        numbers = {int(item["id"]): vocabulary.by_name(item["name"]).id for item in content["categories"]}
        names = {int(item["id"]): str(PurePosixPath(item["file_name"]).with_suffix("")) for item in content["images"]}
        sizes = {names[int(i["id"])]: (int(i["height"]), int(i["width"])) for i in content["images"]}
        instances: dict[str, list[tuple[int, Any]]] = {}
        for item in content["annotations"]:
            drawn = (numbers[int(item["category_id"])], item["segmentation"])
            instances.setdefault(names[int(item["image_id"])], []).append(drawn)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, LabelError):
            raise DataError(f"{path}: {error}", hint=error.hint) from error
        raise DataError(
            f"{path}: this file of instances cannot be read: {type(error).__name__}: {error}",
            hint="is it complete? unpack it again",
        ) from error
    if not sizes:
        raise DataError(f"{path}: there are no images in it")
    return InstanceFile(path, sizes, instances)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_polygon(part: Any) -> bool:
    return isinstance(part, list) and len(part) >= 6 and len(part) % 2 == 0 and all(map(_is_number, part))


def _fits(segmentation: Any, height: int, width: int) -> bool:
    return isinstance(segmentation, dict) and segmentation.get("size") == [height, width]


def _is_runs(segmentation: Any, height: int, width: int) -> bool:
    """Whether these are run lengths as a list of counts that fill the image."""
    counts = segmentation.get("counts") if _fits(segmentation, height, width) else None
    return (
        isinstance(counts, list)
        and all(isinstance(count, int) and count >= 0 for count in counts)
        and sum(counts) == height * width
    )


def _is_packed(segmentation: Any, height: int, width: int) -> bool:
    return _fits(segmentation, height, width) and isinstance(segmentation.get("counts"), str)
