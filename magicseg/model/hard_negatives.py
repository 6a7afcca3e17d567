"""Query an image for the classes that the model sees in its counterfactual, in place of random other classes.

Shapes: B images, C classes of the vocabulary, K of them queried for each image, D the joint image-text space. Nothing
here waits for the device.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from magicseg.model.targets import Targets


@torch.no_grad()
def class_responses(patches: Tensor, texts: Tensor, valid: Tensor) -> Tensor:
    """Return each class's largest cosine with a patch token, float32 (B, C), without gradients.

    A patch without a valid pixel is padding or unlabelled and does not count. -inf if there is no other patch.

    Args: patches: (B, h * w, D), of any length. texts: (C, D), of any length. valid: bool (B, 1, H, W), with H and W
    multiples of h and w by the same factor.
    """
    height, width = valid.shape[-2:]
    stride = round((height * width / patches.shape[1]) ** 0.5)
    seen = valid.view(len(valid), height // stride, stride, width // stride, stride).any(4).any(2).flatten(1)
    with torch.autocast(patches.device.type, enabled=False):
        cosines = F.normalize(patches.float(), dim=-1) @ F.normalize(texts.float(), dim=-1).T
    return cosines.masked_fill(~seen[:, :, None], -torch.inf).amax(1)


def with_hard_negatives(
    targets: Targets, responses: Tensor, *, count: int, images: Tensor, allowed: Tensor | None = None
) -> Targets:
    """Replace random other classes by the absent classes with the largest responses.

    An image is queried for ``count`` of the latter, or for as many as it has other classes. Those that it is queried
    for already stay where they are. The rest take the places of the last other classes. Own classes and padding stay,
    so the losses' counts do too: only ``classes`` changes.

    Args:
        responses: float (B, C), see `class_responses`.
        count: from 1.
        images: bool (B,), the images that get hard negatives.
        allowed: bool (B, C), as in `sample_targets`.
    """
    classes, others = targets.classes, targets.asked & ~targets.present
    nowhere = torch.zeros_like(responses, dtype=torch.bool)
    candidates = ~nowhere.scatter(1, classes, targets.present)
    if allowed is not None:
        candidates &= allowed
    count = min(count, responses.shape[1])
    hardest = responses.masked_fill(~candidates, -torch.inf).topk(count, dim=1).indices
    wanted = torch.arange(count, device=classes.device) < (others.sum(1) * images)[:, None]
    # The wanted classes that are not queried yet, first and in their order.
    missing = wanted & ~nowhere.scatter(1, classes, others).gather(1, hardest)
    hardest_missing = hardest.gather(1, (~missing).int().argsort(dim=1, stable=True))
    replaceable = others & ~nowhere.scatter(1, hardest, wanted).gather(1, classes)
    from_the_end = replaceable.flip(1).cumsum(1).flip(1)
    replaced = replaceable & (from_the_end <= missing.sum(1, keepdim=True))
    number = (replaced.cumsum(1) - 1).clamp(0, count - 1)
    return targets._replace(classes=torch.where(replaced, hardest_missing.gather(1, number), classes))
