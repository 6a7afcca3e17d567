"""Scoring predicted class maps (index PNGs) against a benchmark's label files; no model runs here."""

import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from magicseg.errors import DataError
from magicseg.evaluate.metrics import Scores, ValueOutOfRange, confusion_matrix
from magicseg.evaluate.protocol import Protocol
from magicseg.labels import BACKGROUND

_INDEX_MODES = ("P", "L", "I;16", "I")
_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class ScoreResult:
    """The scores of one set of predictions on one benchmark. ``classes`` names the rows of the matrix."""

    benchmark: str
    images: int
    classes: tuple[str, ...]
    scores: Scores

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON values."""
        return {"benchmark": self.benchmark, "images": self.images, **self.scores.to_dict(self.classes)}


def score(protocol: Protocol, data_dir: Path, predictions_dir: Path) -> ScoreResult:
    """Score the predictions of all images in the benchmark's list.

    A prediction is a PNG ``NAME.png`` of the label's size that holds, as palette index or grey value, the numbers
    that the label files use. Every pixel that counts needs a class: the benchmark's ignore value is allowed only
    where the label ignores too.

    Raises: DataError that names the file that is missing, damaged, of the wrong size or out of range.
    """
    for folder, what in ((data_dir, "the data set"), (predictions_dir, "the predictions")):
        if not folder.is_dir():
            raise DataError(f"{folder}: there is no such folder", hint=f"give the folder of {what}")
    names = _read_list(data_dir / protocol.split_list)
    labels = [data_dir / protocol.label_folder / f"{name}{protocol.label_suffix}" for name in names]
    predictions = [predictions_dir / f"{name}.png" for name in names]
    _require(labels, f"is {data_dir} the whole data set of {protocol.name}?")
    _require(predictions, f"every image of {data_dir / protocol.split_list} needs a prediction NAME.png")

    classes = len(protocol.classes)
    total = np.zeros((classes, classes), np.int64)
    for label, prediction in zip(labels, predictions, strict=True):
        total += _count(protocol, label, prediction)
    return ScoreResult(benchmark=protocol.name, images=len(names), classes=protocol.classes, scores=Scores(total))


def _count(protocol: Protocol, label_path: Path, prediction_path: Path) -> NDArray[np.int64]:
    """The confusion matrix of one image."""
    truth, prediction = read_index_png(label_path), read_index_png(prediction_path)
    if truth.shape != prediction.shape:
        raise DataError(
            f"{prediction_path}: the prediction is {_size(prediction)} pixels, its label {_size(truth)}",
            hint="predict at the image's own size, or resize to it with nearest neighbour",
        )
    if not protocol.counts_background:
        truth = np.where(truth == BACKGROUND, protocol.ignore_value, truth)
    try:
        return confusion_matrix(
            truth, prediction, len(protocol.classes), protocol.ignore_value, first=protocol.first_value
        )
    except ValueOutOfRange as error:
        if error.where == "truth":
            raise DataError(f"{label_path}: {error}", hint=f"is this a label file of {protocol.name}?") from error
        if error.value == BACKGROUND:
            hint = f"background is not a class in {protocol.name}: a prediction must choose among the objects"
        elif error.value == protocol.ignore_value:
            hint = "every pixel that counts needs a class; a prediction cannot leave it open"
        else:
            hint = f"predictions hold the numbers of the label files of {protocol.name}, as they are"
        raise DataError(f"{prediction_path}: {error}", hint=hint) from error


def read_index_png(path: Path) -> NDArray[np.integer]:
    """The numbers in a PNG of palette indices or grey values, 8 or 16 bits.

    Returns: integers (height, width).
    Raises: DataError for a file that cannot be read, is damaged, or holds colours.
    """
    try:
        content = path.read_bytes()
        # The decoder does not look at checksums; `verify` does nothing else, and spends the image.
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            image.verify()
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            if image.mode not in _INDEX_MODES:
                raise DataError(
                    f"{path}: a PNG of mode {image.mode} holds colours, not class numbers",
                    hint="write class numbers as grey values or palette indices, 8 or 16 bits",
                )
            return np.asarray(image)
    except (OSError, SyntaxError, ValueError, EOFError, zlib.error, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: this PNG cannot be read: {error}", hint="is it complete? write it again") from error


def _read_list(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: the list of images cannot be read: {error}",
            hint="give the folder that has the benchmark's own layout (for PASCAL VOC: VOCdevkit/VOC2012)",
        ) from error
    first_line: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        name = line.strip()
        if name and first_line.setdefault(name, number) != number:
            raise DataError(f"{path}:{number}: image {name} is already on line {first_line[name]}")
    if not first_line:
        raise DataError(f"{path}: the list names no image")
    return list(first_line)


def _require(paths: Sequence[Path], hint: str) -> None:
    missing = [path for path in paths if not path.is_file()]
    if missing:
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise DataError(
            f"{len(missing)} of {len(paths)} files are missing: {', '.join(map(str, missing[:_SHOWN]))}{more}",
            hint=hint,
        )


def _size(array: NDArray[np.integer]) -> str:
    height, width = array.shape
    return f"{width} x {height}"
