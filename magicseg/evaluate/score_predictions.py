"""Score predicted class maps (index PNGs) against a benchmark's label files. No model is run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from magicseg.core.errors import DataError
from magicseg.data.ground_truth import DataSet, open_data_set
from magicseg.data.label_files import require, size_text, spans
from magicseg.data.protocol import Protocol
from magicseg.evaluate.metrics.confusion import Scores, confusion_matrix
from magicseg.images.index_maps import read_index_map
from magicseg.labels import BACKGROUND


@dataclass(frozen=True, kw_only=True)
class ScoreResult:
    """The scores of one set of predictions on one benchmark. ``classes`` names the rows of the matrix."""

    benchmark: str
    images: int
    classes: tuple[str, ...]
    scores: Scores

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return {"benchmark": self.benchmark, "images": self.images, **self.scores.to_dict(self.classes)}


def score(protocol: Protocol, data_dir: Path, predictions_dir: Path) -> ScoreResult:
    """Score the predictions of all images in the benchmark's split.

    A prediction is a PNG of the label's size, ``NAME.png``, or named after the image as ``magicseg predict`` does
    (``NAME.jpg.png``). It holds, as palette index or grey value, the numbers that the label files use (for a file of
    instances: the vocabulary's, 0 for background). Every counted pixel needs a class; ignored values are allowed only
    on ignored pixels.

    Raises DataError, naming the file, if one is missing or damaged, or has a wrong size or an unknown value.
    """
    for folder, what in ((data_dir, "the data set"), (predictions_dir, "the predictions")):
        if not folder.is_dir():
            raise DataError(f"{folder}: there is no such folder", hint=f"give the folder of {what}")
    data = open_data_set(protocol, data_dir, with_images=False)
    predictions = [_prediction(predictions_dir, name, protocol) for name in data.names]
    require(predictions, f"every image of {protocol.name} in {data_dir} needs a prediction NAME.png")

    classes = len(protocol.classes)
    total = np.zeros((classes, classes), np.int64)
    for name, path in zip(data.names, predictions, strict=True):
        total += _count(data, name, path)
    return ScoreResult(
        benchmark=protocol.name, images=len(data.names), classes=protocol.classes, scores=Scores(total)
    )


def _prediction(folder: Path, name: str, protocol: Protocol) -> Path:
    """Return the file of an image's prediction. Raises: DataError if there is one by either name."""
    short = folder / f"{name}.png"
    endings = dict.fromkeys(images.rpartition("{name}")[2] for images in protocol.images)
    there = [path for path in (short, *(folder / f"{name}{ending}.png" for ending in endings)) if path.is_file()]
    if len(there) > 1:
        raise DataError(
            f"{folder}: {there[0].name} and {there[1].name} are both predictions of {name}", hint="remove one of them"
        )
    return there[0] if there else short


def _count(data: DataSet, name: str, path: Path) -> NDArray[np.int64]:
    """Return the confusion matrix of one image."""
    protocol = data.protocol
    truth, values = data.truth(name), read_index_map(path)
    if truth.shape != values.shape:
        raise DataError(
            f"{path}: the prediction is {size_text(values)} pixels, its label {size_text(truth)}",
            hint="predict at the image's own size, or resize to it with nearest neighbour",
        )
    numbers = data.meaning.of(values)
    counted = truth != protocol.ignore_value
    first, last = protocol.first_value, protocol.first_value + len(protocol.classes) - 1
    wrong = counted & ((numbers < first) | (numbers > last))
    if wrong.any():
        known = data.meaning.class_values
        if protocol.counts_background:
            known = (*known, *data.layout.background_values)
        value, number = int(values[wrong][0]), int(numbers[wrong][0])
        if number == BACKGROUND:
            hint = f"background is not a class in {protocol.name}: a prediction must choose among the objects"
        elif number == protocol.ignore_value:
            hint = "every pixel that counts needs a class; a prediction cannot leave it open"
        else:
            hint = f"predictions hold the numbers of the label files of {protocol.name}, as they are"
        found = f"{wrong.sum()} pixels have values that are no class, the first {value}"
        raise DataError(f"{path}: {found}; classes are {spans(known)}", hint=hint)
    numbers[~counted] = first
    return confusion_matrix(truth, numbers, len(protocol.classes), protocol.ignore_value, first=first)
