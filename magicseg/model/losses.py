"""The three losses: sigmoid focal, dice, counterfactual.

With z the logit of a class at a pixel, t in {0, 1} whether the class is there, p = sigmoid(z), and
V the pixels that are not IGNORE (background pixels are in V: negatives for every class):

    focal           mean over images, asked classes and V of  -a_t (1 - p_t)^gamma log p_t
                    p_t = p where t = 1, else 1 - p;  a_t = alpha where t = 1, else 1 - alpha
    dice            mean over the classes present in an image of
                    1 - (2 sum_V p t + 1) / (sum_V p + sum_V t + 1)
    counterfactual  mean over pairs of max(0, cos(cls, cls of the counterfactual image))

A batch may be dealt out, to processes and to micro-batches. The parts of a mean add up to it when each is divided by
the count of the whole: `mean_counts` of the parts, summed, is what every loss takes as ``count``.

Shapes: logits float (B, K, H, W); masks bool (B, K, H, W); valid bool (B, 1, H, W); present, asked bool (B, K);
count: a number in a tensor (), of any type; None: of what is given. A mean over nothing is 0.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

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
    """Sigmoid focal loss (Lin et al. 2017, arXiv 1708.02002), a scalar.

    1 - p_t = sigmoid(u) and -log p_t = softplus(u) with u = z where t = 0 and -z where t = 1.

    Args: asked: the classes that take part in an image; None: all K.
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
    """Dice loss (Milletari et al. 2016, arXiv 1606.04797, with p and t in place of their squares) over the classes
    that are present, smoothed by 1 pixel; a scalar.
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
    """An image and the same image without its objects should not look alike to the class token (magicseg's method,
    arXiv 2603.19575).

    Args: both (B, D), any length. pairs: bool (B,), which take part, see `true_pairs`; None: all.
    """
    losses = F.cosine_similarity(cls, counterfactual_cls, dim=-1).clamp(min=0)
    if pairs is None:
        pairs = torch.ones_like(losses, dtype=torch.bool)
    return _mean((losses * pairs).sum(), pairs.sum() if count is None else count)


def true_pairs(targets: Targets, paired: Tensor) -> Tensor:
    """The images that differ from their counterfactuals, bool (B,).

    An image without a labelled pixel has no object to be without, so that its counterfactual is the same picture
    and the loss would ask a token to be unlike itself. The method's description takes the mean over all pairs and
    does not speak of this.

    Args: paired: bool (B,), whether an image has a counterfactual at all.
    """
    return paired & targets.present.any(1)


def mean_counts(targets: Targets, paired: Tensor) -> Tensor:
    """What `focal_loss`, `dice_loss` and `counterfactual_loss` are means over: float64 (3,), exact whole numbers."""
    focal = _asked_pixels(targets.valid, targets.asked, targets.classes.shape[1])
    return torch.stack([focal, targets.present.sum(), true_pairs(targets, paired).sum()]).double()


def _asked_pixels(valid: Tensor, asked: Tensor | None, classes: int) -> Tensor:
    if asked is None:
        return valid.sum() * classes
    return (valid.sum((1, 2, 3)) * asked.sum(1)).sum()


def _mean(total: Tensor, count: Tensor) -> Tensor:
    return total / count.clamp(min=1).to(total.dtype)
