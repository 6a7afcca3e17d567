"""The generator back end ``diffusers``: text-to-image pipelines, by family (`magicseg.stages.generate.families`).

Both images of a pair are made in one call, at one batch size: the last batch of a shard is padded, so that a sample's
pixels do not depend on where its shard ends. A pair with a black, flat or unsafe image is made again with a seed
derived from the sample's own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from magicseg.backends import GenerateRequest, Image, ImagePair, Rejection
from magicseg.config import finding
from magicseg.core.errors import BackendError
from magicseg.core.randomness import sample_seed
from magicseg.labels import Label
from magicseg.stages.generate.counterfactual import counterfactual_caption
from magicseg.stages.generate.options import DiffusersOptions
from magicseg.stages.generate.pipeline_folder import SD3_PARTS, parts_of, read_files, read_index
from magicseg.weights import Weights, place_of
from magicseg.weights.cache import location

if TYPE_CHECKING:
    from magicseg.stages.generate.inpainting import ObjectRemover, Where
    from magicseg.stages.generate.pipeline import Painted, TextToImage

RECIPE = 1  # goes up whenever the same request, options and weights give other pixels

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


@dataclass
class _Job:
    """A pair that is still to be made."""

    position: int
    request: GenerateRequest
    text: str
    faults: list[tuple[str, str]] = field(default_factory=list)  # one per failed attempt: which image, what

    def seeds(self, noise: str) -> tuple[int, int]:
        """Of the initial noise of image and counterfactual, in the present attempt."""
        attempt = len(self.faults)
        image = sample_seed(self.request.seed, "image", attempt)
        return image, image if noise == "shared" else sample_seed(self.request.seed, "counterfactual", attempt)


class DiffusersGenerator:
    """Back end of the generate stage."""

    Options = DiffusersOptions
    LIBRARIES = ("torch", "diffusers", "transformers")

    @classmethod
    def identity(cls, options: DiffusersOptions) -> Mapping[str, str | int]:
        """The recipe's number, and for inpainting that of finding objects."""
        found: dict[str, str | int] = {"diffusers": RECIPE}
        if options.inpaint:
            found["finding"] = finding.RECIPE
        if options.drop_t5:
            found["drop_t5"] = 1
        return found

    @classmethod
    def weights(cls, options: DiffusersOptions) -> list[Weights]:
        """The pipeline. Raises: BackendError if a path holds none of a known family."""
        by_path = options.revision is None
        if by_path:
            parts = parts_of(read_index(place_of(options.model), drop_t5=options.drop_t5))
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
        self._batch_size = settings.batch_size
        self._options = options
        self.pipeline = TextToImage(options, location(self.weights(options)[0]), settings.size)
        self.pipeline.rehearse(settings.batch_size)
        self._remover = _remover(self.pipeline, options, settings.batch_size)

    def check_labels(self, labels: Sequence[Label]) -> None:
        """Raise BackendError if objects of one of these could not be looked for."""
        if self._remover is not None:
            self._remover.check_labels(labels)

    def generate(self, requests: Sequence[GenerateRequest]) -> list[ImagePair | Rejection]:
        """One pair, or a rejection with its reason, per request."""
        answers: dict[int, ImagePair | Rejection] = {}
        jobs: list[_Job] = []
        for position, request in enumerate(requests):
            text = counterfactual_caption(request, self._options.counterfactual)
            if isinstance(text, Rejection):
                answers[position] = text
            else:
                jobs.append(_Job(position, request, text))
        while jobs:
            again: list[_Job] = []
            for start in range(0, len(jobs), self._batch_size):
                batch = jobs[start : start + self._batch_size]
                for job, answer in zip(batch, self._attempt(batch), strict=True):
                    if answer is None:
                        again.append(job)
                    else:
                        answers[job.position] = answer
            jobs = again
        return [answers[position] for position in range(len(requests))]

    def _attempt(self, batch: Sequence[_Job]) -> list[ImagePair | Rejection | None]:
        """The answers of a batch; None for a pair that is to be tried again."""
        painted = self._paint(batch)
        answers: list[ImagePair | Rejection | None] = []
        for job, (image, other) in zip(batch, painted, strict=True):
            if not isinstance(image, str) and not isinstance(other, str):
                answers.append(self._pair(job, image, other))
                continue
            job.faults.append(("image", image) if isinstance(image, str) else ("counterfactual", str(other)))
            answers.append(self._given_up(job) if len(job.faults) > self._options.retries else None)
        return answers

    def _paint(self, batch: Sequence[_Job]) -> list[tuple[Image | str, Image | str]]:
        """Both images of every pair in one call, or what is wrong with them; padded with the last."""
        rows = [*batch, *[batch[-1]] * (self._batch_size - len(batch))]
        seeds = [job.seeds(self._options.noise) for job in rows]
        captions, texts = [job.request.caption for job in rows], [job.text for job in rows]
        if self._remover is not None:
            return self._paint_and_remove(batch, captions, [image for image, _ in seeds])
        painted = self.pipeline.paint(
            [*captions, *texts], [*(image for image, _ in seeds), *(other for _, other in seeds)]
        )
        count = self._batch_size
        return [(self._judged(painted, row), self._judged(painted, count + row)) for row in range(len(batch))]

    def _paint_and_remove(
        self, batch: Sequence[_Job], captions: Sequence[str], seeds: Sequence[int]
    ) -> list[tuple[Image | str, Image | str]]:
        """The images first; then, of those that show their objects, the counterfactuals by filling."""
        assert self._remover is not None
        painted = self.pipeline.paint(captions, seeds)
        images = [self._judged(painted, row) for row in range(len(batch))]
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
            others = {row: self._judged(filled, place) for place, (row, _, _) in enumerate(to_fill)}
        return [(image, others.get(row, "")) for row, image in enumerate(images)]

    def _judged(self, painted: "Painted", row: int) -> Image | str:
        """An image, or what is wrong with it."""
        if painted.unsafe[row]:
            return "unsafe-image"
        if painted.undefined[row]:
            return "black-image"
        return image_fault(painted.images[row], self._options.min_contrast) or painted.images[row]

    def _pair(self, job: _Job, image: Image, counterfactual: Image) -> ImagePair:
        lost = max(self.pipeline.lost_tokens(text) for text in (job.request.caption, job.text))
        names = FAULTS if self._remover is None else (*FAULTS, *REMOVAL_FAULTS)
        counts = {name: sum(fault == name for _, fault in job.faults) for name in names}
        return ImagePair(
            image=image,
            counterfactual=counterfactual,
            quality={"attempts": len(job.faults) + 1, "truncated_tokens": lost, **counts},
        )

    def _given_up(self, job: _Job) -> Rejection:
        _, reason = job.faults[-1]
        tries = ", ".join(f"{which} {fault}" for which, fault in job.faults)
        return Rejection(reason=reason, detail=f"{len(job.faults)} attempts: {tries}")


def _remover(pipeline: "TextToImage", options: DiffusersOptions, batch_size: int) -> "ObjectRemover | None":
    if options.inpaint is None:
        return None
    from magicseg.stages.generate.inpainting import ObjectRemover

    remover = ObjectRemover(pipeline, options.inpaint)
    remover.rehearse(batch_size)
    return remover


def image_fault(image: Image, min_contrast: float) -> str | None:
    """ "black-image", "flat-image" (standard deviation below ``min_contrast``, in 0 to 255), or None."""
    if not image.any():
        return "black-image"
    return "flat-image" if float(np.std(image, dtype=np.float64)) < min_contrast else None
