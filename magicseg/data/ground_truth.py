"""Read a labelled data set by its protocol: the images of one split, and ground truth in ids of the vocabulary.

Evaluation reads benchmarks here, and training its labelled sources (`magicseg.data.labelled_folders`).
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from magicseg.core.errors import DataError
from magicseg.data.coco_class_maps import InstanceMaps, read_instances
from magicseg.data.label_files import Meaning, read_labels, read_list, require, size_text
from magicseg.data.protocol import Labels, Protocol
from magicseg.images.listing import files_below
from magicseg.images.reading import read_image
from magicseg.labels import BACKGROUND


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """One split of a labelled data set on disk, all of whose files exist.

    ``names``, ``image_paths`` and ``label_paths`` are parallel; with ``instances`` all label paths are the same file.
    ``upright``: images are read after their EXIF rotation, because the labels are drawn on rotated images.
    """

    protocol: Protocol
    folder: Path
    names: tuple[str, ...]
    image_paths: tuple[Path, ...]
    label_paths: tuple[Path, ...]
    layout: Labels
    instances: InstanceMaps | None = None
    upright: bool = False

    batch: ClassVar[None] = None
    has_counterfactuals: ClassVar[bool] = False

    @cached_property
    def place(self) -> dict[str, int]:
        """The index of each name in ``names``."""
        return {name: number for number, name in enumerate(self.names)}

    @cached_property
    def meaning(self) -> "Meaning":
        """The meaning of the numbers in the label files."""
        return Meaning(self.layout, self.protocol)

    @property
    def ground_truth(self) -> str:
        """What the ground truth is made of."""
        return self.layout.text.replace("{split}", self.protocol.split)

    @property
    def layout_path(self) -> str:
        """The pattern of the label files, for provenance."""
        return self.layout.path

    def image(self, name: str) -> NDArray[np.uint8]:
        """Return the image, uint8 (H, W, 3), RGB. Raises: DataError."""
        return read_image(self.image_paths[self.place[name]], upright=self.upright)

    def truth(self, name: str) -> NDArray[np.uint16]:
        """Return the ground truth, uint16 (H, W): vocabulary ids, or the protocol's ``ignore_value``.

        If the protocol does not count background as a class, background pixels are ignored. Raises DataError, naming
        the file, if it is damaged or holds an unknown number.
        """
        path = self.label_paths[self.place[name]]
        numbers = self.instances.truth(name) if self.instances else self.meaning.of_truth(read_labels(path), path)
        if self.protocol.counts_background:
            return numbers
        return np.where(numbers == BACKGROUND, np.uint16(self.protocol.ignore_value), numbers)

    def pair(self, name: str) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
        """Return the image and its ground truth. Raises DataError if a file is damaged or their sizes differ."""
        image, truth = self.image(name), self.truth(name)
        if image.shape[:2] != truth.shape:
            place = self.place[name]
            raise DataError(
                f"{self.image_paths[place]}: the image is {size_text(image)} pixels, its label in "
                f"{self.label_paths[place]} {size_text(truth)}",
                hint="labels belong to the pixels as stored: images and labels must be of one release, unchanged",
            )
        return image, truth

    def with_counterfactual(self, name: str) -> tuple[NDArray[np.uint8], NDArray[np.uint16], None]:
        """Return the image, its ground truth, and no counterfactual. Raises as `pair` does."""
        return (*self.pair(name), None)

    def where(self, name: str) -> str:
        """Return the image's path."""
        return str(self.image_paths[self.place[name]])

    def about(self) -> dict[str, Any]:
        """Return the layout of the ground truth and the digest of the files."""
        return {"ground_truth": self.layout.text, "data": self.digest()}

    def digest(self) -> str:
        """Return the SHA-256 of all file names and sizes in bytes. No file is read.

        Results also hold a digest of the content that was read.
        """
        content = hashlib.sha256(self.layout.path.encode())
        for name, *paths in zip(self.names, self.image_paths, self.label_paths, strict=True):
            content.update("\0".join([name, *(str(path.stat().st_size) for path in paths), "\n"]).encode())
        return content.hexdigest()


def data_folder(protocol: Protocol, data: Path) -> Path:
    """Return the folder of the benchmark: a known subfolder of ``data`` if it exists, else ``data`` itself."""
    there = [data / name for name in protocol.folders if (data / name).is_dir()]
    if not there or any((data / _filled(images, protocol, "x")).parent.is_dir() for images in protocol.images):
        return data
    return there[0]


def open_data_set(protocol: Protocol, folder: Path, *, with_images: bool = True) -> DataSet:
    """Find the split's images and labels, and check that all files exist. No image is decoded.

    Raises DataError if files are missing; it counts and names them, and says where the data set comes from.
    """
    if not folder.is_dir():
        raise DataError(
            f"{folder}: there is no such folder", hint=f"give the folder of {protocol.name}: {protocol.origin}"
        )
    layout = _layout_there(protocol, folder)
    images = _kind_there(protocol, folder)
    index: InstanceMaps | None = None
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
        instances=index,
        upright=upright,
    )


def read_list_of(protocol: Protocol, folder: Path) -> list[str]:
    """Return the image names in the first of the protocol's lists that exists. Raises DataError if none does."""
    candidates = [folder / _filled(item, protocol, None) for item in protocol.split_lists]
    path = next((item for item in candidates if item.is_file()), candidates[0])
    return read_list(path, hint=f"give the folder that has the benchmark's own layout: {protocol.origin}")


def _filled(pattern: str, protocol: Protocol, name: str | None) -> str:
    filled = pattern.replace("{split}", protocol.split)
    return filled if name is None else filled.replace("{name}", name)


def _found(folder: Path, pattern: str) -> list[str]:
    """Return the names of all files that match a pattern, sorted. A name may contain folders."""
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
    """Return the names of all images of the split, and of all labels without an image."""
    names = _found(folder, _filled(images, protocol, None))
    known = set(names)
    # NAME_something is derived from the label NAME.
    lost = [
        name
        for name in _found(folder, _filled(layout.path, protocol, None))
        if name not in known and name.rpartition("_")[0] not in known
    ]
    if not names:
        wanted = ", or ".join(str(folder / _filled(pattern, protocol, "*")) for pattern in protocol.images)
        raise DataError(f"{folder}: there are no images of {protocol.name}: {wanted}", hint=protocol.origin)
    return sorted([*names, *lost])
