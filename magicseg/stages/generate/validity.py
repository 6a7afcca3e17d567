"""A generator whose pairs are measured and checked by a detector; invalid pairs are regenerated."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

import numpy as np

from magicseg.backends import DetectRequest, GenerateRequest, Generator, Image, ImagePair, Instances, Rejection, Retry
from magicseg.config.run import StoreSettings
from magicseg.config.stage_settings import GenerateSettings
from magicseg.core.randomness import sample_seed
from magicseg.images.codecs import decode_jpeg, encode_jpeg
from magicseg.labels import Label
from magicseg.stages.generate.image_quality import contrast, difference_hash, sharpness
from magicseg.vision.batches import HasBatch
from magicseg.vision.finder import Finder, missing_label, remaining_label
from magicseg.vision.recorded_instances import kept_instances


@dataclass(frozen=True, kw_only=True)
class _Attempt:
    """A sample that still needs a valid pair.

    ``first`` is the stage's request. ``request`` is what the generator is given in this attempt. ``faults`` are those
    of the earlier pairs.
    """

    first: GenerateRequest
    request: Any
    faults: tuple[str, ...] = ()

    @property
    def index(self) -> int:
        """The sample's index in the run."""
        return self.first.index


class CheckedGenerator:
    """Wraps a generator back end: measures its pairs and checks them with a detector."""

    def __init__(self, generator: Generator, settings: GenerateSettings, store: StoreSettings) -> None:
        """Load the detector if ``settings.validity`` is set. Raises: BackendError."""
        self._generator, self._quality, self._store = generator, settings.quality, store
        self._validity = validity = settings.validity
        batch = HasBatch(validity.batch_size, "generate.validity.batch_size") if validity else None
        self._finder = Finder(validity, batch) if validity and batch else None

    def check_labels(self, labels: Sequence[Label]) -> None:
        """Raise BackendError if the generator or the detector cannot handle one of these labels."""
        for part in (self._generator, self._finder):
            check = getattr(part, "check_labels", None)
            if check is not None:
                check(labels)

    def attempt(self, requests: Sequence[GenerateRequest | _Attempt]) -> list[ImagePair | Rejection | Retry]:
        """Return a measured pair, a rejection or a retry per request.

        An invalid pair is a retry with a seed derived from the sample's own seed and the number of the attempt. After
        ``validity.retries`` of them the sample is rejected.
        """
        attempts = [one if isinstance(one, _Attempt) else _Attempt(first=one, request=one) for one in requests]
        made = attempted(self._generator, [one.request for one in attempts])
        if len(made) != len(attempts):
            raise ValueError(f"the back end gave {len(made)} answers to {len(attempts)} requests")
        answers: list[ImagePair | Rejection | Retry] = []
        for one, answer in zip(attempts, made, strict=True):
            if isinstance(answer, Retry):  # the generator's own
                answers.append(Retry(request=replace(one, request=answer.request)))
            else:
                answers.append(self._measured(answer) if _is_pair(answer) else answer)
        pairs = {place: answer for place, answer in enumerate(answers) if _is_pair(answer)}
        if self._finder is not None and pairs:
            found = self._finder.find(
                [
                    DetectRequest(image=as_stored(image, self._store), labels=attempts[place].first.labels)
                    for place, pair in pairs.items()
                    for image in (pair.image, pair.counterfactual)
                ]
            )
            for number, (place, pair) in enumerate(pairs.items()):
                answers[place] = self._checked(attempts[place], pair, found[2 * number], found[2 * number + 1])
        return answers

    def _checked(
        self, attempt: _Attempt, pair: ImagePair, found: Instances, remaining: Instances
    ) -> ImagePair | Rejection | Retry:
        """Return a pair with its scores and what was found, if it is valid.

        Args: found: in the image. remaining: in the counterfactual.
        """
        assert self._validity is not None
        labels = attempt.first.labels
        fault = missing_label(labels, found) or remaining_label(labels, remaining)
        if fault is None:
            scores = {
                "score": round(float(found.best.min(initial=1)), 4),
                "counterfactual_score": round(float(remaining.best.max(initial=0)), 4),
                "validity_attempts": len(attempt.faults) + 1,
            }
            return replace(pair, quality={**pair.quality, **scores, **kept_instances(found, remaining)})
        faults = (*attempt.faults, f"{fault.reason} ({fault.detail})")
        if len(faults) > self._validity.retries:
            return Rejection(reason=fault.reason, detail=f"{len(faults)} attempts: {'; '.join(faults)}")
        seed = sample_seed(attempt.first.seed, "validity", len(faults))
        return Retry(request=replace(attempt, request=replace(attempt.first, seed=seed), faults=faults))

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


def as_stored(image: Image, store: StoreSettings) -> Image:
    """Return an image as the mask stage will read it: after JPEG compression, if the store has that.

    What the check finds is then what the mask stage would find.
    """
    if store.image_codec != "jpeg" or image.shape[0] != image.shape[1]:  # the stage refuses the latter
        return image
    return decode_jpeg(encode_jpeg(image, store.jpeg_quality), image.shape[0])


def attempted(generator: Generator, requests: Sequence[Any]) -> list[ImagePair | Rejection | Retry]:
    """Return a generator's answers to a batch, of its ``attempt`` if it has that method."""
    attempt = getattr(generator, "attempt", None)
    return list(attempt(requests) if attempt is not None else generator.generate(requests))


def _is_pair(answer: ImagePair | Rejection | Retry) -> TypeGuard[ImagePair]:
    """Return whether an answer holds two RGB images. The stage refuses other answers of a back end."""
    return isinstance(answer, ImagePair) and all(
        image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
        for image in (answer.image, answer.counterfactual)
    )
