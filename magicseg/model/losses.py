"""The losses: their formulas as plain functions, and the list of terms that training adds up.

With z the logit of a class at a pixel, t in {0, 1} the truth, p = sigmoid(z), and V the pixels that are not IGNORE
(background pixels are in V, as negatives of every class):

    focal             mean over images, queried classes and V of  -a_t (1 - p_t)^gamma log p_t
                      p_t = p where t = 1, else 1 - p;  a_t = alpha where t = 1, else 1 - alpha
    dice              mean over the classes present in an image of
                      1 - (2 sum_V p t + 1) / (sum_V p + sum_V t + 1)
    counterfactual    mean over pairs of max(0, cos(cls, cls of the counterfactual image))
    deep_supervision  the weighted sum of focal and dice, summed over the decoder's earlier layers

A batch may be sharded across ranks and micro-batches. A mean over the whole batch is the sum of the parts' losses if
each part divides by the count of the whole batch. So every loss takes a ``count``, and `LossTerm.count` gives the
count of a part.

To add a loss, write its function and its `LossTerm` here, add the term to `loss_terms`, and give its weight a setting
in `magicseg.config.training.TrainSettings`. The log and the checkpoints use the term's name.

Shapes: B images, K classes queried per image, D the joint image-text space. logits float (B, K, H, W); masks bool
(B, K, H, W); valid bool (B, 1, H, W); present, asked bool (B, K); count: a tensor () of any type, or None for the
count of the given tensors. A mean over nothing is 0.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from magicseg.config.training import TrainSettings
from magicseg.model.targets import Targets


def focal_loss(
    logits: Tensor,
    masks: Tensor,
    valid: Tensor,
    *,
    alpha: float,
    gamma: float,
    asked: Tensor | None = None,
    count: Tensor | None = None,
) -> Tensor:
    """Return the sigmoid focal loss (Lin et al. 2017, arXiv 1708.02002), a scalar.

    1 - p_t = sigmoid(u) and -log p_t = softplus(u) with u = z where t = 0 and -z where t = 1.

    Args: asked: the classes that count in each image; None: all K.
    """
    wrong = torch.where(masks, -logits, logits)
    weight = torch.where(masks, alpha, 1 - alpha) * valid
    if asked is not None:
        weight = weight * asked[:, :, None, None]
    losses = weight * torch.sigmoid(wrong) ** gamma * F.softplus(wrong)
    return _mean(losses.sum(), _asked_pixels(valid, asked, logits.shape[1]) if count is None else count)


def dice_loss(
    logits: Tensor, masks: Tensor, valid: Tensor, present: Tensor, *, count: Tensor | None = None
) -> Tensor:
    """Return the dice loss over the present classes, a scalar.

    Milletari et al. 2016 (arXiv 1606.04797), with p and t in place of their squares, smoothed by 1 pixel.
    """
    chance = torch.sigmoid(logits) * valid
    truth = masks & valid
    overlap = (chance * truth).sum((2, 3))
    total = chance.sum((2, 3)) + truth.sum((2, 3))
    losses = 1 - (2 * overlap + 1) / (total + 1)
    return _mean((losses * present).sum(), present.sum() if count is None else count)


def counterfactual_loss(
    cls: Tensor, counterfactual_cls: Tensor, pairs: Tensor | None = None, *, count: Tensor | None = None
) -> Tensor:
    """Return the mean cosine of each image's class token with its counterfactual's, clamped at 0; a scalar.

    The loss asks the class token to tell an image from the same image without its objects (arXiv 2603.19575).

    Args: cls, counterfactual_cls: (B, D), of any length. pairs: bool (B,), the pairs that count, see `true_pairs`;
    None: all.
    """
    losses = F.cosine_similarity(cls, counterfactual_cls, dim=-1).clamp(min=0)
    if pairs is None:
        pairs = torch.ones_like(losses, dtype=torch.bool)
    return _mean((losses * pairs).sum(), pairs.sum() if count is None else count)


def true_pairs(targets: Targets, paired: Tensor) -> Tensor:
    """Return which images differ from their counterfactuals, bool (B,).

    An image without a labelled pixel has no object to remove, so its counterfactual is the same image. The loss would
    push the token away from itself. The method's description takes the mean over all pairs and does not mention this.

    Args: paired: bool (B,), whether an image has a counterfactual at all.
    """
    return paired & targets.present.any(1)


class ImageTokens(NamedTuple):
    """``cls``: float (B, D). ``patches``: float (B, h * w, D). Both L2-normalised, in autocast's type."""

    cls: Tensor
    patches: Tensor


class ForwardPass(NamedTuple):
    """Everything that a loss may read: a part of a batch and the model's outputs for it.

    ``masks``: `Targets.masks`, made once. ``paired``: bool (B,), whether an image has a counterfactual. ``text``:
    float (B, K, D), the queried classes' embeddings. ``images``, ``counterfactuals``: their tokens; the latter None
    unless a term has ``reads_counterfactuals``. ``logits``: float32 (B, K, H, W). ``earlier_logits``: those of the
    decoder's earlier layers in their order; empty unless a term has ``reads_earlier_layers``.
    """

    targets: Targets
    masks: Tensor
    paired: Tensor
    text: Tensor
    images: ImageTokens
    counterfactuals: ImageTokens | None
    logits: Tensor
    earlier_logits: tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class LossTerm:
    """One term of the loss.

    ``name``: its key in the log. ``weight``: its factor in the sum.
    ``count``: from the targets of some images and ``paired`` (bool (B,)), the number of values in the term's mean,
    int64 (n,). The counts of a batch's parts add up. A term with several means has n of them.
    ``compute``: from a part's forward pass and the count of the whole batch, the part's share of the term: a scalar,
    before its weight.
    ``reads_counterfactuals``: encode the counterfactual images too. ``reads_earlier_layers``: decode every layer.
    """

    name: str
    weight: float
    count: Callable[[Targets, Tensor], Tensor]
    compute: Callable[[ForwardPass, Tensor], Tensor]
    reads_counterfactuals: bool = False
    reads_earlier_layers: bool = False


def loss_terms(settings: TrainSettings) -> tuple[LossTerm, ...]:
    """Return the terms of the loss in the log's order: the mask losses, and the others whose weight is above 0."""
    masks = (_focal(settings), _dice(settings))
    others = (_counterfactual(settings), _deep_supervision(settings, masks))
    return *masks, *(term for term in others if term.weight > 0)


def weighted_sum(terms: Sequence[LossTerm], values: Sequence[Tensor]) -> Tensor:
    """Return the sum of the terms' values times their weights, added in the terms' order."""
    first, *rest = (term.weight * value for term, value in zip(terms, values, strict=True))
    for value in rest:
        first = first + value
    return first


def _focal(settings: TrainSettings) -> LossTerm:
    def count(targets: Targets, _paired: Tensor) -> Tensor:
        return _asked_pixels(targets.valid, targets.asked, targets.classes.shape[1])[None]

    def compute(found: ForwardPass, count: Tensor) -> Tensor:
        return focal_loss(
            found.logits,
            found.masks,
            found.targets.valid,
            alpha=settings.focal_alpha,
            gamma=settings.focal_gamma,
            asked=found.targets.asked,
            count=count[0],
        )

    return LossTerm(name="focal", weight=settings.focal_weight, count=count, compute=compute)


def _dice(settings: TrainSettings) -> LossTerm:
    def count(targets: Targets, _paired: Tensor) -> Tensor:
        return targets.present.sum()[None]

    def compute(found: ForwardPass, count: Tensor) -> Tensor:
        targets = found.targets
        return dice_loss(found.logits, found.masks, targets.valid, targets.present, count=count[0])

    return LossTerm(name="dice", weight=settings.dice_weight, count=count, compute=compute)


def _counterfactual(settings: TrainSettings) -> LossTerm:
    def count(targets: Targets, paired: Tensor) -> Tensor:
        return true_pairs(targets, paired).sum()[None]

    def compute(found: ForwardPass, count: Tensor) -> Tensor:
        assert found.counterfactuals is not None
        pairs = true_pairs(found.targets, found.paired)
        cls, other = found.images.cls.float(), found.counterfactuals.cls.float()
        return counterfactual_loss(cls, other, pairs, count=count[0])

    return LossTerm(
        name="counterfactual",
        weight=settings.counterfactual_weight,
        count=count,
        compute=compute,
        reads_counterfactuals=True,
    )


def _deep_supervision(settings: TrainSettings, mask_terms: Sequence[LossTerm]) -> LossTerm:
    """Return the term that applies ``mask_terms`` to the decoder's earlier layers. With one layer it is absent."""

    def count(targets: Targets, paired: Tensor) -> Tensor:
        return torch.cat([term.count(targets, paired) for term in mask_terms])

    def compute(found: ForwardPass, count: Tensor) -> Tensor:
        layers = []
        for logits in found.earlier_logits:
            layer = found._replace(logits=logits)
            values = [term.compute(layer, each) for term, each in zip(mask_terms, torch.split(count, 1), strict=True)]
            layers.append(weighted_sum(mask_terms, values))
        return torch.stack(layers).sum()

    return LossTerm(
        name="deep_supervision",
        weight=settings.deep_supervision_weight if settings.decoder_layers > 1 else 0.0,
        count=count,
        compute=compute,
        reads_earlier_layers=True,
    )


def _asked_pixels(valid: Tensor, asked: Tensor | None, classes: int) -> Tensor:
    if asked is None:
        return valid.sum() * classes
    return (valid.sum((1, 2, 3)) * asked.sum(1)).sum()


def _mean(total: Tensor, count: Tensor) -> Tensor:
    return total / count.clamp(min=1).to(total.dtype)
