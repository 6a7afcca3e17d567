"""Make the losses' targets from class maps: the queried classes of each image, and the pixels of each class.

Shapes: B images, C classes of the vocabulary, K of them sampled for each image. Nothing here waits for the device.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from magicseg.labels import BACKGROUND, IGNORE


class Targets(NamedTuple):
    """The targets of a batch.

    ``classes``: int64 (B, K), the queried classes: positions in the vocabulary, each at most once per image.
    ``positions``: int64 (B, H, W), the position of each pixel's class in the vocabulary; -1 for background.
    ``valid``: bool (B, 1, H, W), false for IGNORE and unknown ids. ``present``: bool (B, K), whether the class has a
    pixel in the image. ``asked``: bool (B, K), whether the class counts in the losses; false for padding up to K.
    ``unknown``: int64 (B,), number of pixels whose id the vocabulary lacks.
    """

    classes: Tensor
    positions: Tensor
    valid: Tensor
    present: Tensor
    asked: Tensor
    unknown: Tensor

    @property
    def masks(self) -> Tensor:
        """Bool (B, K, H, W), the mask of each queried class. A background pixel is a negative of all K.

        Computed on every access, because it is K times as large as everything else here.
        """
        return self.positions.int()[:, None] == self.classes.int()[:, :, None, None]

    def part(self, images: slice) -> "Targets":
        """Return the targets of some of the images."""
        return Targets(*(values[images] for values in self))

    def of_classes(self, classes: slice) -> "Targets":
        """Return the targets of some of the queried classes, for all images. Args: classes: from 0 to K."""
        return self._replace(
            classes=self.classes[:, classes], present=self.present[:, classes], asked=self.asked[:, classes]
        )


def sample_targets(
    class_map: Tensor, draws: Tensor, *, sampled_classes: int, allowed: Tensor | None = None
) -> Targets:
    """Choose the queried classes of each image: its own classes, and random others up to K.

    Args:
        class_map: integer (B, H, W): label ids 1 to C, BACKGROUND, IGNORE. Pixels of an unknown id are not valid and
            are counted in ``unknown``. The caller reads the count later and raises; raising here would wait for the
            device.
        draws: float (B, C), uniform in [0, 1). The other classes of an image are those with the largest draws. If an
            image has more than K own classes, the largest draws choose among them.
        sampled_classes: K, or C if there are fewer classes.
        allowed: bool (B, C), the classes that may be others: those that the image's source labels. If they are fewer
            than needed, other classes fill the K places and are not ``asked``. None: all.
    """
    count = draws.shape[1]
    ids = class_map.long()
    labelled = ids != IGNORE
    strange = labelled & ((ids > count) | (ids < 0))
    valid = labelled & ~strange
    positions = torch.where(valid, ids, BACKGROUND) - 1  # -1 for background
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
