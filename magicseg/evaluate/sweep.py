"""Choosing the background threshold on images that are not the test's.

threshold = sweep_threshold(head, protocol, data_dir)          # the benchmark's tuning split
evaluate_benchmark(head, protocol, data_dir, out_dir, threshold=threshold)
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from magicseg.errors import ConfigError, DataError
from magicseg.evaluate.deciding import Threshold, best_objects, image_logits
from magicseg.evaluate.parts import evenly
from magicseg.evaluate.protocol import Protocol
from magicseg.evaluate.truth import DataSet, open_data_set
from magicseg.labels import BACKGROUND

if TYPE_CHECKING:
    from magicseg.evaluate.heads import Head

STEPS = 1000
LIMIT = 200
_SHOWN = 50


@dataclass(frozen=True, eq=False)
class Sweep:
    """Counts by class and by how many of the ``thresholds`` a pixel's best score reaches, int64 (C, steps + 1).

    ``objects`` and ``hits``: pixels by their best label, all, and those of that very label. ``background``: pixels of
    background, in one row. ``truth``: all pixels by true class, (C + 1,), background first.
    """

    thresholds: NDArray[np.float32]
    objects: NDArray[np.int64]
    hits: NDArray[np.int64]
    background: NDArray[np.int64]
    truth: NDArray[np.int64]

    @classmethod
    def empty(cls, labels: int, steps: int = STEPS) -> "Sweep":
        """Nothing counted yet, for thresholds 0, 1 / steps, ..., 1."""
        return cls(
            thresholds=(np.arange(steps + 1) / steps).astype(np.float32),
            objects=np.zeros((labels, steps + 2), np.int64),
            hits=np.zeros((labels, steps + 2), np.int64),
            background=np.zeros(steps + 2, np.int64),
            truth=np.zeros(labels + 1, np.int64),
        )

    def add(
        self,
        truth: NDArray[np.integer],
        score: NDArray[np.float32],
        place: NDArray[np.integer],
        ignore: int,
    ) -> None:
        """Count one image.

        Args: truth: vocabulary numbers (H, W). score: of the best label. place: of the best label, 0 to C - 1.
        """
        labels, bins = self.objects.shape
        counted = truth != ignore
        true, chosen = truth[counted].astype(np.int64), place[counted].astype(np.int64)
        reached = np.searchsorted(self.thresholds, score[counted], side="right")
        self.truth[:] += np.bincount(true, minlength=labels + 1)
        self.background[:] += np.bincount(reached[true == BACKGROUND], minlength=bins)
        cell = chosen * bins + reached
        self.objects[:] += np.bincount(cell, minlength=labels * bins).reshape(labels, bins)
        self.hits[:] += np.bincount(cell[true == chosen + 1], minlength=labels * bins).reshape(labels, bins)

    def miou(self) -> NDArray[np.float64]:
        """Mean IoU (over the classes with a union) at every threshold, float64 (steps,); NaN without any pixel.

        At threshold k the pixels that reach at most k of the thresholds are background: their score is below the
        threshold of that place.
        """

        def at_least(counts: NDArray[np.int64]) -> NDArray[np.int64]:
            """Pixels that reach the threshold of each place."""
            return np.flip(np.cumsum(np.flip(counts, -1), axis=-1), -1)[..., 1:]

        predicted, hits = at_least(self.objects), at_least(self.hits)
        all_pixels = self.truth.sum()
        background_hits = self.truth[BACKGROUND] - at_least(self.background)
        background_predicted = all_pixels - predicted.sum(axis=0)
        hits = np.vstack([background_hits, hits])
        union = np.vstack([background_predicted, predicted]) + self.truth[:, None] - hits
        iou = np.divide(hits, union, out=np.zeros(hits.shape), where=union > 0)
        known = (union > 0).sum(axis=0)
        mean: NDArray[np.float64] = np.divide(
            iou.sum(axis=0), known, out=np.full(known.shape, np.nan), where=known > 0
        )
        return mean


def sweep_threshold(
    head: "Head",
    protocol: Protocol,
    data_dir: Path,
    *,
    tuning: Path | Protocol | None = None,
    limit: int | None = LIMIT,
    progress: Callable[[int, int], None] | None = None,
) -> Threshold:
    """The threshold with the best mean IoU on other images than the test's; the lowest of equally good ones.

    Args:
        data_dir: the benchmark's folder.
        tuning: where other images are: None for the benchmark's tuning split in ``data_dir``; a folder with that
            split in the same layout, or any protocol with the same vocabulary, whose data are in ``data_dir``.
        limit: at most this many images, spread evenly.

    Raises: ConfigError where the protocol has no threshold or no other split; DataError where one of the images is
        in the test split.
    """
    import torch

    if protocol.background.rule != "threshold":
        raise ConfigError(
            f"{protocol.name}: its rule for background is {protocol.background.rule}, without threshold"
        )
    data = _tuning_set(protocol, data_dir, tuning)
    names = evenly(data.names, limit)
    _refuse_test_images(protocol, data_dir, data, names)
    counts = Sweep.empty(len(protocol.labels))
    head.prepare(protocol.queries)
    with torch.inference_mode():
        for done, name in enumerate(names, start=1):
            image, truth = data.pair(name)
            for rows, logits in image_logits(head, image, protocol, str(data.image_paths[data.place[name]])):
                score, place = best_objects(head, logits, protocol)
                counts.add(truth[rows], score.float().cpu().numpy(), place.cpu().numpy(), protocol.ignore_value)
            if progress is not None:
                progress(done, len(names))
    return _chosen(counts, data, names)


def why_not(protocol: Protocol, data_dir: Path) -> str | None:
    """Why no threshold can be swept on the benchmark's other split; None if it can."""
    if protocol.background.rule != "threshold":
        return "the protocol's rule needs none"
    if protocol.tuning_split is None:
        return "the protocol names no other split"
    try:
        open_data_set(protocol.for_split(protocol.tuning_split), data_dir)
    except DataError as error:
        return f"of the split {protocol.tuning_split!r}: {error.message}"
    return None


def _tuning_set(protocol: Protocol, data_dir: Path, tuning: Path | Protocol | None) -> DataSet:
    if isinstance(tuning, Protocol):
        if tuning.labels.digest() != protocol.labels.digest():
            raise ConfigError(f"{tuning.name}: its vocabulary is not that of {protocol.name}")
        return open_data_set(tuning, data_dir)
    if protocol.tuning_split is None:
        raise ConfigError(
            f"{protocol.name}: the protocol names no other split to sweep the threshold on",
            hint="set tuning_split in the protocol, or leave the threshold at its default",
        )
    return open_data_set(protocol.for_split(protocol.tuning_split), tuning or data_dir)


def _refuse_test_images(protocol: Protocol, data_dir: Path, data: DataSet, names: tuple[str, ...]) -> None:
    test = open_data_set(protocol, data_dir, with_images=False)
    shared = sorted(set(names) & set(test.names))
    if shared:
        raise DataError(
            f"{data.folder}: {len(shared)} of the {len(names)} images to sweep the threshold on are test images of "
            f"{protocol.name}: {', '.join(shared[:5])}",
            hint="a threshold that was chosen on test images makes no honest score: give other images",
        )


def _chosen(counts: Sweep, data: DataSet, names: tuple[str, ...]) -> Threshold:
    curve = counts.miou()
    if np.isnan(curve).all():
        raise DataError(f"{data.folder}: none of the {len(names)} images has a pixel that counts")
    best = int(np.nanargmax(curve))
    shown = sorted({*range(0, len(curve), max(1, len(curve) // _SHOWN)), best})
    details: dict[str, Any] = {
        "split": data.protocol.split,
        "images": len(names),
        "data": data.digest(),
        "miou": float(curve[best]),
        "curve": [[round(float(counts.thresholds[place]), 6), float(curve[place])] for place in shown],
    }
    return Threshold(value=round(float(counts.thresholds[best]), 6), origin="swept", details=details)
