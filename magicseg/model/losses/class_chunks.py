"""Count and compute the terms for some of the queried classes at a time, to save memory: ``train.class_chunk``.

Shapes: as in `magicseg.model.losses`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from magicseg.model.losses.term import ForwardPass, LossTerm, PairedImages
from magicseg.model.targets import Targets


class GridLogits(NamedTuple):
    """Mask logits on the patch grid, float32 (B, K, h, w), and the function that upsamples any of their classes.

    ``layers``: of the decoder's layers in their order, the prediction last; at least the prediction.
    """

    layers: tuple[Tensor, ...]
    upsample: Callable[[Tensor], Tensor]

    def on_pixels(self, classes: slice) -> list[Tensor]:
        """Return the layers' logits of some classes, float32 (B, K, H, W)."""
        return [self.upsample(layer[:, classes]) for layer in self.layers]


def term_counts(terms: Sequence[LossTerm], targets: Targets, pairs: PairedImages, *, chunk: int) -> list[Tensor]:
    """Return every term's `LossTerm.count`. Args: chunk: as in `term_values`."""
    chunks = [targets.of_classes(classes) for classes in _chunks(targets, chunk)]
    return [
        torch.stack([term.count(each, pairs) for each in (chunks if term.sums_over_classes else [targets])]).sum(0)
        for term in terms
    ]


def term_values(
    terms: Sequence[LossTerm],
    counts: Sequence[Tensor],
    found: ForwardPass,
    logits: GridLogits,
    counterfactual_logits: GridLogits | None,
    *,
    chunk: int,
) -> list[Tensor]:
    """Return every term's value: a part's share of it, before its weight.

    A chunk of classes is upsampled, its terms are computed, and its pixels are freed. The backward pass computes them
    again. So there are never more than a chunk's logits at pixels. With a single chunk nothing is computed again.

    Args: counts: of the whole batch. found: without masks and logits. chunk: the number of classes; 0: all.
    """

    def with_pixels(classes: slice) -> ForwardPass:
        *earlier, last = logits.on_pixels(classes)
        targets = found.targets.of_classes(classes)
        return found._replace(
            targets=targets,
            text=found.text[:, classes],
            masks=targets.masks,
            logits=last,
            counterfactual_logits=counterfactual_logits and counterfactual_logits.on_pixels(classes)[-1],
            earlier_logits=tuple(earlier),
        )

    def sums_of(classes: slice) -> Tensor:
        some = with_pixels(classes)
        return torch.stack([term.compute(some, count) for term, count in counted if term.sums_over_classes])

    counted = list(zip(terms, counts, strict=True))
    chunks = _chunks(found.targets, chunk)
    if len(chunks) == 1:
        whole = with_pixels(chunks[0])
        return [term.compute(whole if term.sums_over_classes else found, count) for term, count in counted]
    parts = [checkpoint(sums_of, classes, use_reentrant=False, preserve_rng_state=False) for classes in chunks]
    sums = iter(torch.stack(parts).sum(0).unbind())
    return [next(sums) if term.sums_over_classes else term.compute(found, count) for term, count in counted]


def _chunks(targets: Targets, chunk: int) -> list[slice]:
    """Divide the queried classes into chunks; the last one may be smaller."""
    classes = targets.classes.shape[1]
    return [slice(start, start + (chunk or classes)) for start in range(0, classes, chunk or classes)]
