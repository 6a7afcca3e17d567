"""The generator back end ``diffusers``: text-to-image pipelines, by family (`magicseg.stages.generate.families`).

Both images of a pair are painted in one call, at one batch size. The last batch of a shard is padded, so that a
sample's pixels do not depend on where its shard ends. A pair with a black, flat or unsafe image is regenerated with a
seed derived from the sample's own, together with other pairs of its shard.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from magicseg.backends import GenerateRequest, Image, ImagePair, Rejection, Retry
from magicseg.config import finding
from magicseg.core.errors import BackendError
from magicseg.core.randomness import sample_seed
from magicseg.labels import Label
from magicseg.stages.generate.cache_options import FirstBlockCache
from magicseg.stages.generate.counterfactual_caption import counterfactual_caption
from magicseg.stages.generate.diffusers_options import DiffusersOptions
from magicseg.stages.generate.pipeline_folder import SD3_PARTS, parts_of, read_files, read_index
from magicseg.stages.retries import answered_in_batches
from magicseg.weights import Weights, place_of
from magicseg.weights.cache import location

if TYPE_CHECKING:
    from magicseg.stages.generate.inpainting import ObjectRemover, Where
    from magicseg.stages.generate.pipeline import PaintedImages, TextToImage

RECIPE = 1  # raise it when the same request, options and weights give other pixels

FAULTS = ("black-image", "flat-image", "unsafe-image")
REMOVAL_FAULTS = ("object-missing", "object-too-large")


class HasSizeAndBatch(Protocol):
    """What the back end needs of the stage's settings."""

    @property
    def size(self) -> int:
        """Side of the square images in pixels."""

    @property
    def batch_size(self) -> int:
        """Pairs in one call."""


@dataclass(frozen=True)
class _PairRequest:
    """A pair that is still to be painted.

    ``text`` is the counterfactual's caption. ``faults`` has which image failed, and how, of every earlier attempt.
    """

    request: GenerateRequest
    text: str
    faults: tuple[tuple[str, str], ...] = ()

    @property
    def index(self) -> int:
        """The sample's index in the run."""
        return self.request.index

    def seeds(self, noise: str) -> tuple[int, int]:
        """Return the seeds of the initial noise of image and counterfactual, in this attempt."""
        attempt = len(self.faults)
        image = sample_seed(self.request.seed, "image", attempt)
        return image, image if noise == "shared" else sample_seed(self.request.seed, "counterfactual", attempt)


class DiffusersGenerator:
    """Back end of the generate stage."""

    Options = DiffusersOptions
    LIBRARIES = ("torch", "diffusers", "transformers")

    @classmethod
    def identity(cls, options: DiffusersOptions) -> Mapping[str, str | int]:
        """Return the recipe's number, and for inpainting the recipe of finding objects."""
        found: dict[str, str | int] = {"diffusers": RECIPE}
        if options.inpaint:
            found["finding"] = finding.RECIPE
        if options.drop_t5:
            found["drop_t5"] = 1
        return found

    @classmethod
    def weights(cls, options: DiffusersOptions) -> list[Weights]:
        """Return the pipeline. Raises BackendError if a path holds no pipeline of a known family."""
        by_path = options.revision is None
        if by_path:
            known = options.family is not None
            parts = parts_of(read_index(place_of(options.model), drop_t5=options.drop_t5, known=known))
        else:
            parts = list(SD3_PARTS) if options.drop_t5 else ["*"]
        return [
            Weights(
                setting="model",
                model=options.model,
                revision=options.revision,
                files=read_files(parts),
                variant=options.variant,
            )
        ]

    def __init__(self, settings: HasSizeAndBatch, options: DiffusersOptions) -> None:
        """Load the pipeline. Raises: BackendError."""
        try:
            from magicseg.stages.generate.pipeline import TextToImage
        except ImportError as error:
            raise BackendError(
                f"back end 'diffusers' cannot be imported: {error}",
                hint="install its libraries: pip install 'magicseg[models]'",
            ) from error
        if isinstance(options.cache, FirstBlockCache) and settings.batch_size > 1:
            raise BackendError(
                f"generate.options.cache: first-block decides for a whole batch, so with generate.batch_size "
                f"{settings.batch_size} a pair's pixels would depend on its neighbours in the shard",
                hint="set generate.batch_size=1, or choose another cache.method",
            )
        self._batch_size = settings.batch_size
        self._options = options
        self.pipeline = TextToImage(options, location(self.weights(options)[0]), settings.size)
        self.pipeline.warm_up(settings.batch_size)
        self._remover = _remover(self.pipeline, options, settings.batch_size)

    def check_labels(self, labels: Sequence[Label]) -> None:
        """Raise BackendError if the detector of inpainting cannot query one of these labels."""
        if self._remover is not None:
            self._remover.check_labels(labels)

    def generate(self, requests: Sequence[GenerateRequest]) -> list[ImagePair | Rejection]:
        """Return one pair, or a rejection with its reason, per request."""
        answers = dict(answered_in_batches(requests, self._batch_size, self.attempt))
        return [answers[position] for position in range(len(requests))]

    def attempt(self, requests: Sequence[GenerateRequest | _PairRequest]) -> list[ImagePair | Rejection | Retry]:
        """Answer up to ``batch_size`` requests; a pair with a faulty image is a retry."""
        answers: dict[int, ImagePair | Rejection | Retry] = {}
        pairs: dict[int, _PairRequest] = {}
        for position, request in enumerate(requests):
            pair = request if isinstance(request, _PairRequest) else self._pair_request(request)
            if isinstance(pair, Rejection):
                answers[position] = pair
            else:
                pairs[position] = pair
        if pairs:
            batch = list(pairs.values())
            for position, pair, (image, other) in zip(pairs, batch, self._paint(batch), strict=True):
                if isinstance(image, str):
                    answers[position] = self._failed(pair, "image", image)
                elif isinstance(other, str):
                    answers[position] = self._failed(pair, "counterfactual", other)
                else:
                    answers[position] = self._pair(pair, image, other)
        return [answers[position] for position in range(len(requests))]

    def _pair_request(self, request: GenerateRequest) -> _PairRequest | Rejection:
        text = counterfactual_caption(request, self._options.counterfactual)
        return text if isinstance(text, Rejection) else _PairRequest(request, text)

    def _paint(self, batch: Sequence[_PairRequest]) -> list[tuple[Image | str, Image | str]]:
        """Paint both images of every pair in one call, padded with the last pair. A text is an image's fault."""
        rows = [*batch, *[batch[-1]] * (self._batch_size - len(batch))]
        seeds = [pair.seeds(self._options.noise) for pair in rows]
        captions, texts = [pair.request.caption for pair in rows], [pair.text for pair in rows]
        if self._remover is not None:
            return self._paint_and_remove(batch, captions, [image for image, _ in seeds])
        painted = self.pipeline.paint(
            [*captions, *texts], [*(image for image, _ in seeds), *(other for _, other in seeds)]
        )
        count = self._batch_size
        return [
            (self._image_or_fault(painted, row), self._image_or_fault(painted, count + row))
            for row in range(len(batch))
        ]

    def _paint_and_remove(
        self, batch: Sequence[_PairRequest], captions: Sequence[str], seeds: Sequence[int]
    ) -> list[tuple[Image | str, Image | str]]:
        """Paint the images, then fill the objects of those that show all of them: the counterfactuals."""
        assert self._remover is not None
        painted = self.pipeline.paint(captions, seeds)
        images = [self._image_or_fault(painted, row) for row in range(len(batch))]
        good = [(row, image) for row, image in enumerate(images) if not isinstance(image, str)]
        holes = self._remover.holes([image for _, image in good], [batch[row].request for row, _ in good])
        others: dict[int, Image | str] = {}
        to_fill: list[tuple[int, Image, Where]] = []
        for (row, image), hole in zip(good, holes, strict=True):
            if isinstance(hole, str):
                images[row] = hole
            else:
                to_fill.append((row, image, hole))
        if to_fill:
            padded = [*to_fill, *[to_fill[-1]] * (self._batch_size - len(to_fill))]
            filled = self._remover.fill(
                [batch[row].text for row, _, _ in padded],
                [batch[row].seeds("independent")[1] for row, _, _ in padded],
                [image for _, image, _ in padded],
                [hole for _, _, hole in padded],
            )
            others = {row: self._image_or_fault(filled, place) for place, (row, _, _) in enumerate(to_fill)}
        return [(image, others.get(row, "")) for row, image in enumerate(images)]

    def _image_or_fault(self, painted: "PaintedImages", row: int) -> Image | str:
        """Return an image, or its fault."""
        if painted.unsafe[row]:
            return "unsafe-image"
        if painted.undefined[row]:
            return "black-image"
        return image_fault(painted.images[row], self._options.min_contrast) or painted.images[row]

    def _pair(self, pair: _PairRequest, image: Image, counterfactual: Image) -> ImagePair:
        lost = max(self.pipeline.lost_tokens(text) for text in (pair.request.caption, pair.text))
        names = FAULTS if self._remover is None else (*FAULTS, *REMOVAL_FAULTS)
        counts = {name: sum(fault == name for _, fault in pair.faults) for name in names}
        return ImagePair(
            image=image,
            counterfactual=counterfactual,
            quality={"attempts": len(pair.faults) + 1, "truncated_tokens": lost, **counts},
        )

    def _failed(self, pair: _PairRequest, which: str, fault: str) -> Rejection | Retry:
        """Return another attempt, or after the last one the rejection."""
        faults = (*pair.faults, (which, fault))
        if len(faults) <= self._options.retries:
            return Retry(request=replace(pair, faults=faults))
        tries = ", ".join(f"{image} {found}" for image, found in faults)
        return Rejection(reason=fault, detail=f"{len(faults)} attempts: {tries}")


def _remover(pipeline: "TextToImage", options: DiffusersOptions, batch_size: int) -> "ObjectRemover | None":
    if options.inpaint is None:
        return None
    from magicseg.stages.generate.inpainting import ObjectRemover

    remover = ObjectRemover(pipeline, options.inpaint)
    remover.warm_up(batch_size)
    return remover


def image_fault(image: Image, min_contrast: float) -> str | None:
    """Return "black-image", "flat-image" (standard deviation below ``min_contrast``, in 0 to 255), or None."""
    if not image.any():
        return "black-image"
    return "flat-image" if float(np.std(image, dtype=np.float64)) < min_contrast else None
