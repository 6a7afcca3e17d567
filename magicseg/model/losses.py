"""The three losses: sigmoid focal, dice, counterfactual.

With z the logit of a class at a pixel, t in {0, 1} whether the class is there, p = sigmoid(z), and
V the pixels that are not IGNORE (background pixels are in V: negatives for every class):

    focal           mean over images, classes and V of  -a_t (1 - p_t)^gamma log p_t
                    p_t = p where t = 1, else 1 - p;  a_t = alpha where t = 1, else 1 - alpha
    dice            mean over the classes present in an image of
                    1 - (2 sum_V p t + 1) / (sum_V p + sum_V t + 1)
    counterfactual  mean over pairs of max(0, cos(cls, cls of the counterfactual image))

Shapes: logits float (B, K, H, W); masks bool (B, K, H, W); valid bool (B, 1, H, W); present bool (B, K).
A mean over nothing is 0.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def focal_loss(logits: Tensor, masks: Tensor, valid: Tensor, *, alpha: float, gamma: float) -> Tensor:
    """Sigmoid focal loss (Lin et al. 2017, arXiv 1708.02002), a scalar.

    1 - p_t = sigmoid(u) and -log p_t = softplus(u) with u = z where t = 0 and -z where t = 1.
    """
    wrong = torch.where(masks, -logits, logits)
    weight = torch.where(masks, alpha, 1 - alpha) * valid
    losses = weight * torch.sigmoid(wrong) ** gamma * F.softplus(wrong)
    return losses.sum() / (valid.sum() * logits.shape[1]).clamp(min=1)


def dice_loss(logits: Tensor, masks: Tensor, valid: Tensor, present: Tensor) -> Tensor:
    """Dice loss over the classes that are present, smoothed by 1 pixel; a scalar."""
    chance = torch.sigmoid(logits) * valid
    truth = masks & valid
    overlap = (chance * truth).sum((2, 3))
    total = chance.sum((2, 3)) + truth.sum((2, 3))
    losses = 1 - (2 * overlap + 1) / (total + 1)
    return (losses * present).sum() / present.sum().clamp(min=1)


def counterfactual_loss(cls: Tensor, counterfactual_cls: Tensor) -> Tensor:
    """An image and the same image without its objects should not look alike to the class token.

    Args: both (B, D), any length.
    """
    if len(cls) == 0:
        return cls.sum()
    return F.cosine_similarity(cls, counterfactual_cls, dim=-1).clamp(min=0).mean()
