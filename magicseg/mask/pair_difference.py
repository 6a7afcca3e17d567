"""The masker that needs no detector: the object is where an image and its counterfactual differ."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pictures
from PIL import ImageFilter
from pydantic import Field

from magicseg.backends import Image, Masked, MaskRequest, Rejection
from magicseg.labels import BACKGROUND
from magicseg.settings import Settings

RECIPE = 1  # goes up whenever the same pair and options give another mask


class PairDifferenceMasker:
    """Back end of the mask stage for aligned pairs that show one label."""

    class Options(Settings):
        """What counts as a difference, and which masks are refused."""

        threshold: float = Field(20, gt=0, lt=255, description="smoothed difference, largest of R, G and B")
        smoothing: float = Field(0.5, ge=0, le=10, description="radius of the blur of both images, in pixels")
        min_area: float = Field(0.01, ge=0, lt=1, description="share of the image")
        max_area: float = Field(0.7, gt=0, le=1, description="share of the image")

    @classmethod
    def identity(cls, options: "PairDifferenceMasker.Options") -> Mapping[str, str | int]:
        """The recipe's number: masks change only with it."""
        return {"pair-difference": RECIPE}

    def __init__(self, settings: object, options: "PairDifferenceMasker.Options") -> None:
        """Needs nothing of the stage's settings."""
        self._options = options

    def mask(self, requests: Sequence[MaskRequest]) -> list[Masked | Rejection]:
        """One class map per pair. Where a pair shows several labels, one difference cannot tell them apart."""
        return [self._one(request) for request in requests]

    def _one(self, request: MaskRequest) -> Masked | Rejection:
        options = self._options
        if len(request.labels) != 1:
            names = ", ".join(label.name for label in request.labels) or "none"
            return Rejection(reason="ambiguous-labels", detail=f"needs exactly one label, got {names}")
        if request.image.shape != request.counterfactual.shape:
            return Rejection(
                reason="not-aligned", detail=f"{request.image.shape} and {request.counterfactual.shape}"
            )
        difference = _difference(request.image, request.counterfactual, options.smoothing)
        found = _clean(difference > options.threshold)
        area = float(found.mean())
        if not found.any():
            return Rejection(
                reason="no-difference",
                detail=f"at most {difference.max():.1f}, threshold {options.threshold:g}",
            )
        if area < options.min_area:
            return Rejection(reason="too-small", detail=f"{area:.4f} of the image, need {options.min_area:g}")
        if area > options.max_area:
            return Rejection(
                reason="too-large", detail=f"{area:.4f} of the image, at most {options.max_area:g}"
            )
        box = float(found.any(axis=0).sum() * found.any(axis=1).sum() / found.size)
        return Masked(
            mask=np.where(found, request.labels[0].id, BACKGROUND).astype(np.uint16),
            quality={
                "area": area,
                "box": box,  # rows that hold the object times columns that do, as a share of the image
                "difference_inside": float(difference[found].mean()),
                "difference_outside": float(difference[~found].mean()) if area < 1 else 0.0,
            },
        )


def _difference(image: Image, other: Image, smoothing: float) -> NDArray[np.float32]:
    """Largest difference over the channels of the blurred images: (height, width), 0 to 255."""
    blur = ImageFilter.GaussianBlur(smoothing)
    first, second = (
        np.asarray(Pictures.fromarray(picture).filter(blur), dtype=np.float32) for picture in (image, other)
    )
    return np.abs(first - second).max(axis=2)


def _clean(found: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Removes specks and fills pinholes: the majority in each 3 x 3 neighbourhood."""
    smoothed = Pictures.fromarray(found.astype(np.uint8) * 255).filter(ImageFilter.MedianFilter(3))
    return np.asarray(smoothed) > 127
