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
- ``LIBRARIES``, optional: names of the modules that it imports when it starts, for ``magicseg doctor``,
- a constructor ``(stage settings, options)`` which loads what it needs,
- ``check_labels(labels)``, optional: raises BackendError for the first of a run's labels that it cannot handle,
  before the first shard,
- one batch method (see the protocols below) that returns one answer per request, in order.

All randomness comes from each request's ``seed``; the answer for a request must not depend on the others.
"""

import functools
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import EntryPoint, entry_points
from typing import Any, ClassVar, Protocol, Self, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator

from magicseg.core.errors import BackendError, ConfigError, MagicsegError
from magicseg.core.setting_errors import faults
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


def find_backend(kind: str, name: str) -> type[Backend]:
    """Return the class of a back end. Args: kind: a key of `BATCH_METHODS`, such as "captioners".

    Raises BackendError if no back end or several have this name, if its import fails, or if it lacks a member.
    """
    installed = _installed(f"magicseg.{kind}", tuple(sys.path))
    found = [entry for entry in installed if entry.name == name]
    if not found:
        raise BackendError(
            f"there is no back end {name!r} among the {kind}",
            hint=f"installed: {', '.join(sorted({entry.name for entry in installed})) or 'none'}",
        )
    if len(found) > 1:
        packages = ", ".join(sorted(map(_package, found)))
        raise BackendError(
            f"several packages have a back end {name!r} among the {kind}: {packages}",
            hint="pip uninstall all but one",
        )
    (entry,) = found
    what = f"back end {name!r} ({entry.value})"
    try:
        backend = entry.load()
    except Exception as error:  # foreign code
        package = _package(entry)
        remedy = "install its libraries: pip install 'magicseg[models]'"
        raise BackendError(
            f"{what} cannot be imported: {type(error).__name__}: {error}",
            hint=remedy if package == "magicseg" else f"mend or reinstall {package}",
        ) from error
    lacking = [part for part in ("Options", "identity", BATCH_METHODS[kind]) if not hasattr(backend, part)]
    if lacking:
        raise BackendError(
            f"{what} lacks {', '.join(lacking)}", hint="what a class has: python -m pydoc magicseg.backends"
        )
    return cast("type[Backend]", backend)


@functools.lru_cache
def _installed(group: str, _path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """Return the entry points of the packages installed on ``_path``.

    Cached, because a run asks often and each package has its own file of entry points.
    """
    return tuple(entry_points(group=group))


def _package(entry: EntryPoint) -> str:
    """Return the name of the distribution that an entry point belongs to."""
    return entry.dist.name if entry.dist else entry.module


def choose_backend(kind: str, name: str, options: Mapping[str, Any], where: str) -> tuple[type[Backend], Settings]:
    """Return the class of a back end and its validated options.

    Args: where: the settings that choose it, for messages: "mask", or "mask.options.detector".
    Raises: BackendError for an unknown back end, ConfigError for options it does not take.
    """
    try:
        backend = find_backend(kind, name)
    except BackendError as error:
        raise BackendError(
            f"{where}.backend: {error.message}", hint=f"{error.hint}; another one: --set {where}.backend=NAME"
        ) from error
    try:
        return backend, backend.Options.model_validate(options)
    except ValidationError as error:
        # Pydantic's own text quotes the values, and a value may be a secret under a wrong key.
        raise ConfigError(
            f"{where}.options does not fit back end {name!r}: {'; '.join(map(str, faults(error)))}",
            hint=f"its options: {', '.join(backend.Options.model_fields) or 'none'}",
        ) from None


class BackendChoice(Settings):
    """A back end inside the options of another. Its own options are validated, with every default written out."""

    KIND: ClassVar[str]  # "detectors"

    backend: str = Field(description="an installed back end's name")
    options: dict[str, Any] = Field(default_factory=dict, description="the back end's own settings")

    @model_validator(mode="after")
    def _resolved(self) -> Self:
        try:
            _, options = self.chosen()
        except ConfigError as error:  # of which pydantic keeps the message only
            raise ValueError(f"{error.message} ({error.hint})") from None
        values = options.model_dump(mode="json")
        return self if values == self.options else self.model_copy(update={"options": values})

    def chosen(self) -> tuple[type[Backend], Settings]:
        """Return the back end's class and its options. Raises BackendError, ConfigError."""
        return choose_backend(self.KIND, self.backend, self.options, self.KIND.removesuffix("s"))

    def made(self, settings: object) -> Any:
        """Load the back end. Args: settings: the stage settings that it needs. Raises BackendError."""
        backend, options = self.chosen()
        constructor: Any = backend
        try:
            return constructor(settings, options)
        except MagicsegError:
            raise
        except Exception as error:  # foreign code
            raise BackendError(
                f"{self.KIND.removesuffix('s')} {self.backend!r} cannot start: {type(error).__name__}: {error}",
                hint="check its options",
            ) from error


class DetectorChoice(BackendChoice):
    """The choice of a detector."""

    KIND: ClassVar[str] = "detectors"


class SegmenterChoice(BackendChoice):
    """The choice of a segmenter."""

    KIND: ClassVar[str] = "segmenters"


@dataclass(frozen=True)
class NestedBackend:
    """A back end that a group of settings chooses, and its validated options.

    ``path`` is the dotted key of the choice inside the group ("detector", "inpaint.segmenter"). It is empty for the
    back end whose options the group is.
    """

    path: str
    backend: type[Backend]
    options: Settings

    def key(self, option: str) -> str:
        """Return the dotted key of one of its options inside the group."""
        return f"{self.path}.options.{option}" if self.path else option

    def identity(self) -> dict[str, str | int]:
        """Return what the back end says of itself, by dotted keys."""
        prefix = f"{self.path}." if self.path else ""
        return {prefix + key: value for key, value in self.backend.identity(self.options).items()}

    def weights(self) -> tuple[Weights, ...]:
        """Return the pretrained weights that it loads; ``setting`` is their dotted key inside the group.

        Raises BackendError if a path holds no weights of the required kind.
        """
        declared = getattr(self.backend, "weights", None)
        found = declared(self.options) if declared else ()
        return tuple(replace(each, setting=self.key(each.setting)) for each in found)

    def libraries(self) -> tuple[str, ...]:
        """Return the modules that it imports when it starts."""
        return tuple(getattr(self.backend, "LIBRARIES", ()))


def backends_in(settings: Settings, prefix: str = "") -> Iterator[NestedBackend]:
    """Yield all back ends inside a group of settings, at any depth. Raises BackendError, ConfigError."""
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, BackendChoice):
            backend, options = value.chosen()
            yield NestedBackend(prefix + name, backend, options)
            yield from backends_in(options, f"{prefix}{name}.options.")
        elif isinstance(value, Settings):
            yield from backends_in(value, f"{prefix}{name}.")


def with_nested(backend: type[Backend], options: Settings) -> tuple[NestedBackend, ...]:
    """Return a back end and all back ends inside its options. Raises BackendError, ConfigError."""
    return (NestedBackend("", backend, options), *backends_in(options))
