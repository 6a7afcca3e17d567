"""From class maps to what the losses compare with: which classes are asked for, and where each is.

Shapes: B images, C classes of the vocabulary, K of them sampled for each image. Nothing here waits for the device.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from magicseg.labels import BACKGROUND, IGNORE


class Targets(NamedTuple):
    """``classes``: int64 (B, K), what the model is asked for: positions in the vocabulary, none twice.
    ``positions``: int64 (B, H, W), each pixel's position in the vocabulary; -1 where there is no class.
    ``valid``: bool (B, 1, H, W), false on IGNORE only (and on unknown ids). ``present``: bool (B, K), whether the
    class has a pixel in the image. ``asked``: bool (B, K), whether the class's absence means anything: false for
    those that only fill the K places up. ``unknown``: int64 (B,), pixels with an id that the vocabulary lacks.
    """

    classes: Tensor
    positions: Tensor
    valid: Tensor
    present: Tensor
    asked: Tensor
    unknown: Tensor

    @property
    def masks(self) -> Tensor:
        """Bool (B, K, H, W), where each *sampled* class is. A background pixel is nowhere true: it is a negative
        for all K. Made anew each time, for it is K times as large as all the rest.
        """
        return self.positions.int()[:, None] == self.classes.int()[:, :, None, None]

    def part(self, images: slice) -> "Targets":
        """Those of some of the images."""
        return Targets(*(values[images] for values in self))


def sample_targets(
    class_map: Tensor, draws: Tensor, *, sampled_classes: int, allowed: Tensor | None = None
) -> Targets:
    """Ask, for each image, for its own classes and random others up to K.

    Args:
        class_map: integer (B, H, W): label ids 1 to C, BACKGROUND, IGNORE. An unknown id is not looked for on the
            way, which would wait for the device: its pixels are left out and counted in ``unknown``; the caller
            reads that when it can and refuses.
        draws: float (B, C), uniform in [0, 1): for each image the classes with the largest draws are its
            random others. (When an image has more than K own classes, the largest draws choose among them.)
        sampled_classes: K, at most; all C classes where there are fewer.
        allowed: bool (B, C), the classes that may be others: those that whoever labelled the image would have
            labelled. Where they do not fill the K places, places are filled up but not ``asked``. None: all.
    """
    count = draws.shape[1]
    ids = class_map.long()
    labelled = ids != IGNORE
    strange = labelled & ((ids > count) | (ids < 0))
    valid = labelled & ~strange
    positions = torch.where(valid, ids, BACKGROUND) - 1  # of the background: -1, no class's position
    own = torch.zeros(len(ids), count + 1, dtype=torch.bool, device=ids.device)
    own = own.scatter_(1, positions.flatten(1) + 1, value=True)[:, 1:]
    order = draws + own if allowed is None else draws + 2 * own + (allowed & ~own)
    classes = order.topk(min(sampled_classes, count), dim=1).indices
    present = own.gather(1, classes)
    return Targets(
        classes=classes,
        positions=positions,
        valid=valid[:, None],
        present=present,
        asked=torch.ones_like(present) if allowed is None else present | allowed.gather(1, classes),
        unknown=strange.sum((1, 2)),
    )
