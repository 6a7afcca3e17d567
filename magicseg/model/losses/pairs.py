"""The losses on an image and its counterfactual.

Shapes: as in `magicseg.model.losses`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from magicseg.config.training import TrainSettings
from magicseg.model.losses.masks import asked_pixels, focal_loss
from magicseg.model.losses.term import ForwardPass, LossTerm, PairedImages, mean_over
from magicseg.model.targets import Targets


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
    return mean_over((losses * pairs).sum(), pairs.sum() if count is None else count)


def silence_loss(
    counterfactual_logits: Tensor,
    valid: Tensor,
    asked: Tensor,
    *,
    alpha: float,
    gamma: float,
    count: Tensor | None = None,
) -> Tensor:
    """Return the focal loss of the counterfactuals' logits (B, K, H, W), every valid pixel a negative; a scalar.

    Args: asked: the classes that count in each counterfactual, see `silent_classes`.
    """
    nothing = valid.new_zeros(())
    return focal_loss(counterfactual_logits, nothing, valid, alpha=alpha, gamma=gamma, asked=asked, count=count)


def silent_classes(targets: Targets, paired: Tensor, validated: Tensor) -> Tensor:
    """Return the classes whose absence from each counterfactual is taught, bool (B, K).

    All asked classes where the pair was validated, else the image's own; none where the image is not in `true_pairs`.

    Args: paired, validated: as in `PairedImages`.
    """
    asked = torch.where(validated[:, None], targets.asked, targets.present)
    return asked & true_pairs(targets, paired)[:, None]


def true_pairs(targets: Targets, paired: Tensor) -> Tensor:
    """Return which images differ from their counterfactuals, bool (B,).

    An image without a labelled pixel has no object to remove, so its counterfactual is the same image. The loss would
    push the token away from itself. The method's description takes the mean over all pairs and does not mention this.

    Args: paired: bool (B,), whether an image has a counterfactual at all.
    """
    return paired & targets.present.any(1)


def counterfactual_term(settings: TrainSettings) -> LossTerm:
    def count(targets: Targets, pairs: PairedImages) -> Tensor:
        return true_pairs(targets, pairs.paired).sum()[None]

    def compute(found: ForwardPass, count: Tensor) -> Tensor:
        assert found.counterfactuals is not None
        pairs = true_pairs(found.targets, found.pairs.paired)
        cls, other = found.images.cls.float(), found.counterfactuals.cls.float()
        return counterfactual_loss(cls, other, pairs, count=count[0])

    return LossTerm(
        name="counterfactual",
        weight=settings.counterfactual_weight,
        count=count,
        compute=compute,
        reads_counterfactuals=True,
    )


def silence_term(settings: TrainSettings) -> LossTerm:
    def asked(targets: Targets, pairs: PairedImages) -> Tensor:
        return silent_classes(targets, pairs.paired, pairs.validated)

    def count(targets: Targets, pairs: PairedImages) -> Tensor:
        return asked_pixels(targets.valid, asked(targets, pairs), targets.classes.shape[1])[None]

    def compute(found: ForwardPass, count: Tensor) -> Tensor:
        assert found.counterfactual_logits is not None
        return silence_loss(
            found.counterfactual_logits,
            found.targets.valid,
            asked(found.targets, found.pairs),
            alpha=settings.focal_alpha,
            gamma=settings.focal_gamma,
            count=count[0],
        )

    return LossTerm(
        name="silence",
        weight=settings.silence_weight,
        count=count,
        compute=compute,
        reads_counterfactual_logits=True,
    )
