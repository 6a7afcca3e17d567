"""The generator back end ``diffusers``: any text-to-image pipeline of the families in `magicseg.generate.families`.

Both images of a pair are made in one call, at one batch size: the last batch of a shard is padded, so that a sample's
pixels do not depend on where its shard ends. A pair with a black, flat or unsafe image is made again with a seed
derived from the sample's own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from magicseg.backends import GenerateRequest, Image, ImagePair, Rejection
from magicseg.errors import BackendError
from magicseg.generate.checkpoint import parts_of, read_files, read_index
from magicseg.generate.counterfactual import counterfactual_caption
from magicseg.generate.options import DiffusersOptions
from magicseg.run.randomness import sample_seed
from magicseg.weights import Weights
from magicseg.weights.cache import location

if TYPE_CHECKING:
    from magicseg.generate.pipeline import Painted

RECIPE = 1  # goes up whenever the same request, options and weights give other pixels

FAULTS = ("black-image", "flat-image", "unsafe-image")


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
        """The recipe's number."""
        return {"diffusers": RECIPE}

    @classmethod
    def weights(cls, options: DiffusersOptions) -> list[Weights]:
        """The pipeline. Raises: BackendError if a path holds none of a known family."""
        by_path = options.revision is None
        parts = parts_of(read_index(Path(options.model))) if by_path else ["*"]
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
            from magicseg.generate.pipeline import TextToImage
        except ImportError as error:
            raise BackendError(
                f"back end 'diffusers' cannot be imported: {error}",
                hint="install its libraries: pip install 'magicseg[models]'",
            ) from error
        self._batch_size = settings.batch_size
        self._options = options
        self.pipeline = TextToImage(options, location(self.weights(options)[0]), settings.size)
        self.pipeline.rehearse(settings.batch_size)

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
        count = self._batch_size
        answers: list[ImagePair | Rejection | None] = []
        for row, job in enumerate(batch):
            fault = self._fault(painted, row)
            other = self._fault(painted, count + row)
            if fault is None and other is None:
                answers.append(self._pair(job, painted.images[row], painted.images[count + row]))
                continue
            job.faults.append(("image", fault) if fault else ("counterfactual", str(other)))
            answers.append(self._given_up(job) if len(job.faults) > self._options.retries else None)
        return answers

    def _paint(self, batch: Sequence[_Job]) -> "Painted":
        """All images of a batch in one call: first those with objects, then those without; padded with the last."""
        rows = [*batch, *[batch[-1]] * (self._batch_size - len(batch))]
        seeds = [job.seeds(self._options.noise) for job in rows]
        return self.pipeline.paint(
            [*(job.request.caption for job in rows), *(job.text for job in rows)],
            [*(image for image, _ in seeds), *(other for _, other in seeds)],
        )

    def _fault(self, painted: "Painted", row: int) -> str | None:
        if painted.unsafe[row]:
            return "unsafe-image"
        if painted.undefined[row]:
            return "black-image"
        return image_fault(painted.images[row], self._options.min_contrast)

    def _pair(self, job: _Job, image: Image, counterfactual: Image) -> ImagePair:
        lost = max(self.pipeline.lost_tokens(text) for text in (job.request.caption, job.text))
        counts = {name: sum(fault == name for _, fault in job.faults) for name in FAULTS}
        return ImagePair(
            image=image,
            counterfactual=counterfactual,
            quality={"attempts": len(job.faults) + 1, "truncated_tokens": lost, **counts},
        )

    def _given_up(self, job: _Job) -> Rejection:
        _, reason = job.faults[-1]
        tries = ", ".join(f"{which} {fault}" for which, fault in job.faults)
        return Rejection(reason=reason, detail=f"{len(job.faults)} attempts: {tries}")


def image_fault(image: Image, min_contrast: float) -> str | None:
    """ "black-image", "flat-image" (standard deviation below ``min_contrast``, in 0 to 255), or None."""
    if not image.any():
        return "black-image"
    return "flat-image" if float(np.std(image, dtype=np.float64)) < min_contrast else None
