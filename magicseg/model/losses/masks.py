"""The losses on mask logits: focal, dice, and both on the decoder's earlier layers.

Shapes: as in `magicseg.model.losses`.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from magicseg.config.training import TrainSettings
from magicseg.model.losses.term import ForwardPass, LossTerm, PairedImages, mean_over, weighted_sum
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
    losses = focal_values(logits, masks, valid, alpha=alpha, gamma=gamma, asked=asked)
    return mean_over(losses.sum(), asked_pixels(valid, asked, logits.shape[1]) if count is None else count)


def focal_values(
    logits: Tensor, masks: Tensor, valid: Tensor, *, alpha: float, gamma: float, asked: Tensor | None
) -> Tensor:
    """Return the focal loss of every pixel, float (B, K, H, W); 0 where it does not count. Args: as `focal_loss`."""
    wrong = torch.where(masks, -logits, logits)
    weight = torch.where(masks, alpha, 1 - alpha) * valid
    if asked is not None:
        weight = weight * asked[:, :, None, None]
    return weight * torch.sigmoid(wrong) ** gamma * F.softplus(wrong)


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
    return mean_over((losses * present).sum(), present.sum() if count is None else count)


def focal_term(settings: TrainSettings) -> LossTerm:
    def count(targets: Targets, _pairs: PairedImages) -> Tensor:
        return asked_pixels(targets.valid, targets.asked, targets.classes.shape[1])[None]

    def compute(found: ForwardPass, count: Tensor) -> Tensor:
        return focal_loss(
            *found.on_pixels(),
            found.targets.valid,
            alpha=settings.focal_alpha,
            gamma=settings.focal_gamma,
            asked=found.targets.asked,
            count=count[0],
        )

    return LossTerm(name="focal", weight=settings.focal_weight, count=count, compute=compute, sums_over_classes=True)


def dice_term(settings: TrainSettings) -> LossTerm:
    def count(targets: Targets, _pairs: PairedImages) -> Tensor:
        return targets.present.sum()[None]

    def compute(found: ForwardPass, count: Tensor) -> Tensor:
        targets = found.targets
        return dice_loss(*found.on_pixels(), targets.valid, targets.present, count=count[0])

    return LossTerm(name="dice", weight=settings.dice_weight, count=count, compute=compute, sums_over_classes=True)


def deep_supervision_term(settings: TrainSettings, mask_terms: Sequence[LossTerm]) -> LossTerm:
    """Return the term that applies ``mask_terms`` to the decoder's earlier layers. With one layer it is absent."""

    def count(targets: Targets, pairs: PairedImages) -> Tensor:
        return torch.cat([term.count(targets, pairs) for term in mask_terms])

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
        sums_over_classes=True,
        reads_earlier_layers=True,
    )


def asked_pixels(valid: Tensor, asked: Tensor | None, classes: int) -> Tensor:
    """Return the number of pairs of a valid pixel and an asked class, int64 (). Args: classes: K."""
    if asked is None:
        return valid.sum() * classes
    return (valid.sum((1, 2, 3)) * asked.sum(1)).sum()
