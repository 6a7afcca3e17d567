"""The mask stage: a sample's images to its class map."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from magicseg.backends import Masked, MaskRequest, PairInstances
from magicseg.config.finding import FindOptions
from magicseg.config.stage_declarations import DECLARATIONS
from magicseg.core.documents import parse_json
from magicseg.core.errors import DamageError
from magicseg.core.randomness import sample_seed
from magicseg.labels import BACKGROUND, IGNORE
from magicseg.run.directory import Run
from magicseg.stages.base import Stage
from magicseg.vision.recorded_instances import read_instances


class MaskStage(Stage):
    """Reads the captions and the images."""

    declaration = DECLARATIONS["mask"]

    def requests(self, run: Run, samples: Sequence[int]) -> list[MaskRequest]:
        """Return one request per sample."""
        first, stop = samples[0], samples[-1] + 1
        captions = run.store.read("describe/captions", first, stop)
        images = run.store.read_images("generate/image", first, stop)
        counterfactuals = run.store.read_images("generate/counterfactual", first, stop)
        found = self._found(run, samples)
        return [
            MaskRequest(
                index=index,
                labels=tuple(run.vocabulary.by_id(id_) for id_ in run.plan.label_ids(index)),
                caption=str(captions[index - first][0]),
                image=images[index - first],
                counterfactual=counterfactuals[index - first],
                seed=sample_seed(run.config.seed, self.declaration.name, index),
                image_seed=sample_seed(run.config.seed, "generate", index),
                found=found.get(index),
            )
            for index in samples
        ]

    def _found(self, run: Run, samples: Sequence[int]) -> dict[int, PairInstances]:
        """Return what the validity check found of these pairs, if the masker would find the same; by index."""
        _, options = self.declaration.backend(run.config)
        validity = run.config.generate.validity
        if validity is None or not isinstance(options, FindOptions) or not options.finds_like(validity):
            return {}
        texts = run.store.read("generate/quality", samples[0], samples[-1] + 1)
        found = {
            index: read_instances(_record(texts[index - samples[0]], index), len(run.plan.label_ids(index)))
            for index in samples
        }
        return {index: one for index, one in found.items() if one is not None}

    def check(self, run: Run, answer: Masked) -> None:
        """Raise ValueError if a mask is not uint16 (size, size), or holds an unknown class id."""
        size = run.config.generate.size
        if answer.mask.shape != (size, size) or answer.mask.dtype != np.uint16:
            raise ValueError(f"mask is {answer.mask.dtype} {answer.mask.shape}, not uint16 {(size, size)}")
        foreign = set(np.unique(answer.mask).tolist()) - {
            BACKGROUND,
            IGNORE,
            *range(1, len(run.vocabulary) + 1),
        }
        if foreign:
            raise ValueError(f"mask holds {min(foreign)}, which is no class")

    def arrays(self, run: Run, samples: range, packed: Mapping[int, Masked]) -> dict[str, Any]:
        """Return the shard's masks: uint16 (samples, size, size), IGNORE everywhere in dropped samples."""
        size = run.config.generate.size
        masks = np.full((len(samples), size, size), IGNORE, dtype=np.uint16)
        for index, answer in packed.items():
            masks[index - samples.start] = answer.mask
        return {"mask/mask": masks}


def _record(text: object, index: int) -> dict[str, Any]:
    """Return a sample's quality record. Raises DamageError if it is not a JSON object."""
    return parse_json(
        str(text), dict[str, Any], source=f"generate/quality of sample {index}", error=DamageError, nan=True
    )
