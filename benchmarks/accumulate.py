"""Accumulating a confusion matrix is at least three times as fast as torchmetrics and `np.histogram2d`.

References, on the same maps of 512 x 512 pixels with a tenth of the pixels ignored: torchmetrics'
``multiclass_confusion_matrix``, with and without its checks; ``np.histogram2d``; a loop over classes with masks, for
intersection and union only; and one ``np.bincount`` of ``classes * truth + prediction``, as in most evaluation
scripts. The ratios are the references' seconds over magicseg's.

    python benchmarks/accumulate.py
    python benchmarks/accumulate.py --size 128 --repeats 3
"""

import argparse
from functools import partial

import numpy as np
import torch
from measure import medians, print_table
from numpy.typing import NDArray
from torchmetrics.functional.classification import multiclass_confusion_matrix

from magicseg.evaluate.metrics.confusion import confusion_matrix

IGNORE_VALUE = 255


def main() -> None:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--classes", type=int, nargs="+", default=[21, 81, 171])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows: list[list[object]] = []
    for classes in arguments.classes:
        truth, prediction = maps(classes, arguments.size)
        references = {
            "torchmetrics": partial(by_torchmetrics, truth, prediction, classes, checked=True),
            "torchmetrics, unchecked": partial(by_torchmetrics, truth, prediction, classes, checked=False),
            "np.histogram2d": partial(by_histogram, truth, prediction, classes),
            "loop over classes": partial(by_loop, truth, prediction, classes),
            "np.bincount": partial(by_bincount, truth, prediction, classes),
        }
        magicseg = partial(confusion_matrix, truth, prediction, classes, IGNORE_VALUE)
        for name, function in references.items():
            if name != "loop over classes" and not np.array_equal(function(), magicseg()):
                raise SystemExit(f"{name} gives other counts")
        seconds = medians({"magicseg": magicseg, **references}, arguments.repeats)
        for name in references:
            milliseconds = [seconds["magicseg"] * 1e3, seconds[name] * 1e3]
            rows.append([f"{classes} classes, {name}", *milliseconds, seconds[name] / seconds["magicseg"]])
    print_table(f"{arguments.size} x {arguments.size} pixels", ["reference", "magicseg, ms", "ms", "ratio"], rows)


def maps(classes: int, size: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return truth and prediction of blobs: about three quarters are equal, a tenth of the truth is ignored."""
    rng = np.random.default_rng(classes)
    side = size // 16
    truth = np.kron(rng.integers(0, classes, (side, side)), np.ones((16, 16), np.int64)).astype(np.uint8)
    other = np.roll(truth, 9, axis=1)
    prediction = np.where(rng.random(truth.shape) < 0.5, truth, other)
    truth[rng.random(truth.shape) < 0.1] = IGNORE_VALUE
    return truth, prediction


def by_torchmetrics(
    truth: NDArray[np.uint8], prediction: NDArray[np.uint8], classes: int, *, checked: bool
) -> NDArray[np.int64]:
    """Count with torchmetrics' functional form, on tensors of its integer type."""
    return multiclass_confusion_matrix(
        torch.from_numpy(prediction).long(),
        torch.from_numpy(truth).long(),
        num_classes=classes,
        ignore_index=IGNORE_VALUE,
        validate_args=checked,
    ).numpy()


def by_histogram(truth: NDArray[np.uint8], prediction: NDArray[np.uint8], classes: int) -> NDArray[np.int64]:
    """Count with NumPy's two-dimensional histogram."""
    counted = truth != IGNORE_VALUE
    edges = np.arange(classes + 1)
    return np.histogram2d(truth[counted], prediction[counted], bins=(edges, edges))[0].astype(np.int64)


def by_loop(truth: NDArray[np.uint8], prediction: NDArray[np.uint8], classes: int) -> list[tuple[int, int]]:
    """Return the intersection and the union of each class."""
    counted = truth != IGNORE_VALUE
    found = []
    for number in range(classes):
        is_truth, is_predicted = truth == number, (prediction == number) & counted
        found.append((np.count_nonzero(is_truth & is_predicted), np.count_nonzero(is_truth | is_predicted)))
    return found


def by_bincount(truth: NDArray[np.uint8], prediction: NDArray[np.uint8], classes: int) -> NDArray[np.int64]:
    """Count with the common idiom, which does not check the values."""
    counted = truth != IGNORE_VALUE
    pairs = classes * truth[counted].astype(np.int64) + prediction[counted]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


if __name__ == "__main__":
    main()
