"""An image's instances and their masks to its class map, or the reason why the sample is dropped."""

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from magicseg.backends import Instances, Masked, MaskRequest, Rejection, Segments
from magicseg.core.settings import Settings
from magicseg.stages.mask.class_map import Outline, agreement, box_agreement, class_map, outline
from magicseg.stages.mask.pair_difference import PairDifferenceMasker, difference_mask


class ComposeOptions(Settings):
    """What makes a class map of instances, and which maps are refused."""

    min_island: float = Field(
        0.0005, ge=0, lt=1, description="share of the image below which a loose part is dropped"
    )
    border_margin: float = Field(0.0, ge=0, le=20, description="logits nearer to 0 become the ignore index; 0 = off")
    min_area: float = Field(0.001, ge=0, lt=1, description="of each label that was found, as a share of the image")
    max_area: float = Field(0.95, gt=0, le=1, description="of all labels together, as a share of the image")
    min_box_agreement: float = Field(0.0, ge=0, le=1, description="IoU of every outline's bounding box and its box")
    cross_check: bool = Field(
        False, description="compare with where the two images differ: for pairs with shared noise, or inpainted"
    )
    min_pair_agreement: float = Field(0.0, ge=0, le=1, description="IoU with where they differ, if cross_check")


def compose(
    request: MaskRequest,
    found: Instances,
    outlines: Iterable[Segments],
    options: ComposeOptions,
    quality: Mapping[str, float],
) -> Masked | Rejection:
    """Compose the class map of an image that shows at least one object.

    Args: outlines: one per object, in order, in parts of any length; no part is kept. quality: noted with the map,
    beside its own figures.
    """
    boxes: list[float] = []
    guesses: list[NDArray[np.float32]] = []
    covered = np.zeros(request.image.shape[:2], bool)

    def logits_of_objects() -> Iterator[NDArray[np.float32]]:
        for part in outlines:
            if part.quality is not None:
                guesses.append(part.quality)
            yield from part.logits

    def drawn() -> Iterator[Outline]:
        named = zip(logits_of_objects(), found.labels.tolist(), found.scores, found.boxes, strict=True)
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

    result = class_map(drawn(), request.image.shape[:2])
    areas = [float((result == label.id).mean()) for label in request.labels]
    places = sorted(set(found.labels.tolist()))
    small = [place for place in places if areas[place] < options.min_area or areas[place] == 0]
    if small:
        detail = f"{request.labels[small[0]].name}: {areas[small[0]]:.4f}, at least {options.min_area:g}"
        return Rejection(reason="too-small", detail=detail)
    if sum(areas) > options.max_area:
        return Rejection(reason="too-large", detail=f"{sum(areas):.4f}, at most {options.max_area:g}")
    if min(boxes) < options.min_box_agreement:
        detail = f"IoU {min(boxes):.3f}, at least {options.min_box_agreement:g}"
        return Rejection(reason="mask-leaves-box", detail=detail)
    told: dict[str, float | int | list[float]] = {
        "objects": len(found),
        "scores": [round(float(score), 4) for score in found.best],
        "areas": [round(area, 5) for area in areas],
        "box_agreement": round(min(boxes), 4),
        **quality,
    }
    if guesses:
        told["outline_quality"] = round(float(np.concatenate(guesses).min()), 4)
    if options.cross_check and request.counterfactual is not None:
        differing = difference_mask(request.image, request.counterfactual, PairDifferenceMasker.Options())
        iou = agreement(covered, differing)
        if iou < options.min_pair_agreement:
            detail = f"IoU {iou:.3f}, at least {options.min_pair_agreement:g}"
            return Rejection(reason="maskers-disagree", detail=detail)
        told["pair_agreement"] = round(iou, 4)
    return Masked(mask=result, quality=told)
