"""The describe stage: a sample's labels to its two captions."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from magicseg.backends import Captioner, DescribeRequest, Description, Rejection
from magicseg.core.randomness import sample_seed
from magicseg.core.text import first_acting
from magicseg.run.directory import Run


class DescribeStage:
    """Needs nothing but the plan."""

    name = "describe"

    def requests(self, run: Run, samples: Sequence[int]) -> list[DescribeRequest]:
        """One request per sample."""
        return [
            DescribeRequest(
                index=index,
                labels=tuple(run.vocabulary.by_id(id_) for id_ in run.plan.label_ids(index)),
                seed=sample_seed(run.config.seed, self.name, index),
            )
            for index in samples
        ]

    def call(self, backend: Captioner, requests: Sequence[DescribeRequest]) -> Sequence[Description | Rejection]:
        """One batch."""
        return backend.describe(requests)

    def check(self, run: Run, answer: Description) -> None:
        """Raises: ValueError if a back end returned what it must not."""
        if not answer.caption.strip() or not answer.counterfactual.strip():
            raise ValueError("a caption is empty")
        (answer.caption + answer.counterfactual).encode()  # a lone surrogate is a ValueError: it cannot be stored
        found = first_acting(answer.caption + answer.counterfactual)
        if found:
            raise ValueError(f"a caption holds the control character {found}")

    def packed(self, run: Run, answer: Description) -> Description:
        """As it is: there is nothing to encode."""
        return answer

    def arrays(self, run: Run, samples: range, answers: Mapping[int, Description]) -> dict[str, Any]:
        """The shard's captions: str (samples, 2), empty for dropped samples."""
        captions = np.full((len(samples), 2), "", dtype=object)
        for index, answer in answers.items():
            captions[index - samples.start] = (answer.caption, answer.counterfactual)
        return {"describe/captions": captions}
