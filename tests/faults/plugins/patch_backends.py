"""Images that a detector labels without errors: every label is a patch of a unique colour on grey.

For a fraction of the seeds, the generator can omit objects, or leave them in the counterfactual.
"""

import numpy as np
from pydantic import Field

from magicseg.backends import Detections, ImagePair, Segments
from magicseg.core.settings import Settings


def colour(label):
    """Return the colour of a label's patch."""
    return np.array([255, 10 * label.id, 255], np.uint8)


class NoOptions(Settings):
    """No options."""


class PatchOptions(Settings):
    """Numbers of seeds with a fault: the seeds whose remainder by 4 is below the number."""

    forget: int = Field(0, ge=0, le=4)
    leave: int = Field(0, ge=0, le=4)


class _Backend:
    Options = NoOptions

    @classmethod
    def identity(cls, options):
        return {"patches": 1}

    def __init__(self, settings, options):
        self.settings, self.options = settings, options


class Patches(_Backend):
    """Generator of patches."""

    Options = PatchOptions

    def generate(self, requests):
        return [self._pair(request) for request in requests]

    def _pair(self, request):
        size = self.settings.size
        random = np.random.default_rng(request.seed)
        empty = np.repeat(random.integers(60, 200, (size, size, 1), dtype=np.uint8), 3, axis=2)
        full = empty.copy()
        for index, label in enumerate(request.labels):
            top, left = random.integers(0, size // 2 - 2), random.integers(0, size // 4) + index * size // 2
            full[top : top + size // 3, left : left + size // 4] = colour(label)
        image = empty if request.seed % 4 < self.options.forget else full
        counterfactual = full if request.seed // 4 % 4 < self.options.leave else empty
        return ImagePair(image=image, counterfactual=counterfactual, quality={})


class PatchDetector(_Backend):
    """Detector that returns a candidate per visible label, and a false candidate over the whole image."""

    def detect(self, requests):
        return [self._found(request.image, request.labels) for request in requests]

    def _found(self, image, labels):
        height, width = image.shape[:2]
        boxes, scores = [[0, 0, width, height]], [[0.1] * len(labels)]
        for index, label in enumerate(labels):
            rows, columns = np.nonzero((image == colour(label)).all(axis=2))
            if rows.size:
                boxes.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
                scores.append([0.9 if other == index else 0.2 for other in range(len(labels))])
        values = np.array(scores, np.float32)
        return Detections(boxes=np.array(boxes, np.float32), confidence=values.max(axis=1), scores=values)


class CornerOptions(Settings):
    """``missing_below``: the detector finds nothing in images whose first value is below this."""

    missing_below: int = Field(0, ge=0, le=256)


class CornerDetector(_Backend):
    """Detector that finds every queried label at a fixed position in all images."""

    Options = CornerOptions

    def detect(self, requests):
        answers = []
        for request in requests:
            height, width = request.image.shape[:2]
            labels = len(request.labels)
            found = 0.9 if request.image[0, 0, 0] >= self.options.missing_below else 0.1
            box = np.array([[width // 8, height // 8, width // 2, height // 2]] * labels, np.float32)
            scores = (np.eye(labels) * found).astype(np.float32)
            answers.append(Detections(boxes=box, confidence=scores.max(axis=1), scores=scores))
        return answers


class PatchSegmenter(_Backend):
    """Segmenter that returns the box without its outermost pixels, which have uncertain scores."""

    def segment(self, requests):
        answers = []
        for request in requests:
            logits = np.full((len(request.boxes), *request.image.shape[:2]), -6, np.float32)
            for one, (left, top, right, bottom) in zip(logits, request.boxes.astype(int), strict=True):
                one[top:bottom, left:right] = 0.5
                one[top + 1 : bottom - 1, left + 1 : right - 1] = 6
            answers.append(Segments(logits=logits, quality=np.full(len(logits), 0.8, np.float32)))
        return answers


class BlobDetector(_Backend):
    """One box per label around the pixels of about its colour: not at whole pixels, and not lost in JPEG."""

    def detect(self, requests):
        return [self._found(request.image, request.labels) for request in requests]

    def _found(self, image, labels):
        height, width = image.shape[:2]
        rows, columns = np.mgrid[:height, :width].astype(np.float32) + 0.5
        boxes, scores = [], np.zeros((len(labels), len(labels)), np.float32)
        for index, label in enumerate(labels):
            distance = np.linalg.norm(image.astype(np.float32) - colour(label), axis=2)
            share = np.exp(-((distance / 60) ** 2)) + 1e-9
            scores[index, index] = share.sum() / (share.sum() + 20)
            middle = [np.average(where, weights=share) for where in (columns, rows)]
            spread = [
                1.8 * np.average((where - at) ** 2, weights=share) ** 0.5
                for where, at in zip((columns, rows), middle, strict=True)
            ]
            box = [at + sign * reach for sign in (-1, 1) for at, reach in zip(middle, spread, strict=True)]
            boxes.append(np.clip(box, 0, [width, height, width, height]))
        boxes = np.array(boxes, np.float32)
        return Detections(boxes=boxes, confidence=scores.max(axis=1), scores=scores, masks=self._masks(image, boxes))

    def _masks(self, image, boxes):
        return None


def ellipses(image, boxes):
    """Logits of the ellipses in boxes, brighter pixels surer."""
    height, width = image.shape[:2]
    rows, columns = np.mgrid[:height, :width].astype(np.float32) + 0.5
    logits = []
    for left, top, right, bottom in boxes:
        x = (columns - (left + right) / 2) / ((right - left) / 2)
        y = (rows - (top + bottom) / 2) / ((bottom - top) / 2)
        logits.append(4 * (1 - x**2 - y**2) + image.mean(axis=2) / 256)
    return np.array(logits, np.float32).reshape(-1, height, width)


class BlobMaskDetector(BlobDetector):
    """The same boxes and their ellipses in one step."""

    GIVES_MASKS = True

    def _masks(self, image, boxes):
        return ellipses(image, boxes)


class BlobSegmenter(_Backend):
    """The ellipse in a box."""

    def segment(self, requests):
        return [Segments(logits=ellipses(request.image, request.boxes)) for request in requests]
