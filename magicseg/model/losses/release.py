"""The focal loss of the paper's release, ``train.losses: release``. Its other losses are those of all settings.

Shapes: as in `magicseg.model.losses`.
"""

from torch import Tensor

from magicseg.config.training import TrainSettings
from magicseg.model.losses.masks import focal_values
from magicseg.model.losses.term import ForwardPass, LossTerm, PairedImages, mean_over
from magicseg.model.targets import Targets


def release_focal_loss(
    logits: Tensor,
    masks: Tensor,
    valid: Tensor,
    present: Tensor,
    *,
    alpha: float,
    gamma: float,
    asked: Tensor | None = None,
    count: Tensor | None = None,
) -> Tensor:
    """Return the sum over all B * K masks of a mask's mean focal loss, by the number of present masks; a scalar.

        1 / max(1, sum present)  *  sum over b, k of  1 / |V_b|  *  sum over V_b of  -a_t (1 - p_t)^gamma log p_t

    V_b: the valid pixels of image b. The release has no V: pixels marked IGNORE are negatives of every class there.
    Without such pixels the values are the release's, and those of `focal_loss` times B * K / sum present.

    Args: asked: the classes that count in each image; None: all K.
    """
    values = focal_values(logits, masks, valid, alpha=alpha, gamma=gamma, asked=asked)
    means = mean_over(values.sum((2, 3)), valid.sum((2, 3)))
    return mean_over(means.sum(), present.sum() if count is None else count)


def release_focal_term(settings: TrainSettings) -> LossTerm:
    def count(targets: Targets, _pairs: PairedImages) -> Tensor:
        return targets.present.sum()[None]

    def compute(found: ForwardPass, count: Tensor) -> Tensor:
        targets = found.targets
        return release_focal_loss(
            *found.on_pixels(),
            targets.valid,
            targets.present,
            alpha=settings.focal_alpha,
            gamma=settings.focal_gamma,
            asked=targets.asked,
            count=count[0],
        )

    return LossTerm(name="focal", weight=settings.focal_weight, count=count, compute=compute, sums_over_classes=True)
