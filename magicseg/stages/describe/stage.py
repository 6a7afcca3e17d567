"""The describe stage: it turns a sample's labels into two captions."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from magicseg.backends import DescribeRequest, Description
from magicseg.config.stage_declarations import DECLARATIONS
from magicseg.core.randomness import sample_seed
from magicseg.core.text import first_control_character
from magicseg.run.directory import Run
from magicseg.stages.base import Stage


class DescribeStage(Stage):
    """The first stage. Its only input is the plan."""

    declaration = DECLARATIONS["describe"]

    def requests(self, run: Run, samples: Sequence[int]) -> list[DescribeRequest]:
        """Return one request per sample."""
        return [
            DescribeRequest(
                index=index,
                labels=tuple(run.vocabulary.by_id(id_) for id_ in run.plan.label_ids(index)),
                seed=sample_seed(run.config.seed, self.declaration.name, index),
            )
            for index in samples
        ]

    def check(self, run: Run, answer: Description) -> None:
        """Raise ValueError if a caption is empty or holds characters that cannot be stored."""
        if not answer.caption.strip() or not answer.counterfactual.strip():
            raise ValueError("a caption is empty")
        (answer.caption + answer.counterfactual).encode()  # a lone surrogate is a ValueError: it cannot be stored
        found = first_control_character(answer.caption + answer.counterfactual)
        if found:
            raise ValueError(f"a caption holds the control character {found}")

    def arrays(self, run: Run, samples: range, packed: Mapping[int, Description]) -> dict[str, Any]:
        """Return the shard's captions: str (samples, 2), empty for dropped samples."""
        captions = np.full((len(samples), 2), "", dtype=object)
        for index, answer in packed.items():
            captions[index - samples.start] = (answer.caption, answer.counterfactual)
        return {"describe/captions": captions}
