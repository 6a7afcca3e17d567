"""Training samples from labelled data sets: folders in the layout of PASCAL VOC or COCO, and every benchmark.

Files are found, read and checked by `magicseg.data.ground_truth`, as for evaluation. Samples have no counterfactual.

Images are read as stored, without their EXIF rotation, because labels are drawn on the stored pixels. Images are
rotated only if COCO's annotations are drawn on rotated images (`magicseg.data.coco.drawn_upright`).
"""

import hashlib
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from magicseg.core.digests import json_sha256
from magicseg.core.errors import DataError, LabelError
from magicseg.data.coco import read_coco
from magicseg.data.coco_class_maps import SMALL_ON_TOP, InstanceMaps, by_name
from magicseg.data.ground_truth import DataSet, open_data_set
from magicseg.data.label_files import read_list, require
from magicseg.data.protocol import Labels, Protocol, load_protocol
from magicseg.images.listing import ENDINGS, files_below, is_system_name
from magicseg.images.reading import read_size
from magicseg.labels import BACKGROUND, IGNORE, Label, Vocabulary, load_vocabulary
from magicseg.labels.vocabulary import name_key

_READERS = 8

Pairs = tuple[list[NDArray[np.uint8]], None, list[NDArray[np.uint16]]]


@dataclass(frozen=True)
class LabelledSamples:
    """One split of a labelled data set as `magicseg.data.dataset.Samples`, in the order of its names.

    ``layout``: "voc", "coco" or "protocol". ``facts``: JSON values that belong to the identity.
    """

    data: DataSet = field(repr=False)
    vocabulary: Vocabulary = field(repr=False)
    layout: str
    facts: Mapping[str, Any] = field(default_factory=dict, repr=False)

    shard_size: ClassVar[int] = 1
    allowed: ClassVar[None] = None
    validated: ClassVar[bool] = False  # no pairs

    @property
    def indices(self) -> NDArray[np.int64]:
        """All images of the split."""
        return np.arange(len(self.data.names))

    @property
    def image_size(self) -> int | None:
        """Side of the images in pixels if all are square and of one size, else None. Only headers are read."""
        sizes: set[tuple[int, int]] = set()
        for path in self.data.image_paths:
            stored = read_size(path)
            sizes.add((stored.width, stored.height))
            if len(sizes) > 1:
                return None
        width, height = sizes.pop()
        return width if width == height else None

    def read(self, indices: NDArray[np.int64]) -> Pairs:
        """Return images uint8 (H, W, 3), no counterfactuals, and masks uint16 (H, W), in the order of ``indices``.

        Masks hold ids of ``vocabulary``, BACKGROUND and IGNORE. Raises DataError, naming the file, if it cannot be
        read or the sizes differ.
        """
        pairs = [self.data.pair(self.data.names[index]) for index in indices]
        return [image for image, _ in pairs], None, [self._mask(truth) for _, truth in pairs]

    def labels(self) -> NDArray[np.uint16]:
        """Return the ids of each image's labels, (images, most), 0 where it has fewer. Reads every label file."""
        instances = self.data.instances
        rows = map(instances.labels if instances else self._labels_in_map, self.data.names)
        return padded(rows)

    def check_labels(self) -> None:
        """Decode all label files. Raises DataError with the file's name if an id has no label."""
        with ThreadPoolExecutor(_READERS) as pool:
            deque(pool.map(self.data.truth, self.data.names), maxlen=0)

    def identity(self) -> dict[str, Any]:
        """Return JSON values that tell this data from other data: digests of labels and image sizes, no paths."""
        if self.data.instances:
            labels = self.data.instances.file.digest
        else:
            content = hashlib.sha256()
            for path in self.data.label_paths:
                content.update(hashlib.sha256(path.read_bytes()).digest())
            labels = content.hexdigest()
        sizes = [[path.name, path.stat().st_size] for path in self.data.image_paths]
        return {
            "layout": self.layout,
            "split": self.data.protocol.split,
            "labels": labels,
            "images": json_sha256(sizes),
            **({"upright": True} if self.data.upright else {}),
            **self.facts,
        }

    def _mask(self, truth: NDArray[np.uint16]) -> NDArray[np.uint16]:
        ignored = self.data.protocol.ignore_value
        return truth if ignored == IGNORE else np.where(truth == ignored, np.uint16(IGNORE), truth)

    def _labels_in_map(self, name: str) -> NDArray[np.uint16]:
        ids = np.unique(self._mask(self.data.truth(name)))
        shown: NDArray[np.uint16] = ids[(ids != BACKGROUND) & (ids != IGNORE)]
        return shown


def padded(rows: Iterable[NDArray[np.uint16]]) -> NDArray[np.uint16]:
    """Return rows of different length as one array, filled up with 0."""
    rows = list(rows)
    table = np.zeros((len(rows), max([1, *map(len, rows)])), np.uint16)
    for place, row in enumerate(rows):
        table[place, : len(row)] = row
    return table


def voc_samples(folder: Path, split: str, vocabulary: Vocabulary) -> LabelledSamples:
    """Open a folder in the layout of PASCAL VOC (the protocol ``voc21``) with the labels of ``vocabulary``.

    Label files hold 0 for background, ids of ``vocabulary``, and 255 for ignored pixels. They are in
    SegmentationClassAug (with the labels of SBD) if it has the whole split, else in SegmentationClass. Images may
    have other extensions than .jpg.

    Raises DataError, naming the files, if some are missing.
    """
    voc = load_protocol("voc21")
    (plain,) = voc.labels_in
    augmented = Labels(path="SegmentationClassAug/{name}.png")
    protocol = voc.for_labelled_folder(
        vocabulary,
        name="voc",
        split=split,
        labels_in=(augmented, plain),
        origin="a source's `labels:` names the ids in their order: {voc: ..., split: ..., labels: FILE}",
    )
    path = folder / protocol.split_list
    lists = sorted(each.stem for each in path.parent.glob("*.txt") if not is_system_name(each.name))
    names = read_list(path, hint=f"splits here: {', '.join(lists)}" if lists else "give the folder VOCdevkit/VOC2012")

    def labels_of(layout: Labels) -> list[Path]:
        return [folder / layout.path.replace("{name}", name) for name in names]

    layout = augmented if all(each.is_file() for each in labels_of(augmented)) else plain
    images = _images(folder / "JPEGImages", names)
    for paths in (images, labels_of(layout)):
        require(paths, f"is the data set complete? or choose another split than that of {path}")
    data = DataSet(
        protocol=protocol,
        folder=folder,
        names=tuple(names),
        image_paths=tuple(images),
        label_paths=tuple(labels_of(layout)),
        layout=layout,
    )
    return LabelledSamples(
        data, vocabulary, "voc", {} if is_vocs(vocabulary) else {"classes": list(vocabulary.names)}
    )


def coco_samples(folder: Path, split: str) -> LabelledSamples:
    """Open a folder in the layout of COCO: SPLIT/FILE and annotations/instances_SPLIT.json, which names its labels.

    Samples are in the order of the images' ids. Instances are drawn by the rule `SMALL_ON_TOP`.

    Raises DataError if files are missing, the annotations are malformed, or an image has another size than they say.
    """
    path = folder / "annotations" / f"instances_{split}.json"
    try:
        file = read_coco(path)
        known = {name_key(label.name): label.synonyms for label in load_vocabulary("coco80").labels}
        labels = tuple(
            Label(id=place, name=name, synonyms=known.get(name_key(name), ()))
            for place, name in enumerate(file.categories, start=1)
        )
        vocabulary = Vocabulary(name=f"coco-{split}", labels=labels, source=str(path))
    except FileNotFoundError as error:
        there = sorted(each.stem.removeprefix("instances_") for each in path.parent.glob("instances_*.json"))
        raise DataError(
            f"{path}: there is no such file (COCO annotations)",
            hint=f"splits here: {', '.join(there)}" if there else "give the folder with annotations/ in it",
        ) from error
    except LabelError as error:
        raise DataError(f"{path}: {error}", hint=error.hint or "give every category a different name") from error
    names = [image.file_name for image in file.images]
    images = [folder / split / name for name in names]
    require(images, f"{path} lists them: is the data set complete?")
    maps = InstanceMaps(file, by_name(file, names), tuple(label.id for label in labels), SMALL_ON_TOP)
    protocol = load_protocol("coco-object").for_labelled_folder(vocabulary, name="coco", split=split)
    data = DataSet(
        protocol=protocol,
        folder=folder,
        names=tuple(names),
        image_paths=tuple(images),
        label_paths=(path,) * len(names),
        layout=next(each for each in protocol.labels_in if "{name}" not in each.path),
        instances=maps,
        upright=maps.drawn_upright(names, images),
    )
    return LabelledSamples(data, vocabulary, "coco")


def protocol_samples(protocol: Protocol, folder: Path) -> LabelledSamples:
    """Open a benchmark's data for training: the protocol's split, with the very ground truth that evaluation scores.

    So background that is not a class of the benchmark is ignored, as mmsegmentation ignores it
    (``reduce_zero_label``), and COCO's instances are drawn by the rule `FILE_ORDER`.

    Raises DataError as `open_data_set` does.
    """
    data = open_data_set(protocol, folder)
    reading = {
        "labels_in": data.layout.model_dump(mode="json"),
        "classes": list(protocol.labels.names),
        "counts_background": protocol.counts_background,
    }
    digest = json_sha256(reading)
    return LabelledSamples(data, protocol.labels, "protocol", {"protocol": protocol.name, "reading": digest})


def is_vocs(vocabulary: Vocabulary) -> bool:
    """Return whether a vocabulary has the labels of PASCAL VOC in VOC's order."""
    return list(map(name_key, vocabulary.names)) == list(map(name_key, load_vocabulary("voc20").names))


def _images(folder: Path, names: Sequence[str]) -> list[Path]:
    """Return the path of each image: NAME.jpg if it exists, else NAME.JPG, NAME.png, ...

    Raises DataError if several such files have the same name.
    """
    there: dict[str, list[str]] = {}
    found = []
    for name in names:
        path = folder / f"{name}.jpg"
        if not path.is_file():
            if not there and folder.is_dir():
                for file in files_below(folder):
                    if Path(file).suffix.lower() in ENDINGS:
                        there.setdefault(str(Path(file).with_suffix("")), []).append(file)
            files = there.get(name, [])
            if len(files) > 1:
                raise DataError(f"{folder}: {', '.join(sorted(files))} all have the image name {name}")
            path = folder / files[0] if files else path
        found.append(path)
    return found
