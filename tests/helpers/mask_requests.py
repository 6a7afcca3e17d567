"""Images and labels for maskers."""

import numpy as np

from magicseg.backends import SegmentRequest
from magicseg.labels import Label


def picture(seed: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Return an image of a few rectangles."""
    random = np.random.default_rng(seed)
    image = np.full((height, width, 3), random.integers(0, 256, 3), np.uint8)
    for _ in range(4):
        top, left = random.integers(0, height - 8), random.integers(0, width - 8)
        image[top : top + random.integers(8, 30), left : left + random.integers(8, 30)] = random.integers(0, 256, 3)
    return image


def labels(*names: str) -> tuple[Label, ...]:
    """Return labels with ids from 1."""
    return tuple(Label(id=id_, name=name) for id_, name in enumerate(names, start=1))


def segment_request(seed, size=(48, 64), count=5):
    """Return an image with ``count`` boxes, with integer and with fractional coordinates."""
    random = np.random.default_rng(seed)
    height, width = size
    low = random.uniform(0, 0.5, (count, 2)) * [width, height]
    high = low + random.uniform(0.2, 0.5, (count, 2)) * [width, height]
    boxes = np.concatenate([low, high], axis=1).astype(np.float32)
    boxes[::2] = boxes[::2].round()
    return SegmentRequest(image=picture(seed, *size), boxes=boxes)
