"""Choose the background threshold on images outside the test split.

threshold = sweep_threshold(head, data, tuning_set(data.protocol, data.folder))
evaluate_benchmark(head, data, out_dir, threshold=threshold)
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from magicseg.core.errors import ConfigError, DataError
from magicseg.data.ground_truth import DataSet, open_data_set
from magicseg.data.labelled_images import LabelledImages
from magicseg.data.protocol import Protocol
from magicseg.evaluate.committed_parts import cut, evenly
from magicseg.evaluate.decoding import batch_logits, memory_errors
from magicseg.evaluate.metrics.formulas import intersection_over_union, mean_of_known
from magicseg.evaluate.threshold import Threshold
from magicseg.labels import BACKGROUND

if TYPE_CHECKING:
    from torch import Tensor

    from magicseg.evaluate.heads.head import Head, ScoreKind

STEPS = 1000
"""Number of quantile steps of the scores."""

LIMIT = 200
RECIPE = 2
"""Version of the method: increased when the same images give another threshold."""

_SHOWN = 50
_GRID_PIXELS = 1 << 24  # pixels kept in memory until the thresholds are chosen: about 200 MB


class Counts:
    """Histograms of pixels by class and score, which give the mean IoU at every threshold.

    Args: labels: number of classes without background. thresholds: float32 (T,), strictly ascending.
    """

    def __init__(self, labels: int, thresholds: NDArray[np.float32]) -> None:
        self.thresholds = thresholds
        bins = len(thresholds) + 1  # bin b: pixels whose score reaches b of the thresholds
        self._objects = np.zeros((labels, bins), np.int64)  # all pixels, by predicted class
        self._hits = np.zeros((labels, bins), np.int64)  # correctly predicted pixels
        self._background = np.zeros(bins, np.int64)
        self._truth = np.zeros(labels + 1, np.int64)

    def add(self, truth: NDArray[np.integer], chosen: NDArray[np.integer], score: NDArray[np.float32]) -> None:
        """Count pixels, (N,): true class (0 is background), best label (0 is the first label), and its score."""
        labels, bins = self._objects.shape
        true, chosen = truth.astype(np.int64), chosen.astype(np.int64)
        reached = np.searchsorted(self.thresholds, score, side="right")
        self._truth += np.bincount(true, minlength=labels + 1)
        self._background += np.bincount(reached[true == BACKGROUND], minlength=bins)
        cell = chosen * bins + reached
        self._objects += np.bincount(cell, minlength=labels * bins).reshape(labels, bins)
        self._hits += np.bincount(cell[true == chosen + 1], minlength=labels * bins).reshape(labels, bins)

    def miou(self) -> NDArray[np.float64]:
        """Return the mean IoU at every threshold, float64 (T,), over classes with a non-empty union; NaN without
        pixels.

        Pixels that score below the threshold are background.
        """

        def at_least(counts: NDArray[np.int64]) -> NDArray[np.int64]:
            """Count the pixels that reach each threshold."""
            return np.flip(np.cumsum(np.flip(counts, -1), axis=-1), -1)[..., 1:]

        predicted, hits = at_least(self._objects), at_least(self._hits)
        background_hits = self._truth[BACKGROUND] - at_least(self._background)
        background_predicted = self._truth.sum() - predicted.sum(axis=0)
        hits = np.vstack([background_hits, hits])
        predicted = np.vstack([background_predicted, predicted])
        return mean_of_known(intersection_over_union(hits, self._truth[:, None], predicted), axis=0)


class Sweep:
    """Find the best kind of score of a head, and the best threshold on it.

    The candidate thresholds are quantiles of the observed scores, so they suit any scale. They are computed from the
    first ``grid_pixels`` pixels, which are kept in memory until then. All pixels are counted.
    """

    def __init__(
        self, labels: int, kinds: Sequence["ScoreKind"], *, steps: int = STEPS, grid_pixels: int = _GRID_PIXELS
    ) -> None:
        self._labels, self._kinds, self._steps, self._grid_pixels = labels, tuple(kinds), steps, grid_pixels
        self._kept: list[_Pixels] = []
        self._counts: dict[ScoreKind, Counts] = {}
        self.pixels = 0

    def add(
        self,
        truth: NDArray[np.integer],
        chosen: NDArray[np.integer],
        scores: Mapping["ScoreKind", NDArray[np.float32]],
        ignore: int,
    ) -> None:
        """Count the pixels of one or several images.

        Args: truth: vocabulary ids, (..., H, W). chosen: index of the best label, 0 to C - 1. scores: the best
            label's score, by kind. ignore: the id of ignored pixels.
        """
        counted = truth != ignore
        pixels = _Pixels(
            truth[counted].astype(np.uint16),
            chosen[counted].astype(np.uint16),
            {kind: scores[kind][counted] for kind in self._kinds},
        )
        self.pixels += len(pixels.truth)
        if self._counts:
            self._count(pixels)
            return
        self._kept.append(pixels)
        if self.pixels >= self._grid_pixels:
            self._choose_thresholds()

    def curve(self, kind: "ScoreKind") -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Return the thresholds on a kind of score, and the mean IoU at each. At least one pixel must be counted."""
        if not self._counts:
            self._choose_thresholds()
        counts = self._counts[kind]
        return counts.thresholds, counts.miou()

    def best(self, about: Mapping[str, Any]) -> Threshold:
        """Return the threshold with the best mean IoU. At least one pixel must be counted.

        Ties go to the lowest threshold, and to the first kind of score.

        Args: about: a description of the images, as JSON values; kept in the details.
        Returns: the threshold. Its details hold ``miou``, ``curve``, ``tried`` (the best mean IoU by kind of score)
            and ``end``: "lowest" or "highest" if the best threshold is the lowest or highest observed score, else
            None.
        """
        curves = {kind: self.curve(kind) for kind in self._kinds}
        tried = {kind: float(miou.max()) for kind, (_, miou) in curves.items()}
        kind = max(self._kinds, key=lambda each: tried[each])
        thresholds, miou = curves[kind]
        best = int(miou.argmax())
        shown = sorted({*range(0, len(miou), max(1, len(miou) // _SHOWN)), best, len(miou) - 1})
        details = {
            **about,
            "miou": tried[kind],
            "tried": tried,
            "end": "lowest" if best == 0 else "highest" if best == len(miou) - 1 else None,
            "curve": [[float(thresholds[place]), float(miou[place])] for place in shown],
        }
        return Threshold(value=float(thresholds[best]), origin="swept", score=kind, details=details)

    def _choose_thresholds(self) -> None:
        for kind in self._kinds:
            values = np.sort(np.concatenate([pixels.scores[kind] for pixels in self._kept]))
            places = np.linspace(0, len(values) - 1, self._steps + 1).round().astype(np.int64)
            self._counts[kind] = Counts(self._labels, np.unique(values[places]))
        for pixels in self._kept:
            self._count(pixels)
        self._kept.clear()

    def _count(self, pixels: "_Pixels") -> None:
        for kind, counts in self._counts.items():
            counts.add(pixels.truth, pixels.chosen, pixels.scores[kind])


@dataclass(frozen=True, eq=False)
class _Pixels:
    """Pixels that are not ignored: ``truth`` and ``chosen`` uint16 (N,), ``scores`` float32 (N,) by kind."""

    truth: NDArray[np.uint16]
    chosen: NDArray[np.uint16]
    scores: Mapping["ScoreKind", NDArray[np.float32]]


def scored_pixels(
    head: "Head", logits: "Tensor", labels: int
) -> tuple[NDArray[np.int64], dict["ScoreKind", NDArray[np.float32]]]:
    """Return the best label's index (..., H, W) and its score by kind, from logits (..., K, H, W)."""
    chosen = logits.narrow(-3, 0, labels).argmax(dim=-3)
    scores = {kind: head.score(logits, chosen, kind).float().cpu().numpy() for kind in head.score_kinds}
    return chosen.cpu().numpy(), scores


def sweep_threshold(
    head: "Head",
    data: LabelledImages,
    tuning: LabelledImages,
    *,
    limit: int | None = LIMIT,
    progress: Callable[[int, int], None] | None = None,
    attempt: Callable[[str], AbstractContextManager[None]] = lambda name: nullcontext(),
) -> Threshold:
    """Return the threshold with the best mean IoU on images outside the test split, see `Sweep.best`.

    Args:
        data: the benchmark.
        tuning: the images to sweep on, with the benchmark's classes (`tuning_set`).
        limit: at most this many images, spread evenly.
        attempt: a context manager, entered with an image's name while its batch is processed.

    Raises: ImageFailed if an image does not fit in memory; exceptions of ``attempt``; ConfigError if the protocol has
        no threshold, or ``tuning`` has other classes; DataError if one of the images is in the test split.
    """
    import torch

    protocol = data.protocol
    if protocol.background.rule != "threshold":
        raise ConfigError(
            f"{protocol.name}: its rule for background is {protocol.background.rule}, without threshold"
        )
    if tuning.protocol.labels.digest() != protocol.labels.digest():
        raise ConfigError(f"{tuning.protocol.name}: its vocabulary is not that of {protocol.name}")
    names = evenly(tuning.names, limit)
    _refuse_test_images(data, names)
    if tuning.batch is None:
        # Shuffled, because the first images decide the thresholds, and neighbours in a list are often alike.
        names = tuple(np.random.default_rng(0).permutation(names).tolist())
    head.prepare(protocol.queries)
    sweep = Sweep(len(protocol.labels), head.score_kinds)
    done = 0
    with torch.inference_mode():
        for batch in cut(names, tuning.batch or 1):
            where = tuning.where(batch[0])
            with attempt(batch[0]):
                pairs = [tuning.pair(name) for name in batch]
                images, truth = [image for image, _ in pairs], np.stack([truth for _, truth in pairs])
                with memory_errors(head, images[0].shape, protocol, where):
                    for rows, logits in batch_logits(head, images, tuning, where):
                        pixels = scored_pixels(head, logits, len(protocol.labels))
                        sweep.add(truth[:, rows], *pixels, protocol.ignore_value)
            done += len(batch)
            if progress is not None:
                progress(done, len(names))
    if not sweep.pixels:
        raise DataError(f"{tuning.protocol.name}: all pixels of the {len(names)} images are ignored")
    return sweep.best({"split": tuning.protocol.split, "images": len(names), **tuning.about()})


def tuning_set(protocol: Protocol, folder: Path) -> DataSet:
    """Open the other split of a benchmark, for `sweep_threshold`.

    Raises: ConfigError if the protocol names no other split; DataError if files of the split are missing.
    """
    if protocol.tuning_split is None:
        raise ConfigError(
            f"{protocol.name}: the protocol names no other split to sweep the threshold on",
            hint="set tuning_split in the protocol, or leave the threshold at its default",
        )
    return open_data_set(protocol.for_split(protocol.tuning_split), folder)


def tuning_set_or_reason(protocol: Protocol, folder: Path) -> DataSet | str:
    """Open the other split of a benchmark, or return the reason why no threshold can be swept on it."""
    if protocol.background.rule != "threshold":
        return "the protocol's background rule needs no threshold"
    if protocol.tuning_split is None:
        return "the protocol names no other split"
    try:
        return tuning_set(protocol, folder)
    except DataError as error:
        return f"split {protocol.tuning_split!r}: {error.message}"


def _refuse_test_images(data: LabelledImages, names: Sequence[str]) -> None:
    shared = sorted(set(names) & set(data.names))
    if shared:
        raise DataError(
            f"{len(shared)} of the {len(names)} images to sweep the threshold on are test images of "
            f"{data.protocol.name}: {', '.join(shared[:5])}",
            hint="give other images: a threshold tuned on test images biases the score",
        )
