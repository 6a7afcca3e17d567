"""The masker ``detect-segment``: a detector finds the labels' objects, a segmenter outlines them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from magicseg.backends import (
    DetectRequest,
    Masked,
    MaskRequest,
    Rejection,
    Segmenter,
    SegmenterChoice,
    SegmentRequest,
    Segments,
)
from magicseg.config import finding
from magicseg.config.finding import FindOptions
from magicseg.labels import Label
from magicseg.stages.mask import pair_difference
from magicseg.stages.mask.compose import Outline, agreement, box_agreement, class_map, outline
from magicseg.stages.mask.pair_difference import PairDifferenceMasker, difference_mask
from magicseg.vision.batches import HasBatch
from magicseg.vision.finder import Finder, Objects, missing_label, remaining_label

PART_VALUES = 1 << 26
"""Logits of an image's outlines (boxes x pixels) above which they are drawn some at a time, float32: 256 MiB."""

RECIPE = 1  # goes up whenever the same images, boxes and outlines give another map


class DetectSegmentOptions(FindOptions):
    """Which models, what makes a map, and which samples are dropped."""

    segmenter: SegmenterChoice
    min_island: float = Field(
        0.0005, ge=0, lt=1, description="share of the image below which a loose part is dropped"
    )
    border_margin: float = Field(0.0, ge=0, le=20, description="logits nearer to 0 become the ignore index; 0 = off")

    missing_labels: Literal["drop", "keep"] = Field("drop", description="samples that do not show all their labels")
    check_counterfactual: bool = Field(True, description="drop pairs whose counterfactual shows a label")
    min_area: float = Field(0.001, ge=0, lt=1, description="of each label that was found, as a share of the image")
    max_area: float = Field(0.95, gt=0, le=1, description="of all labels together, as a share of the image")
    min_box_agreement: float = Field(0.0, ge=0, le=1, description="IoU of every outline's bounding box and its box")
    cross_check: bool = Field(
        False, description="compare with where the two images differ: for pairs with shared noise, or inpainted"
    )
    min_pair_agreement: float = Field(0.0, ge=0, le=1, description="IoU with where they differ, if cross_check")


class HasBatchSize(Protocol):
    """What the masker needs of the stage's settings."""

    @property
    def batch_size(self) -> int:
        """Images in one call of each model."""


class DetectSegmentMasker:
    """Back end of the mask stage."""

    Options = DetectSegmentOptions
    LIBRARIES = ("torchvision", "scipy")

    @classmethod
    def identity(cls, options: DetectSegmentOptions) -> Mapping[str, str | int]:
        """The numbers of all recipes that decide a map, or what is dropped."""
        own = {"detect-segment": RECIPE, "finding": finding.RECIPE}
        return own | {"pair-difference": pair_difference.RECIPE} if options.cross_check else own

    def __init__(self, settings: HasBatchSize, options: DetectSegmentOptions) -> None:
        """Load both models. Raises: BackendError."""
        self._options = options
        batch = HasBatch(settings.batch_size)
        self._finder = Finder(options, batch)
        self._segmenter: Segmenter = options.segmenter.made(batch)

    def check_labels(self, labels: Sequence[Label]) -> None:
        """Raise BackendError if one of these cannot be looked for."""
        self._finder.check_labels(labels)

    def mask(self, requests: Sequence[MaskRequest]) -> list[Masked | Rejection]:
        """One class map, or a rejection with its reason, per request."""
        found = self._finder.find([DetectRequest(image=one.image, labels=one.labels) for one in requests])
        answers: dict[int, Masked | Rejection] = {}
        for place, (request, objects) in enumerate(zip(requests, found, strict=True)):
            if (fault := self._missing(request, objects)) is not None:
                answers[place] = fault
        remaining = self._remaining(requests, [place for place in range(len(requests)) if place not in answers])
        answers |= {place: fault for place, (fault, _) in remaining.items() if fault is not None}
        going = [place for place in range(len(requests)) if place not in answers]
        asked = {place: SegmentRequest(image=requests[place].image, boxes=found[place].boxes) for place in going}
        small = [place for place, one in asked.items() if len(one.boxes) * one.image[..., 0].size <= PART_VALUES]
        together = dict(zip(small, self._segmenter.segment([asked[place] for place in small]), strict=True))
        for place in going:
            parts = [together[place]] if place in together else self._parts(asked[place])
            scores = {} if place not in remaining else {"counterfactual_score": remaining[place][1]}
            answers[place] = self._composed(requests[place], found[place], parts, scores)
        return [answers[place] for place in range(len(requests))]

    def _parts(self, request: SegmentRequest) -> Iterator[Segments]:
        """Outline some boxes at a time."""
        in_parts = getattr(self._segmenter, "segment_parts", None)
        if in_parts is not None:
            yield from in_parts(request)
            return
        count = max(1, PART_VALUES // request.image[..., 0].size)
        for start in range(0, len(request.boxes), count):
            part = SegmentRequest(image=request.image, boxes=request.boxes[start : start + count])
            yield from self._segmenter.segment([part])

    def _missing(self, request: MaskRequest, objects: Objects) -> Rejection | None:
        if self._options.missing_labels == "keep" and len(objects):
            return None
        return missing_label(request.labels, objects)

    def _remaining(
        self, requests: Sequence[MaskRequest], places: Sequence[int]
    ) -> dict[int, tuple[Rejection | None, float]]:
        """Of pairs, by place: what is wrong with the counterfactual, and the best score of a label in it."""
        if not self._options.check_counterfactual:
            return {}
        pairs = [
            (place, DetectRequest(image=image, labels=requests[place].labels))
            for place in places
            if (image := requests[place].counterfactual) is not None
        ]
        result: dict[int, tuple[Rejection | None, float]] = {}
        found = self._finder.find([request for _, request in pairs])
        for (place, request), objects in zip(pairs, found, strict=True):
            fault = remaining_label(request.labels, objects)
            result[place] = (fault, round(float(objects.best.max(initial=0)), 4))
        return result

    def _composed(
        self, request: MaskRequest, objects: Objects, parts: Iterable[Segments], more: Mapping[str, float]
    ) -> Masked | Rejection:
        options = self._options
        boxes: list[float] = []
        qualities: list[NDArray[np.float32]] = []
        covered = np.zeros(request.image.shape[:2], bool)

        def drawn() -> Iterator[NDArray[np.float32]]:
            for part in parts:
                qualities.append(part.quality)
                yield from part.logits

        def outlines() -> Iterator[Outline]:
            named = zip(drawn(), objects.labels.tolist(), objects.scores, objects.boxes, strict=True)
            for logits, place, score, box in named:
                one = outline(
                    logits,
                    label_id=request.labels[place].id,
                    score=float(score),
                    min_island=options.min_island,
                    margin=options.border_margin,
                )
                boxes.append(box_agreement(one.inside, box))
                np.logical_or(covered, one.inside, out=covered)
                yield one

        result = class_map(outlines(), request.image.shape[:2])
        areas = [float((result == label.id).mean()) for label in request.labels]
        found = sorted(set(objects.labels.tolist()))
        small = [place for place in found if areas[place] < options.min_area or areas[place] == 0]
        if small:
            detail = f"{request.labels[small[0]].name}: {areas[small[0]]:.4f}, at least {options.min_area:g}"
            return Rejection(reason="too-small", detail=detail)
        if sum(areas) > options.max_area:
            return Rejection(reason="too-large", detail=f"{sum(areas):.4f}, at most {options.max_area:g}")
        if min(boxes) < options.min_box_agreement:
            detail = f"IoU {min(boxes):.3f}, at least {options.min_box_agreement:g}"
            return Rejection(reason="mask-leaves-box", detail=detail)
        quality: dict[str, float | int | list[float]] = {
            "objects": len(objects),
            "scores": [round(float(score), 4) for score in objects.best],
            "areas": [round(area, 5) for area in areas],
            "outline_quality": round(float(np.concatenate(qualities).min()), 4),
            "box_agreement": round(min(boxes), 4),
            **more,
        }
        if options.cross_check and request.counterfactual is not None:
            differing = difference_mask(request.image, request.counterfactual, PairDifferenceMasker.Options())
            iou = agreement(covered, differing)
            if iou < options.min_pair_agreement:
                detail = f"IoU {iou:.3f}, at least {options.min_pair_agreement:g}"
                return Rejection(reason="maskers-disagree", detail=detail)
            quality["pair_agreement"] = round(iou, 4)
        return Masked(mask=result, quality=quality)
