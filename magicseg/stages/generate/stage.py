"""The generate stage: a sample's captions to its two images."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from magicseg.backends import Backend, GenerateRequest, Generator, Image, ImagePair, Rejection, Retry
from magicseg.config.run import Config
from magicseg.config.stage_declarations import DECLARATIONS
from magicseg.core.randomness import sample_seed
from magicseg.core.settings import Settings
from magicseg.run.directory import Run
from magicseg.stages.base import Stage
from magicseg.stages.generate.validity import CheckedGenerator, attempted

Encoded: TypeAlias = tuple[Image | bytes, Image | bytes]


class GenerateStage(Stage):
    """Reads the captions."""

    declaration = DECLARATIONS["generate"]

    def start(self, config: Config, backend: type[Backend], options: Settings) -> CheckedGenerator:
        """Make the back end, and the detector that checks its pairs, if one is set."""
        return CheckedGenerator(super().start(config, backend, options), config.generate, config.store)

    def requests(self, run: Run, samples: Sequence[int]) -> list[GenerateRequest]:
        """Return one request per sample."""
        first = samples[0]
        captions = run.store.read("describe/captions", first, samples[-1] + 1)
        return [
            GenerateRequest(
                index=index,
                labels=tuple(run.vocabulary.by_id(id_) for id_ in run.plan.label_ids(index)),
                caption=str(captions[index - first][0]),
                counterfactual=str(captions[index - first][1]),
                seed=sample_seed(run.config.seed, self.declaration.name, index),
            )
            for index in samples
        ]

    def call(self, backend: Generator, requests: Sequence[Any]) -> Sequence[ImagePair | Rejection | Retry]:
        """Answer one batch."""
        return attempted(backend, requests)

    def check(self, run: Run, answer: ImagePair) -> None:
        """Raise ValueError if an image is not uint8 (size, size, 3)."""
        size = run.config.generate.size
        for name, image in (("image", answer.image), ("counterfactual", answer.counterfactual)):
            if image.shape != (size, size, 3) or image.dtype != np.uint8:
                raise ValueError(f"{name} is {image.dtype} {image.shape}, not uint8 {(size, size, 3)}")

    def packed(self, run: Run, answer: ImagePair) -> Encoded:
        """Return both images as they are stored: JPEG streams or pixels."""
        return run.store.encoded(answer.image, run.config), run.store.encoded(answer.counterfactual, run.config)

    def arrays(self, run: Run, samples: range, packed: Mapping[int, Encoded]) -> dict[str, Any]:
        """Return the shard's images: uint8 (samples, size, size, 3), or JPEG streams.

        Dropped samples are zeros, or empty streams.
        """
        pairs = [packed.get(index, (None, None)) for index in samples]
        return {
            name: run.store.pack_images([pair[place] for pair in pairs], run.config)
            for place, name in enumerate(("generate/image", "generate/counterfactual"))
        }
