"""The masker ``detect-segment``: a detector finds the labels' objects; it or a segmenter outlines them."""

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

from pydantic import Field

from magicseg.backends import DetectRequest, Instances, Masked, MaskRequest, Rejection
from magicseg.config import finding
from magicseg.config.finding import OutlineOptions
from magicseg.labels import Label
from magicseg.stages.mask import pair_difference
from magicseg.stages.mask.compose import ComposeOptions, compose
from magicseg.vision.batches import HasBatch
from magicseg.vision.finder import Finder, missing_label, remaining_label

RECIPE = 1  # raise it when the same images, boxes and outlines give another map


class DetectSegmentOptions(ComposeOptions, OutlineOptions):
    """Which models, what makes a map, and which samples are dropped."""

    missing_labels: Literal["drop", "keep"] = Field("drop", description="samples that do not show all their labels")
    check_counterfactual: bool = Field(True, description="drop pairs whose counterfactual shows a label")


class HasBatchSize(Protocol):
    """What the masker needs of the stage's settings."""

    @property
    def batch_size(self) -> int:
        """Images in one call of each model."""


class DetectSegmentMasker:
    """Back end of the mask stage."""

    Options = DetectSegmentOptions
    LIBRARIES = ("torchvision", "scipy")
    THREAD_SAFE = True

    @classmethod
    def identity(cls, options: DetectSegmentOptions) -> Mapping[str, str | int]:
        """Return the numbers of all recipes that decide a map, or what is dropped."""
        own = {"detect-segment": RECIPE, "finding": finding.RECIPE}
        return own | {"pair-difference": pair_difference.RECIPE} if options.cross_check else own

    def __init__(self, settings: HasBatchSize, options: DetectSegmentOptions) -> None:
        """Load the models. Raises: BackendError."""
        self._options = options
        self._finder = Finder(options, HasBatch(settings.batch_size))

    def check_labels(self, labels: Sequence[Label]) -> None:
        """Raise BackendError if the detector cannot query one of these labels."""
        self._finder.check_labels(labels)

    def mask(self, requests: Sequence[MaskRequest]) -> list[Masked | Rejection]:
        """Return one class map, or a rejection with its reason, per request."""
        found = self._found_in_images(requests)
        answers: dict[int, Masked | Rejection] = {}
        for place, (request, objects) in enumerate(zip(requests, found, strict=True)):
            if (fault := self._missing(request, objects)) is not None:
                answers[place] = fault
        going = [place for place in range(len(requests)) if place not in answers]
        remaining = self._found_in_counterfactuals(requests, going)
        for place, objects in remaining.items():
            if (fault := remaining_label(requests[place].labels, objects)) is not None:
                answers[place] = fault
        going = [place for place in going if place not in answers]
        outlines = self._finder.outlines(
            [requests[place].image for place in going], [found[place] for place in going]
        )
        for place, parts in zip(going, outlines, strict=True):
            quality = {}
            if place in remaining:
                quality["counterfactual_score"] = round(float(remaining[place].best.max(initial=0)), 4)
            answers[place] = compose(requests[place], found[place], parts, self._options, quality)
        return [answers[place] for place in range(len(requests))]

    def _missing(self, request: MaskRequest, found: Instances) -> Rejection | None:
        if self._options.missing_labels == "keep" and len(found):
            return None
        return missing_label(request.labels, found)

    def _found_in_images(self, requests: Sequence[MaskRequest]) -> list[Instances]:
        """Return the objects of every image: those that the request brings, or the detector's."""
        found: dict[int, Instances] = {}
        if not self._finder.has_own_masks:
            found = {place: one.found.image for place, one in enumerate(requests) if one.found is not None}
        left = [place for place in range(len(requests)) if place not in found]
        looked = self._finder.find(
            [DetectRequest(image=requests[place].image, labels=requests[place].labels) for place in left]
        )
        found |= dict(zip(left, looked, strict=True))
        return [found[place] for place in range(len(requests))]

    def _found_in_counterfactuals(
        self, requests: Sequence[MaskRequest], places: Sequence[int]
    ) -> dict[int, Instances]:
        """Return the objects of the counterfactuals of the pairs at ``places``, by place."""
        if not self._options.check_counterfactual:
            return {}
        found: dict[int, Instances] = {}
        left: dict[int, DetectRequest] = {}
        for place in places:
            request = requests[place]
            if request.found is not None:
                found[place] = request.found.counterfactual
            elif request.counterfactual is not None:
                left[place] = DetectRequest(image=request.counterfactual, labels=request.labels)
        return found | dict(zip(left, self._finder.find(list(left.values())), strict=True))
