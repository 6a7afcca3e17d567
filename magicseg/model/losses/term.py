"""The interface of a loss: what it reads (`ForwardPass`), and the term that training adds up (`LossTerm`).

Shapes: as in `magicseg.model.losses`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from magicseg.model.targets import Targets


class ImageTokens(NamedTuple):
    """``cls``: float (B, D). ``patches``: float (B, h * w, D). Both L2-normalised, in autocast's type."""

    cls: Tensor
    patches: Tensor


class PairedImages(NamedTuple):
    """The images of a batch and their counterfactuals, as the losses count them.

    ``images``, ``counterfactuals``: uint8 (B, 3, H, W), augmented alike. ``paired``: bool (B,), whether an image has
    a counterfactual; otherwise the image takes its place. ``validated``: bool (B,), whether a detector checked that
    the counterfactual lacks the image's classes.
    """

    images: Tensor
    counterfactuals: Tensor
    paired: Tensor
    validated: Tensor


class ForwardPass(NamedTuple):
    """Everything that a loss may read: a part of a batch and the model's outputs for it.

    ``text``: float (B, K, D), the queried classes' embeddings. ``images``, ``counterfactuals``: their tokens; the
    latter None unless a term has ``reads_counterfactuals``.

    The rest is for the terms with ``sums_over_classes``; others find it empty. ``masks``: `Targets.masks`, made once.
    ``logits``: float32 (B, K, H, W). ``counterfactual_logits``: the same classes' on the counterfactuals; None unless
    a term has ``reads_counterfactual_logits``. ``earlier_logits``: those of the decoder's earlier layers in their
    order; empty unless a term has ``reads_earlier_layers``.
    """

    targets: Targets
    pairs: PairedImages
    text: Tensor
    images: ImageTokens
    counterfactuals: ImageTokens | None
    masks: Tensor | None = None
    logits: Tensor | None = None
    counterfactual_logits: Tensor | None = None
    earlier_logits: tuple[Tensor, ...] = ()

    def on_pixels(self) -> tuple[Tensor, Tensor]:
        """Return ``logits`` and ``masks``, for terms with ``sums_over_classes``."""
        assert self.logits is not None
        assert self.masks is not None
        return self.logits, self.masks


@dataclass(frozen=True, kw_only=True)
class LossTerm:
    """One term of the loss.

    ``name``: its key in the log. ``weight``: its factor in the sum.
    ``count``: from some images and their targets, the number of values in the term's mean, int64 (n,). The counts of
    a batch's parts add up. A term with several means has n of them.
    ``compute``: from a part's forward pass and the count of the whole batch, the part's share of the term: a scalar,
    before its weight.
    ``sums_over_classes``: the count and the value are sums over the queried classes, so both may be computed for some
    of the classes at a time. Only such a term may read masks and logits.
    ``reads_counterfactuals``: encode the counterfactual images too. ``reads_counterfactual_logits``: encode and
    decode them. ``reads_earlier_layers``: decode every layer.
    """

    name: str
    weight: float
    count: Callable[[Targets, PairedImages], Tensor]
    compute: Callable[[ForwardPass, Tensor], Tensor]
    sums_over_classes: bool = False
    reads_counterfactuals: bool = False
    reads_counterfactual_logits: bool = False
    reads_earlier_layers: bool = False


def weighted_sum(terms: Sequence[LossTerm], values: Sequence[Tensor]) -> Tensor:
    """Return the sum of the terms' values times their weights, added in the terms' order."""
    first, *rest = (term.weight * value for term, value in zip(terms, values, strict=True))
    for value in rest:
        first = first + value
    return first


def mean_over(total: Tensor, count: Tensor) -> Tensor:
    """Return ``total / count``; 0 over nothing."""
    return total / count.clamp(min=1).to(total.dtype)
