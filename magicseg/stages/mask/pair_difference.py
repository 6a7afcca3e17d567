"""The masker ``pair-difference``: the object is where an image and its counterfactual differ. Needs no detector."""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from PIL import ImageFilter
from pydantic import Field

from magicseg.backends import Image, Masked, MaskRequest, Rejection
from magicseg.core.settings import Settings
from magicseg.labels import BACKGROUND
from magicseg.stages.mask.class_map import without_islands

RECIPE = 1  # raise it when the same pair and options give another mask

_DEEPEST_SHADOW = 0.6  # a shadow leaves at least this share of the light

Where: TypeAlias = NDArray[np.bool_]  # (height, width)


class PairDifferenceMasker:
    """Back end of the mask stage for aligned pairs that show one label."""

    class Options(Settings):
        """What counts as a difference, and which masks are refused."""

        threshold: float = Field(12, gt=0, lt=255, description="difference in any channel, in 0 to 255")
        smoothing: float = Field(0, ge=0, le=10, description="radius of a blur of both images, in pixels")
        shadow_tolerance: float = Field(
            6,
            ge=0,
            lt=255,
            description="a darker counterfactual within this difference is a shadow; 0 = off",
        )
        min_island: float = Field(
            0.0,
            ge=0,
            lt=1,
            description="share of the image; smaller parts are dropped, except the largest; 0 = off",
        )
        fill_holes: bool = Field(False, description="enclosed pixels belong to the object")
        close_gaps: int = Field(0, ge=0, le=50, description="pixels; narrower gaps and notches are closed")
        min_area: float = Field(0.005, ge=0, lt=1, description="share of the image")
        max_area: float = Field(0.7, gt=0, le=1, description="share of the image")

    @classmethod
    def identity(cls, options: "PairDifferenceMasker.Options") -> Mapping[str, str | int]:
        """Return the recipe's number: masks change only with it."""
        return {"pair-difference": RECIPE}

    def __init__(self, settings: object, options: "PairDifferenceMasker.Options") -> None:
        """Keep the options. The stage's settings are not needed."""
        self._options = options

    def mask(self, requests: Sequence[MaskRequest]) -> list[Masked | Rejection]:
        """Return one class map per pair. Pairs of several labels are rejected: a difference cannot separate them."""
        return [self._one(request) for request in requests]

    def _one(self, request: MaskRequest) -> Masked | Rejection:
        options = self._options
        if len(request.labels) != 1:
            names = ", ".join(label.name for label in request.labels) or "none"
            return Rejection(reason="ambiguous-labels", detail=f"needs exactly one label, got {names}")
        if request.counterfactual is None:
            return Rejection(reason="no-counterfactual", detail="a single image has none to compare it with")
        if request.image.shape != request.counterfactual.shape:
            shapes = f"{request.image.shape} and {request.counterfactual.shape}"
            return Rejection(reason="not-aligned", detail=shapes)
        found, difference = _differing(request.image, request.counterfactual, options)
        area = float(found.mean())
        if not found.any():
            most = float(difference.max())
            return Rejection(reason="no-difference", detail=f"at most {most:.1f}, threshold {options.threshold:g}")
        if area < options.min_area:
            return Rejection(reason="too-small", detail=f"{area:.4f}, at least {options.min_area:g}")
        if area > options.max_area:
            return Rejection(reason="too-large", detail=f"{area:.4f}, at most {options.max_area:g}")
        return Masked(
            mask=np.where(found, request.labels[0].id, BACKGROUND).astype(np.uint16),
            quality={
                "area": area,
                # Rows that show the object times columns that do, as a share of the image.
                "box": float(found.any(axis=0).sum() * found.any(axis=1).sum() / found.size),
                "difference_inside": float(difference[found].mean()),
                "difference_outside": float(difference[~found].mean()) if area < 1 else 0.0,
            },
        )


def difference_mask(image: Image, counterfactual: Image, options: PairDifferenceMasker.Options) -> Where:
    """Return where two images of equal size differ, without shadows and specks, cleaned by the options."""
    return _differing(image, counterfactual, options)[0]


def _differing(
    image: Image, counterfactual: Image, options: PairDifferenceMasker.Options
) -> tuple[Where, NDArray[np.float32]]:
    """Return where they differ, and by how much: (height, width), the greatest over the channels."""
    one, other = _blurred(image, options), _blurred(counterfactual, options)
    difference = np.abs(one - other).max(axis=2)
    found = difference > options.threshold
    if options.shadow_tolerance > 0:
        found &= ~_shadow(one, other, options.shadow_tolerance)
    return _cleaned(_without_specks(found), options), difference


def _cleaned(found: Where, options: PairDifferenceMasker.Options) -> Where:
    """Close gaps, fill holes and drop islands, as the options say."""
    from scipy import ndimage

    if options.close_gaps:
        reach = (options.close_gaps + 1) // 2
        padded = np.pad(found, reach)  # so that the image's border does not count as a gap
        disc = np.hypot(*np.ogrid[-reach : reach + 1, -reach : reach + 1]) <= reach
        found = ndimage.binary_closing(padded, structure=disc)[reach:-reach, reach:-reach]
    if options.fill_holes:
        found = ndimage.binary_fill_holes(found)
    return without_islands(found, options.min_island)


def _blurred(image: Image, options: PairDifferenceMasker.Options) -> NDArray[np.float32]:
    """Return the image as float (height, width, 3), 0 to 255, blurred if ``smoothing`` is set."""
    if options.smoothing == 0:
        return image.astype(np.float32)
    smooth = PIL.Image.fromarray(image).filter(ImageFilter.GaussianBlur(options.smoothing))
    return np.asarray(smooth, dtype=np.float32)


def _shadow(image: NDArray[np.float32], other: NDArray[np.float32], tolerance: float) -> Where:
    """Return where the image is the other one times a shadow's factor, equal in all three channels."""
    factor = (image * other).sum(axis=2) / np.maximum((other * other).sum(axis=2), 1)
    unexplained = np.abs(image - factor[..., None] * other).max(axis=2)
    shadow: Where = (factor > _DEEPEST_SHADOW) & (factor < 1) & (unexplained < tolerance)
    return shadow


def _without_specks(found: Where) -> Where:
    """Return the majority in each 3 x 3 neighbourhood, which removes specks and pinholes."""
    voted = PIL.Image.fromarray(found.astype(np.uint8) * 255).filter(ImageFilter.MedianFilter(3))
    return np.asarray(voted) > 127
