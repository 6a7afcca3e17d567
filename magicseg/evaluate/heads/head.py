"""The interface of heads, which benchmarks score: a head gives every pixel one score per class.

Trained segmenters, dense zero-shot CLIP and memory banks implement it.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from magicseg.model.sliding_window import WindowAverage

ScoreKind = Literal["log-odds", "cosine"]
"""The kind of score that a background threshold applies to. Neither kind saturates; a sigmoid or softmax in float32
rounds every log-odds above 17 to 1.
"""


class Head(Protocol):
    """Scores pixels against classes.

    ``prepare`` is called first, with the classes of the benchmark; then ``logits`` for the crops of every image. The
    same crops in the same batch must give the same bits.
    """

    @property
    def name(self) -> str:
        """The name of the head's results, valid as a file name, such as "model" or "maskclip"."""
        ...

    @property
    def stride(self) -> int:
        """The sides of crops are multiples of this number of pixels."""
        ...

    @property
    def window_average(self) -> "WindowAverage":
        """What sliding windows average: logits, or, for a sigmoid per class, probabilities."""
        ...

    @property
    def identity(self) -> Mapping[str, Any]:
        """Everything that decides the scores, as JSON values: digests of weights, settings.

        Results keep it; results with another identity are stale.
        """
        ...

    def prepare(self, classes: Sequence[Sequence[str]]) -> None:
        """Set the K queries. A query holds the names of one class: its own, then synonyms."""
        ...

    def logits(self, crops: "Tensor") -> "Tensor":
        """Raw scores, which the sliding window averages as ``window_average`` says.

        Args: crops: uint8 (B, 3, h, w), RGB, on the CPU; h and w are multiples of ``stride``.
        Returns: float32 (B, K, rows, columns), on any device. A grid coarser than (h, w), such as the patches', is
            interpolated to it: give the coarse one, which needs little memory.
        """
        ...

    @property
    def score_kinds(self) -> tuple[ScoreKind, ...]:
        """The kinds of score that the head has. A sweep tries all and keeps the best."""
        ...

    def score(self, logits: "Tensor", chosen: "Tensor", kind: ScoreKind) -> "Tensor":
        """Return the score of one class at every pixel, float (..., H, W); it grows with the class's logit.

        Args: logits: (..., K, H, W). chosen: the class's index, int64 (..., H, W). kind: one of `score_kinds`.
        """
        ...
