"""What a back end is: it takes a batch and returns a batch, and knows nothing of stores, ledgers or Slurm.

A back end is a class named by an entry point (groups ``magicseg.captioners``, ``magicseg.generators``,
``magicseg.maskers``), imported only when a run names it. It has

- ``Options``: a `Settings` class with its own settings (the stage's ``options`` in the config); all of them are in
  the fingerprint but for those in ``Options.NEUTRAL``, and those that name weights,
- ``identity(options)``: what of the back end itself decides bytes, such as a recipe's number; cheap,
- ``weights(options)``, where it needs pretrained weights: which. Their identity is part of the fingerprint,
  ``magicseg fetch`` gets those that are named on the hub, and the constructor finds them by
  `magicseg.weights.cache.location`, without a network,
- ``LIBRARIES``, where it needs any: names of the modules that it imports when it starts, for ``magicseg doctor``,
- a constructor ``(stage settings, options)`` which loads what it needs,
- one batch method (see the protocols below) that returns one answer per request, in order.

All randomness comes from each request's ``seed``; the answer for a request must not depend on the others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any, ClassVar, Protocol, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from magicseg.errors import BackendError
from magicseg.labels import Label
from magicseg.settings import Settings
from magicseg.weights import Weights

Image = NDArray[np.uint8]  # (height, width, 3), RGB, 0 to 255
ClassMap = NDArray[np.uint16]  # (height, width), BACKGROUND, a label's id, or IGNORE
Quality = Mapping[str, float | int | str | bool]


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """The answer for a sample that is dropped. ``reason`` is a short slug that is counted; ``detail`` is free."""

    reason: str
    detail: str = ""


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
class MaskRequest:
    """One pair of images to label by pixel."""

    index: int
    labels: tuple[Label, ...]
    caption: str
    image: Image
    counterfactual: Image
    seed: int


@dataclass(frozen=True, kw_only=True)
class Masked:
    """Class ids per pixel of the positive image."""

    mask: ClassMap
    quality: Quality = field(default_factory=dict)


class Backend(Protocol):
    """What all back ends share."""

    Options: ClassVar[type[Settings]]
    LIBRARIES: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def identity(cls, options: Any) -> Mapping[str, str | int]:
        """What of the back end itself decides bytes; part of the stage's fingerprint."""

    @classmethod
    def weights(cls, options: Any) -> Sequence[Weights]:
        """The pretrained weights that it loads. A class without this method has none."""
        return ()


@runtime_checkable
class Captioner(Protocol):
    """Labels to descriptions."""

    def describe(self, requests: Sequence[DescribeRequest]) -> Sequence[Description | Rejection]: ...


@runtime_checkable
class Generator(Protocol):
    """Descriptions to pairs of images."""

    def generate(self, requests: Sequence[GenerateRequest]) -> Sequence[ImagePair | Rejection]: ...


@runtime_checkable
class Masker(Protocol):
    """Pairs of images to class maps."""

    def mask(self, requests: Sequence[MaskRequest]) -> Sequence[Masked | Rejection]: ...


def weights_of(backend: type[Backend], options: Settings) -> tuple[Weights, ...]:
    """The pretrained weights that a back end needs. Raises: BackendError if a path holds none of their kind."""
    declared = getattr(backend, "weights", None)
    return tuple(declared(options)) if declared else ()


def find_backend(kind: str, name: str) -> type[Backend]:
    """The class of back end ``name`` of ``kind`` ("captioners", "generators", "maskers").

    Raises: BackendError when no such back end is installed or it cannot be imported.
    """
    found = {entry.name: entry for entry in entry_points(group=f"magicseg.{kind}")}
    if name not in found:
        raise BackendError(
            f"there is no back end {name!r} among the {kind}",
            hint=f"installed: {', '.join(sorted(found)) or 'none'}",
        )
    try:
        return cast("type[Backend]", found[name].load())
    except ImportError as error:
        raise BackendError(
            f"back end {name!r} ({found[name].value}) cannot be imported: {error}",
            hint="install its libraries: pip install 'magicseg[models]'",
        ) from error
