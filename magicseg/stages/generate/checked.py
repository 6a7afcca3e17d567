"""A generator whose pairs are measured and judged, and made again where a detector finds that they are none."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeGuard

import numpy as np

from magicseg.backends import DetectRequest, GenerateRequest, Generator, ImagePair, Rejection
from magicseg.config.array_stages import ImageQualitySettings, ValiditySettings
from magicseg.core.randomness import sample_seed
from magicseg.labels import Label
from magicseg.stages.generate.image_quality import contrast, difference_hash, sharpness
from magicseg.vision.batches import HasBatch
from magicseg.vision.finder import Finder, missing_label, remaining_label


@dataclass
class _Attempt:
    """A sample that is still to be made: its place among the requests, and the request with the attempt's seed."""

    place: int
    request: GenerateRequest
    faults: list[str]


class JudgedGenerator:
    """Wraps a generator back end; is one itself."""

    def __init__(
        self, generator: Generator, quality: ImageQualitySettings, validity: ValiditySettings | None
    ) -> None:
        """Load the detector, if pairs are to be checked. Raises: BackendError."""
        self._generator, self._quality, self._validity = generator, quality, validity
        batch = HasBatch(validity.batch_size, "generate.validity.batch_size") if validity else None
        self._finder = Finder(validity, batch) if validity and batch else None

    def check_labels(self, labels: Sequence[Label]) -> None:
        """Raise BackendError if the generator or the detector can do nothing with one of these."""
        for part in (self._generator, self._finder):
            check = getattr(part, "check_labels", None)
            if check is not None:
                check(labels)

    def generate(self, requests: Sequence[GenerateRequest]) -> list[ImagePair | Rejection]:
        """One measured pair, or a rejection with its reason, per request.

        A pair that is not valid is made again with a seed derived from the sample's own and the attempt.
        """
        answers: dict[int, ImagePair | Rejection] = {}
        attempts = [_Attempt(place, request, []) for place, request in enumerate(requests)]
        while attempts:
            made = list(self._generator.generate([attempt.request for attempt in attempts]))
            again: list[_Attempt] = []
            for attempt, judged in zip(attempts, self._judged(attempts, made), strict=True):
                if judged is None:
                    again.append(self._next(attempt, requests[attempt.place].seed))
                else:
                    answers[attempt.place] = judged
            attempts = again
        return [answers[place] for place in range(len(requests))]

    def _next(self, attempt: _Attempt, seed: int) -> _Attempt:
        return replace(
            attempt, request=replace(attempt.request, seed=sample_seed(seed, "validity", len(attempt.faults)))
        )

    def _judged(
        self, attempts: Sequence[_Attempt], made: Sequence[ImagePair | Rejection]
    ) -> list[ImagePair | Rejection | None]:
        """The answers; None for a sample that is to be made again."""
        if len(made) != len(attempts):
            raise ValueError(f"the back end gave {len(made)} answers to {len(attempts)} requests")
        answers: list[ImagePair | Rejection | None] = [
            self._measured(answer) if _is_pair(answer) else answer for answer in made
        ]
        pairs = [(place, answer) for place, answer in enumerate(answers) if _is_pair(answer)]
        if self._finder is None or self._validity is None or not pairs:
            return answers
        found = self._finder.find(
            [
                DetectRequest(image=image, labels=attempts[place].request.labels)
                for place, pair in pairs
                for image in (pair.image, pair.counterfactual)
            ]
        )
        for number, (place, pair) in enumerate(pairs):
            attempt, objects, remaining = attempts[place], found[2 * number], found[2 * number + 1]
            labels = attempt.request.labels
            fault = missing_label(labels, objects) or remaining_label(labels, remaining)
            if fault is None:
                scores = {
                    "score": round(float(objects.best.min(initial=1)), 4),
                    "counterfactual_score": round(float(remaining.best.max(initial=0)), 4),
                    "validity_attempts": len(attempt.faults) + 1,
                }
                answers[place] = replace(pair, quality={**pair.quality, **scores})
                continue
            attempt.faults.append(f"{fault.reason} ({fault.detail})")
            answers[place] = None
            if len(attempt.faults) > self._validity.retries:
                tries = "; ".join(attempt.faults)
                answers[place] = Rejection(reason=fault.reason, detail=f"{len(attempt.faults)} attempts: {tries}")
        return answers

    def _measured(self, pair: ImagePair) -> ImagePair | Rejection:
        images = (pair.image, pair.counterfactual)
        sharp, strong = min(map(sharpness, images)), min(map(contrast, images))
        if sharp < self._quality.min_sharpness:
            return Rejection(
                reason="blurred-image", detail=f"sharpness {sharp:.2f}, at least {self._quality.min_sharpness:g}"
            )
        if strong < self._quality.min_contrast:
            return Rejection(
                reason="flat-image", detail=f"contrast {strong:.2f}, at least {self._quality.min_contrast:g}"
            )
        measures: dict[str, float | str] = {
            "sharpness": round(sharp, 2),
            "contrast": round(strong, 2),
            "hash": difference_hash(pair.image),
        }
        return replace(pair, quality={**pair.quality, **measures})


def _is_pair(answer: ImagePair | Rejection | None) -> TypeGuard[ImagePair]:
    """Whether there are images to look at; what else a back end may have given, the stage refuses."""
    return isinstance(answer, ImagePair) and all(
        image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
        for image in (answer.image, answer.counterfactual)
    )
