"""The segmenter ``colour-threshold``: an object is what has the colour of its box's centre."""

from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import Field

from magicseg.backends import SegmentRequest, Segments
from magicseg.settings import Settings
from magicseg_colours.colours import distance

RECIPE = 1  # goes up whenever the same image, boxes and options give other outlines

_FAR = -8.0  # the logit of a pixel outside the box


class ThresholdSegmenter:
    """Outlines by a threshold on the distance between colours."""

    class Options(Settings):
        """Where the threshold is."""

        tolerance: float = Field(60.0, gt=0, le=255, description="distance in RGB up to which a pixel belongs to it")

    @classmethod
    def identity(cls, options: "ThresholdSegmenter.Options") -> Mapping[str, str | int]:
        """The recipe's number: outlines change only with it."""
        return {"colour-threshold": RECIPE}

    def __init__(self, settings: object, options: "ThresholdSegmenter.Options") -> None:
        """Needs nothing of the stage's settings."""
        self._tolerance = options.tolerance

    def segment(self, requests: Sequence[SegmentRequest]) -> list[Segments]:
        """One outline per box."""
        return [self._segmented(request) for request in requests]

    def _segmented(self, request: SegmentRequest) -> Segments:
        logits = np.full((len(request.boxes), *request.image.shape[:2]), _FAR, dtype=np.float32)
        quality = np.zeros(len(request.boxes), dtype=np.float32)
        for place, box in enumerate(request.boxes):
            left, top = np.floor(box[:2]).astype(int)
            right, bottom = np.ceil(box[2:]).astype(int)
            part = request.image[top:bottom, left:right]
            rows, columns = part.shape[0] // 4, part.shape[1] // 4
            centre = part[rows : part.shape[0] - rows, columns : part.shape[1] - columns]
            alike = 1 - distance(part, np.median(centre, axis=(0, 1))) / self._tolerance
            logits[place, top:bottom, left:right] = -_FAR * alike
            quality[place] = (np.abs(alike) > 0.25).mean()  # of how many pixels there is no doubt
        return Segments(logits=logits, quality=quality)
