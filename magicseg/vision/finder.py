"""Which objects a detector finds in an image: its candidates, thresholded, each of one label, none twice."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from magicseg.backends import Boxes, Detections, Detector, DetectRequest, Rejection
from magicseg.config.finding import FindOptions
from magicseg.labels import Label
from magicseg.vision.batches import HasBatch


@dataclass(frozen=True, kw_only=True)
class Objects:
    """What was found, by falling score: boxes (n, 4), each one's label as its place in the request, and its score.

    ``best`` (labels,) is every label's best score among all candidates, whatever the thresholds.
    """

    boxes: Boxes
    labels: NDArray[np.int64]
    scores: NDArray[np.float32]
    best: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.boxes)


class Finder:
    """A loaded detector with thresholds."""

    def __init__(self, options: FindOptions, batch: HasBatch) -> None:
        """Raises: BackendError."""
        self._options = options
        self._detector: Detector = options.detector.made(batch)

    def check_labels(self, labels: Sequence[Label]) -> None:
        """Raise BackendError if the detector cannot look for one of these; it may have nothing to say of it."""
        check = getattr(self._detector, "check_labels", None)
        if check is not None:
            check(labels)

    def find(self, requests: Sequence[DetectRequest]) -> list[Objects]:
        """The objects of every image."""
        return [select_objects(found, self._options) for found in self._detector.detect(requests)]


def select_objects(found: Detections, options: FindOptions) -> Objects:
    """A box counts if its confidence and its best label's score are above their thresholds; it is of that label.

    Boxes that are less than a pixel wide or high count for nothing.

    Boxes of one label that overlap much are one object (class-wise non-maximum suppression).
    """
    import torch
    from torchvision.ops import batched_nms

    labels = found.scores.argmax(axis=1)
    scores = found.scores[np.arange(len(labels)), labels]
    sides = found.boxes[:, 2:] - found.boxes[:, :2]
    counts = np.flatnonzero(
        (found.confidence > options.box_threshold) & (scores > options.text_threshold) & (sides >= 1).all(axis=1)
    )
    best = found.scores.max(axis=0, initial=0)
    kept = batched_nms(
        torch.from_numpy(found.boxes[counts]),
        torch.from_numpy(scores[counts]),
        torch.from_numpy(labels[counts]),
        options.nms_iou,
    ).numpy()
    chosen = counts[kept]
    first = np.concatenate(
        [np.flatnonzero(labels[chosen] == label)[: options.max_objects] for label in range(found.scores.shape[1])]
    )
    chosen = chosen[np.sort(first)]
    return Objects(boxes=found.boxes[chosen], labels=labels[chosen], scores=scores[chosen], best=best)


def missing_label(labels: Sequence[Label], objects: Objects) -> Rejection | None:
    """The rejection of an image that does not show all of ``labels``; None if it does."""
    for place, label in enumerate(labels):
        if place not in objects.labels:
            return Rejection(reason="object-missing", detail=f"{label.name}: best score {objects.best[place]:.3f}")
    return None


def remaining_label(labels: Sequence[Label], objects: Objects) -> Rejection | None:
    """The rejection of a counterfactual that shows one of ``labels``; None if it does not."""
    if not len(objects):
        return None
    name = labels[int(objects.labels[0])].name
    return Rejection(reason="object-remains", detail=f"{name}: score {objects.scores[0]:.3f}")
