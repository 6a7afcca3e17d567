"""Augment one sample as the paper does: a crop at a random scale, and distorted colours.

The caller gives the random generator. Images are uint8 (height, width, 3), RGB; masks are uint16 (height, width).
OpenCV resizes and converts colours, as in mmsegmentation's pipeline. On the CPU it took a sixth of Pillow's time to
resize, and a thirteenth to convert.
"""

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from magicseg.config.training_data import DataSettings
from magicseg.labels import IGNORE

TRIES = 10
MEAN_COLOUR = (123, 117, 104)
"""CLIP's mean colour, rounded: what the encoder sees as 0."""

BRIGHTNESS = 32
CONTRAST = (0.5, 1.5)
SATURATION = (0.5, 1.5)
HUE = 18
"""Of the 180 steps that OpenCV's 8-bit hue has: 36 degrees."""

Pixels = NDArray[np.uint8]
Mask = NDArray[np.uint16]


class Crop(NamedTuple):
    """A rectangle of the stored image, and the size to which it is resized, in pixels."""

    top: int
    left: int
    height: int
    width: int
    to_height: int
    to_width: int


def choose_crop(mask: Mask, settings: DataSettings, generator: np.random.Generator) -> Crop:
    """Draw a scale and a rectangle, as mmsegmentation's RandomResize and RandomCrop do.

    The image would be resized, keeping its aspect, to fit (resize_long, resize_short) times a ratio uniform in
    scale_low to scale_high, then cut to ``crop`` x ``crop``. Only the rectangle is computed: it is drawn in whole
    pixels of the stored image, crop / scale of them a side (rounded), and resized alone. A side shorter than the
    crop is used whole, and padded later.

    The rectangle is redrawn, up to `TRIES` times in all, while one class has more than ``one_class_at_most`` of the
    pixels that are not IGNORE. Background is a class here. The last rectangle is used in any case.
    """
    assert settings.crop is not None
    height, width = mask.shape
    ratio = generator.uniform(settings.scale_low, settings.scale_high)
    scale = ratio * min(settings.resize_long / max(height, width), settings.resize_short / min(height, width))
    (tall, to_height), (wide, to_width) = (_extent(side, scale, settings.crop) for side in (height, width))
    tops = generator.integers(0, height - tall + 1, TRIES)
    lefts = generator.integers(0, width - wide + 1, TRIES)
    chosen = 0
    if (tall, wide) != (height, width) and settings.one_class_at_most < 1:
        chosen = _first_varied(mask, tops, lefts, (tall, wide), settings.one_class_at_most)
    return Crop(int(tops[chosen]), int(lefts[chosen]), tall, wide, to_height, to_width)


def _extent(side: int, scale: float, crop: int) -> tuple[int, int]:
    """Return the length of one side of the crop in the stored image, and after resizing, in pixels."""
    scaled = max(1, int(side * scale + 0.5))
    if scaled <= crop:
        return side, scaled
    return min(side, max(1, int(crop / scale + 0.5))), crop


def _first_varied(
    mask: Mask, tops: NDArray[np.int64], lefts: NDArray[np.int64], size: tuple[int, int], most: float
) -> int:
    """Return the first rectangle in which no class exceeds its share, else the last."""
    ids = np.flatnonzero(np.bincount(mask.ravel()))
    ids = ids[ids != IGNORE]
    if len(ids) < 2:
        return len(tops) - 1
    bottoms, rights = tops + size[0], lefts + size[1]
    counts = np.empty((len(ids), len(tops)), np.int64)
    for row, id_ in enumerate(ids.tolist()):
        sums = cv2.integral((mask == id_).view(np.uint8))
        counts[row] = sums[bottoms, rights] - sums[tops, rights] - sums[bottoms, lefts] + sums[tops, lefts]
    varied = np.flatnonzero((counts.max(axis=0) <= most * counts.sum(axis=0)) & ((counts > 0).sum(axis=0) > 1))
    return int(varied[0]) if len(varied) else len(tops) - 1


def cut_image(image: Pixels, crop: Crop) -> Pixels:
    """Return the rectangle, bilinearly resized: uint8 (to_height, to_width, 3)."""
    region = image[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
    return np.asarray(cv2.resize(region, (crop.to_width, crop.to_height), interpolation=cv2.INTER_LINEAR), np.uint8)


def cut_mask(mask: Mask, crop: Crop) -> Mask:
    """Return the rectangle, resized by nearest neighbour: uint16 (to_height, to_width)."""
    region = mask[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
    nearest = cv2.INTER_NEAREST_EXACT  # INTER_NEAREST is half a pixel off INTER_LINEAR
    return np.asarray(cv2.resize(region, (crop.to_width, crop.to_height), interpolation=nearest), np.uint16)


class Distortion(NamedTuple):
    """Lookup tables for colours: one before, those of hue and saturation, one after. None: no change."""

    before: Pixels | None
    hue_saturation: Pixels | None
    after: Pixels | None


def draw_distortion(generator: np.random.Generator) -> Distortion:
    """Draw a photometric distortion (Liu et al. 2016, SSD, arXiv 1512.02325, as mmsegmentation has it).

    Each with probability 1/2: brightness (an offset), contrast (a factor, before or after the next two, each with
    probability 1/2), saturation (a factor), hue (a rotation).
    """
    brighter, contrasted, first, saturated, turned = (generator.random(5) < 0.5).tolist()
    delta = generator.uniform(-BRIGHTNESS, BRIGHTNESS)
    contrast = generator.uniform(*CONTRAST)
    saturation = generator.uniform(*SATURATION)
    turn = int(generator.integers(-HUE, HUE + 1))
    levels = np.arange(256, dtype=np.float64)
    table = np.clip(levels + delta, 0, 255) if brighter else levels
    in_colour = saturated or turned
    if contrasted and (first or not in_colour):
        table = np.clip(table * contrast, 0, 255)
    tables = None
    if in_colour:
        tables = np.stack([np.arange(256)] * 3, axis=-1).astype(np.uint8)[None]
        if turned:
            tables[0, :180, 0] = (np.arange(180) + turn) % 180
        if saturated:
            tables[0, :, 1] = np.clip(levels * saturation + 0.5, 0, 255)
    return Distortion(
        before=_rounded(table) if brighter or (contrasted and (first or not in_colour)) else None,
        hue_saturation=tables,
        after=_rounded(np.clip(levels * contrast, 0, 255)) if contrasted and in_colour and not first else None,
    )


def distort(image: Pixels, distortion: Distortion) -> Pixels:
    """Return the image with distorted colours, uint8 of the same shape."""
    if distortion.before is not None:
        image = np.asarray(cv2.LUT(image, distortion.before), np.uint8)
    if distortion.hue_saturation is not None:
        colours = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        cv2.LUT(colours, distortion.hue_saturation, dst=colours)
        image = np.asarray(cv2.cvtColor(colours, cv2.COLOR_HSV2RGB), np.uint8)
        if distortion.after is not None:  # only after a change of colour, so the array is a copy
            cv2.LUT(image, distortion.after, dst=image)
    return image


def mirror(array: NDArray[np.integer]) -> NDArray[np.integer]:
    """Flip left and right."""
    return np.asarray(cv2.flip(array, 1))


def _rounded(table: NDArray[np.float64]) -> Pixels:
    return (table + 0.5).astype(np.uint8)
