"""The detector ``colours``: a label's object is the largest area of the label's colour."""

from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import Field

from magicseg.backends import Detections, DetectRequest, Image
from magicseg.settings import Settings
from magicseg_colours.colours import Colour, colour_of, distance

RECIPE = 1  # goes up whenever the same image, labels and options give other boxes or scores


class ColourDetector:
    """Finds at most one object of each label, surer the nearer its pixels are to the colour."""

    class Options(Settings):
        """What counts as the colour."""

        tolerance: float = Field(60.0, gt=0, le=255, description="distance in RGB up to which a pixel has a colour")

    LIBRARIES = ("scipy",)

    @classmethod
    def identity(cls, options: "ColourDetector.Options") -> Mapping[str, str | int]:
        """The recipe's number: boxes and scores change only with it."""
        return {"colours": RECIPE}

    def __init__(self, settings: object, options: "ColourDetector.Options") -> None:
        """Needs nothing of the stage's settings."""
        self._tolerance = options.tolerance

    def detect(self, requests: Sequence[DetectRequest]) -> list[Detections]:
        """All candidates of every image."""
        return [self._detected(request) for request in requests]

    def _detected(self, request: DetectRequest) -> Detections:
        boxes: list[list[int]] = []
        scores: list[list[float]] = []
        for place, label in enumerate(request.labels):
            colour = colour_of(label)
            found = None if colour is None else self._largest(request.image, colour)
            if found is not None:
                box, score = found
                boxes.append(box)
                scores.append([score if other == place else 0.0 for other in range(len(request.labels))])
        by_label = np.array(scores, dtype=np.float32).reshape(-1, len(request.labels))
        return Detections(
            boxes=np.array(boxes, dtype=np.float32).reshape(-1, 4), confidence=by_label.max(axis=1), scores=by_label
        )

    def _largest(self, image: Image, colour: Colour) -> tuple[list[int], float] | None:
        """The box around the largest connected area of a colour, and its score; None if no pixel has the colour."""
        from scipy.ndimage import label

        far = distance(image, colour)
        parts, count = label(far <= self._tolerance)
        if count == 0:
            return None
        area = parts == 1 + np.bincount(parts.ravel())[1:].argmax()
        rows, columns = np.nonzero(area)
        box = [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]
        return box, float(1 - far[area].mean() / self._tolerance)
