"""What a benchmark scores: anything that gives every pixel one score per class name.

Trained segmenters, dense zero-shot CLIP and memory banks follow this one protocol; the benchmark's driver knows
nothing else of them.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor

ScoreKind = Literal["log-odds", "cosine"]
"""What a background threshold is compared with. Neither kind saturates: a sigmoid or softmax in float32 rounds every
log-odds above 17 to 1.
"""


class Head(Protocol):
    """A scorer of pixels.

    ``prepare`` comes first, with the classes of the benchmark; then ``logits`` for the crops of every image.
    Both are pure: the same crops in the same batch give the same bits.
    """

    @property
    def name(self) -> str:
        """Names the head's results: a file name, such as "model" or "maskclip"."""
        ...

    @property
    def stride(self) -> int:
        """Sides of crops are multiples of this, pixels."""
        ...

    @property
    def identity(self) -> Mapping[str, Any]:
        """What decides the scores, as JSON values: digests of weights, settings. Kept in results; a result
        whose head has another identity is stale.
        """
        ...

    def prepare(self, classes: Sequence[Sequence[str]]) -> None:
        """Set the K queries. Each is the names of one class, its own first, synonyms after."""
        ...

    def logits(self, crops: "Tensor") -> "Tensor":
        """Raw scores, which the sliding window averages.

        Args: crops: uint8 (B, 3, h, w), RGB, on the CPU; h and w are multiples of ``stride``.
        Returns: float32 (B, K, rows, columns), on any device. A grid coarser than (h, w), such as the patches', is
            interpolated to it: give the coarse one, which needs little memory.
        """
        ...

    @property
    def score_kinds(self) -> tuple[ScoreKind, ...]:
        """The scores that the head has. A sweep tries all of them and keeps the best."""
        ...

    def score(self, logits: "Tensor", chosen: "Tensor", kind: ScoreKind) -> "Tensor":
        """Return the score of one class at every pixel, float (..., H, W); it grows with the class's logit.

        Args: logits: (..., K, H, W). chosen: the class's index, int64 (..., H, W). kind: one of `score_kinds`.
        """
        ...
