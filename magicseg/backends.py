"""Back ends: each takes a batch and returns a batch, without access to stores, ledgers or Slurm.

A back end is a class named by an entry point. The groups are ``magicseg.captioners``, ``magicseg.generators``,
``magicseg.maskers``, ``magicseg.detectors`` and ``magicseg.segmenters``. The class is imported only when a run names
it. It has

- ``Options``: a `Settings` class with its own settings (the stage's ``options`` in the config). All of them are in
  the fingerprint, except those in ``Options.NEUTRAL`` and those that name weights,
- ``identity(options)``: facts of the back end itself that affect bytes, such as a recipe's number; must be fast,
- ``weights(options)``, optional: the pretrained weights that it needs. Their identity is part of the fingerprint,
  ``magicseg fetch`` downloads those that are named on the hub, and the constructor finds them by
  `magicseg.weights.cache.location`, without a network,
- ``device(options)``, optional: "cuda" if it computes on a GPU, "auto" if it does where there is one, else "cpu". A
  class without it says so by its option ``device``, or computes on the CPU. A stage gets one worker per GPU if one of
  its back ends computes there, and each worker sees its own GPU only,
- ``THREAD_SAFE = True``, optional: its batch method may be called from two threads at once. If a stage computes on a
  GPU and all of its back ends allow it, two batches are in progress: the CPU works on one, the GPU on the other,
- ``LIBRARIES``, optional: names of the modules that it imports when it starts, for ``magicseg doctor``,
- a constructor ``(stage settings, options)`` which loads what it needs,
- ``check_labels(labels)``, optional: raises BackendError for the first of a run's labels that it cannot handle,
  before the first shard,
- one batch method (see the protocols below) that returns one answer per request, in order.

All randomness comes from each request's ``seed``; the answer for a request must not depend on the others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from magicseg.core.settings import Settings
from magicseg.labels import Label
from magicseg.weights import Weights

Image = NDArray[np.uint8]  # (height, width, 3), RGB, 0 to 255
ClassMap = NDArray[np.uint16]  # (height, width), BACKGROUND, a label's id, or IGNORE
Quality = Mapping[str, float | int | str | bool | list[float]]
Boxes = NDArray[np.float32]  # (boxes, 4): left, top, right, bottom, in pixels of the image


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """The answer for a sample that is dropped. ``reason`` is a short slug that is counted; ``detail`` is free."""

    reason: str
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Retry:
    """The answer for a sample that needs another attempt: ``request`` comes back in a later batch, with others."""

    request: Any


@dataclass(frozen=True, kw_only=True)
class DescribeRequest:
    """One sample to describe. ``seed`` is the sample's own 64-bit seed for this stage and attempt."""

    index: int
    labels: tuple[Label, ...]
    seed: int


@dataclass(frozen=True, kw_only=True)
class Description:
    """A scene with the sample's labels, and the same scene without them."""

    caption: str
    counterfactual: str
    quality: Quality = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class GenerateRequest:
    """One pair of images to make."""

    index: int
    labels: tuple[Label, ...]
    caption: str
    counterfactual: str
    seed: int


@dataclass(frozen=True, kw_only=True)
class ImagePair:
    """Two images of equal size: with and without the sample's objects."""

    image: Image
    counterfactual: Image
    quality: Quality = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Instances:
    """The objects that were found in one image, best score first, after thresholds and non-maximum suppression.

    ``labels`` are positions in the request's labels. ``best`` has each label's best score among all candidates,
    whatever the thresholds. ``masks`` are logits of any resolution, stretched over the image and above 0 inside; None
    if the model gives boxes only.
    """

    boxes: Boxes
    labels: NDArray[np.int64]  # (objects,)
    scores: NDArray[np.float32]  # (objects,), 0 to 1
    best: NDArray[np.float32]  # (labels,), 0 to 1
    masks: NDArray[np.floating] | None = None  # (objects, h, w)

    def __len__(self) -> int:
        return len(self.boxes)


@dataclass(frozen=True, kw_only=True)
class PairInstances:
    """The objects that were found in both images of a pair."""

    image: Instances
    counterfactual: Instances


@dataclass(frozen=True, kw_only=True)
class MaskRequest:
    """One pair of images to label by pixel. A single image has no counterfactual.

    ``image_seed``: the seed of the sample's first `GenerateRequest`; None for a single image. ``found``: what the
    validity check found with the masker's own detector and thresholds, without masks; None if they differ.
    """

    index: int
    labels: tuple[Label, ...]
    caption: str
    image: Image
    counterfactual: Image | None
    seed: int
    image_seed: int | None = None
    found: PairInstances | None = None


@dataclass(frozen=True, kw_only=True)
class Masked:
    """Class ids per pixel of the positive image."""

    mask: ClassMap
    quality: Quality = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class DetectRequest:
    """One image, and the labels to query."""

    image: Image
    labels: tuple[Label, ...]


@dataclass(frozen=True, kw_only=True)
class Detections:
    """All candidates of an image, good and bad: the caller applies the thresholds.

    ``boxes`` lie inside the image. ``confidence`` says how sure the detector is that a box shows any of the labels,
    ``scores`` how well it fits each label. ``masks`` are logits of any resolution, stretched over the image and above
    0 inside; only a detector whose class has ``GIVES_MASKS = True`` gives them.
    """

    boxes: Boxes
    confidence: NDArray[np.float32]  # (boxes,), 0 to 1
    scores: NDArray[np.float32]  # (boxes, labels), 0 to 1
    masks: NDArray[np.floating] | None = None  # (boxes, h, w)


@dataclass(frozen=True, kw_only=True)
class SegmentRequest:
    """One image, and the boxes of the objects to outline."""

    image: Image
    boxes: Boxes


@dataclass(frozen=True, kw_only=True)
class Segments:
    """One outline per box: ``logits`` are above 0 inside; ``quality`` is the segmenter's estimate of their IoU."""

    logits: NDArray[np.float32]  # (boxes, height, width)
    quality: NDArray[np.float32] | None = None  # (boxes,)


class Backend(Protocol):
    """The members that all back ends have."""

    Options: ClassVar[type[Settings]]
    LIBRARIES: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def identity(cls, options: Any) -> Mapping[str, str | int]:
        """Return the facts of the back end itself that decide bytes; part of the stage's fingerprint."""

    @classmethod
    def weights(cls, options: Any) -> Sequence[Weights]:
        """Return the pretrained weights that it loads. A class without this method has none."""
        return ()


@runtime_checkable
class Captioner(Protocol):
    """Labels to descriptions."""

    def describe(self, requests: Sequence[DescribeRequest]) -> Sequence[Description | Rejection]: ...


@runtime_checkable
class Generator(Protocol):
    """Descriptions to pairs of images.

    A generator may have ``attempt(requests)`` too. It is then called instead of ``generate``, and may also answer
    `Retry` with a request of any type: regenerated pairs then share full batches.
    """

    def generate(self, requests: Sequence[GenerateRequest]) -> Sequence[ImagePair | Rejection]: ...


@runtime_checkable
class Masker(Protocol):
    """Pairs of images to class maps."""

    def mask(self, requests: Sequence[MaskRequest]) -> Sequence[Masked | Rejection]: ...


@runtime_checkable
class Detector(Protocol):
    """Images and labels to candidates: boxes, and masks too if the class has ``GIVES_MASKS = True``.

    A model that goes from text to masks in one step is such a detector, and needs no segmenter.
    """

    def detect(self, requests: Sequence[DetectRequest]) -> Sequence[Detections]: ...


@runtime_checkable
class Segmenter(Protocol):
    """Images and boxes to outlines.

    A segmenter may have ``segment_parts(request)`` too. It yields `Segments` for some boxes of one image at a time,
    in order. It is called for images whose outlines together would need much memory.
    """

    def segment(self, requests: Sequence[SegmentRequest]) -> Sequence[Segments]: ...


# Every kind of back end, and its batch method.
BATCH_METHODS = {
    "captioners": "describe",
    "generators": "generate",
    "maskers": "mask",
    "detectors": "detect",
    "segmenters": "segment",
}
