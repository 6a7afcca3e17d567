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


def agreement_loss(
    logits: Tensor, counterfactual_logits: Tensor, pixels: Tensor, asked: Tensor, *, count: Tensor | None = None
) -> Tensor:
    """Return the mean of (sigmoid(z) - sigmoid(z'))^2 over some pixels and the asked classes, a scalar.

    The squared difference of probabilities is the consistency cost of Tarvainen and Valpola 2017 (arXiv 1703.01780).
    It is bounded, and it vanishes where both logits are far on the same side, whatever their difference: there the
    masks agree already. Its gradient reaches both images.

    Args: pixels: bool (B, 1, H, W), see `aligned_background`.
    """
    squares = (torch.sigmoid(logits) - torch.sigmoid(counterfactual_logits)).square()
    total = (squares * pixels * asked[:, :, None, None]).sum()
    return mean_over(total, asked_pixels(pixels, asked, logits.shape[1]) if count is None else count)


def margin_loss(
    logits: Tensor, counterfactual_logits: Tensor, masks: Tensor, *, margin: float, count: Tensor | None = None
) -> Tensor:
    """Return the mean of max(0, margin - (z - z')) over the pixels of masks, a scalar.

    Args: masks: for each class, the pixels that count. margin: in logits.
    """
    losses = (margin - (logits - counterfactual_logits)).clamp(min=0) * masks
    return mean_over(losses.sum(), masks.sum() if count is None else count)


def aligned_background(targets: Targets, pairs: PairedImages, tolerance: int) -> Tensor:
    """Return the background pixels that are the same in both images of true pairs, bool (B, 1, H, W).

    Args: tolerance: largest difference of a pixel's channels, 0 to 255.
    """
    differences = (pairs.images.short() - pairs.counterfactuals.short()).abs().amax(1, keepdim=True)
    background = targets.valid & (targets.positions < 0)[:, None]
    return background & (differences <= tolerance) & true_pairs(targets, pairs.paired)[:, None, None, None]


def text_direction_loss(
    cls: Tensor,
    counterfactual_cls: Tensor,
    text: Tensor,
    classes: Tensor,
    *,
    margin: float,
    count: Tensor | None = None,
) -> Tensor:
    """Return the mean of max(0, margin - (cos(c, t) - cos(c', t))) over some classes of each image, a scalar.

    Removing an object should turn the class token away from the object's text, and need not change the rest of it.

    Args: cls, counterfactual_cls: (B, D), c and c', of any length. text: (B, K, D), of any length. classes: bool
    (B, K), the classes that count. margin: a difference of cosines.
    """
    image, other = (F.cosine_similarity(each[:, None], text, dim=-1) for each in (cls, counterfactual_cls))
    losses = (margin - (image - other)).clamp(min=0) * classes
    return mean_over(losses.sum(), classes.sum() if count is None else count)


def present_in_pairs(targets: Targets, paired: Tensor) -> Tensor:
    """Return the classes present in the images of true pairs, bool (B, K). Args: paired: as in `PairedImages`."""
    return targets.present & true_pairs(targets, paired)[:, None]


def true_pairs(targets: Targets, paired: Tensor) -> Tensor:
    """Return which images differ from their counterfactuals, bool (B,).

    An image without a labelled pixel has no object to remove, so its counterfactual is the same image. The loss would
    push the token away from itself. The method's description takes the mean over all pairs and does not mention this.

    Args: targets: of all queried classes or some of them. paired: bool (B,), whether an image has a counterfactual at
    all.
    """
    return paired & (targets.positions >= 0).flatten(1).any(1)


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
        sums_over_classes=True,
        reads_counterfactual_logits=True,
    )


def aligned_pair_term(settings: TrainSettings) -> LossTerm:
    def outside(targets: Targets, pairs: PairedImages) -> Tensor:
        return aligned_background(targets, pairs, settings.aligned_pair_tolerance)

    def inside(targets: Targets, masks: Tensor, pairs: PairedImages) -> Tensor:
        return masks & present_in_pairs(targets, pairs.paired)[:, :, None, None]

    def count(targets: Targets, pairs: PairedImages) -> Tensor:
        pixels = asked_pixels(outside(targets, pairs), targets.asked, targets.classes.shape[1])
        return torch.stack([pixels, inside(targets, targets.masks, pairs).sum()])

    def compute(found: ForwardPass, count: Tensor) -> Tensor:
        assert found.counterfactual_logits is not None
        targets, (logits, masks) = found.targets, found.on_pixels()
        both = logits, found.counterfactual_logits
        agreement = agreement_loss(*both, outside(targets, found.pairs), targets.asked, count=count[0])
        pixels = inside(targets, masks, found.pairs)
        return agreement + margin_loss(*both, pixels, margin=settings.aligned_pair_margin, count=count[1])

    return LossTerm(
        name="aligned_pair",
        weight=settings.aligned_pair_weight,
        count=count,
        compute=compute,
        sums_over_classes=True,
        reads_counterfactual_logits=True,
    )


def text_direction_term(settings: TrainSettings) -> LossTerm:
    def count(targets: Targets, pairs: PairedImages) -> Tensor:
        return present_in_pairs(targets, pairs.paired).sum()[None]

    def compute(found: ForwardPass, count: Tensor) -> Tensor:
        assert found.counterfactuals is not None
        return text_direction_loss(
            found.images.cls.float(),
            found.counterfactuals.cls.float(),
            found.text.float(),
            present_in_pairs(found.targets, found.pairs.paired),
            margin=settings.text_direction_margin,
            count=count[0],
        )

    return LossTerm(
        name="text_direction",
        weight=settings.text_direction_weight,
        count=count,
        compute=compute,
        reads_counterfactuals=True,
    )
