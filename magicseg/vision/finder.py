"""Find objects: a detector's candidates, thresholded, with one label each and without duplicates; and their masks.

The masker ``detect-segment``, the validity check and inpainting all use this class. What differs between models is in
the detector, and in the segmenter if the detector gives boxes only.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from magicseg.backends import (
    Detections,
    Detector,
    DetectRequest,
    Image,
    Instances,
    Rejection,
    Segmenter,
    SegmentRequest,
    Segments,
)
from magicseg.config.finding import FindOptions, OutlineOptions
from magicseg.core.errors import BackendError
from magicseg.labels import Label
from magicseg.vision.batches import HasBatch

PART_VALUES = 1 << 26
"""Logits of one image's masks (objects x pixels) above which they are made some at a time; float32: 256 MiB."""


class Finder:
    """A loaded detector with its thresholds; with `OutlineOptions` also what gives masks."""

    def __init__(self, options: FindOptions, batch: HasBatch) -> None:
        """Load the models. Raises: BackendError."""
        self._options = options
        self._detector: Detector = options.detector.made(batch)
        chosen = options.segmenter if isinstance(options, OutlineOptions) else None
        self._segmenter: Segmenter | None = chosen.made(batch) if chosen else None

    @property
    def has_own_masks(self) -> bool:
        """Whether the detector itself gives the masks. `outlines` then needs what `find` returned, not only boxes."""
        return isinstance(self._options, OutlineOptions) and self._segmenter is None

    def check_labels(self, labels: Sequence[Label]) -> None:
        """Raise BackendError if the detector cannot query one of these labels."""
        check = getattr(self._detector, "check_labels", None)
        if check is not None:
            check(labels)

    def find(self, requests: Sequence[DetectRequest]) -> list[Instances]:
        """Return the objects of every image."""
        return [select_instances(found, self._options) for found in self._detector.detect(requests)]

    def outlines(self, images: Sequence[Image], found: Sequence[Instances]) -> list[Iterable[Segments]]:
        """Return the masks of every image's objects, in their order; an image's parts can be iterated once.

        Images whose masks together exceed `PART_VALUES` are outlined while their parts are iterated.
        """
        if self._segmenter is None:
            return [_stretched(one, image.shape[:2]) for image, one in zip(images, found, strict=True)]
        requests = [SegmentRequest(image=image, boxes=one.boxes) for image, one in zip(images, found, strict=True)]
        small = [
            place for place, one in enumerate(requests) if len(one.boxes) * one.image[..., 0].size <= PART_VALUES
        ]
        together = dict(zip(small, self._segmenter.segment([requests[place] for place in small]), strict=True))
        return [
            [together[place]] if place in together else _in_parts(self._segmenter, request)
            for place, request in enumerate(requests)
        ]


def _in_parts(segmenter: Segmenter, request: SegmentRequest) -> Iterator[Segments]:
    """Outline some boxes of an image at a time."""
    in_parts = getattr(segmenter, "segment_parts", None)
    if in_parts is not None:
        yield from in_parts(request)
        return
    count = max(1, PART_VALUES // request.image[..., 0].size)
    for start in range(0, len(request.boxes), count):
        part = SegmentRequest(image=request.image, boxes=request.boxes[start : start + count])
        yield from segmenter.segment([part])


def _stretched(found: Instances, size: tuple[int, ...]) -> Iterator[Segments]:
    """Yield the detector's own masks at the image's size, some at a time. Raises: BackendError if it gave none."""
    import torch
    from torch.nn.functional import interpolate

    if found.masks is None:
        raise BackendError("the detector gave boxes without masks", hint="name a segmenter in its options")
    count = max(1, PART_VALUES // (size[0] * size[1]))
    for start in range(0, len(found), count):
        logits = torch.from_numpy(found.masks[start : start + count].astype(np.float32))
        if logits.shape[1:] != size:
            logits = interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0]
        yield Segments(logits=logits.numpy())


def select_instances(found: Detections, options: FindOptions) -> Instances:
    """Apply the thresholds: a box counts if its confidence and its best label's score are above theirs.

    A box has the label of its best score. Boxes less than a pixel wide or high are dropped. Boxes of one label that
    overlap by more than ``nms_iou`` are one object (class-wise non-maximum suppression).
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
    masks = None if found.masks is None else found.masks[chosen]
    return Instances(boxes=found.boxes[chosen], labels=labels[chosen], scores=scores[chosen], best=best, masks=masks)


def missing_label(labels: Sequence[Label], found: Instances) -> Rejection | None:
    """Return the rejection of an image that does not show all of ``labels``; None if it does."""
    for place, label in enumerate(labels):
        if place not in found.labels:
            return Rejection(reason="object-missing", detail=f"{label.name}: best score {found.best[place]:.3f}")
    return None


def remaining_label(labels: Sequence[Label], found: Instances) -> Rejection | None:
    """Return the rejection of a counterfactual that shows one of ``labels``; None if it shows none."""
    if not len(found):
        return None
    name = labels[int(found.labels[0])].name
    return Rejection(reason="object-remains", detail=f"{name}: score {found.scores[0]:.3f}")
