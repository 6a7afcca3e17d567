"""From class maps to what the losses compare with: which classes are asked for, and where each is.

Shapes: B images, C classes of the vocabulary, K of them sampled for each image.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from magicseg.errors import DataError
from magicseg.labels import BACKGROUND, IGNORE


@dataclass(frozen=True, kw_only=True)
class Targets:
    """``classes``: int64 (B, K), what the model is asked for: positions in the vocabulary, none twice.
    ``masks``: bool (B, K, H, W), where each *sampled* class is. A background pixel is nowhere true: it is a
    negative for all K. ``valid``: bool (B, 1, H, W), false on IGNORE only. ``present``: bool (B, K), whether
    the class has a pixel in the image.
    """

    classes: Tensor
    masks: Tensor
    valid: Tensor
    present: Tensor


def sample_targets(class_map: Tensor, draws: Tensor, *, sampled_classes: int) -> Targets:
    """Ask, for each image, for its own classes and random others up to K.

    Args:
        class_map: integer (B, H, W): label ids 1 to C, BACKGROUND, IGNORE.
        draws: float (B, C), uniform in [0, 1): for each image the classes with the largest draws are its
            random others. (When an image has more than K own classes, the largest draws choose among them.)
        sampled_classes: K, at most; all C classes where there are fewer.

    Raises: DataError when a pixel has an id above C.
    """
    count = draws.shape[1]
    ids = class_map.long()
    valid = ids != IGNORE
    positions = torch.where(valid, ids, BACKGROUND) - 1  # of the background: -1, no class's position
    if bool((positions >= count).any()):
        unknown = sorted(set(ids[positions >= count].tolist()))
        raise DataError(f"masks hold class ids above the vocabulary's {count}: {unknown[:10]}")
    own = torch.zeros(len(ids), count + 1, dtype=torch.bool, device=ids.device)
    own = own.scatter_(1, positions.flatten(1) + 1, value=True)[:, 1:]
    classes = (draws + own).topk(min(sampled_classes, count), dim=1).indices
    return Targets(
        classes=classes,
        masks=positions[:, None] == classes[:, :, None, None],
        valid=valid[:, None],
        present=own.gather(1, classes),
    )
