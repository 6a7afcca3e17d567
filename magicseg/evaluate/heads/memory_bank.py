"""A memory bank: prototypes of the classes of a generated data set in an encoder's features, without training.

    bank = build_bank(samples, vocabulary, features, stride=16, limit=1024, prototypes=4)
    head = MemoryBankHead(bank, features, stride=16, identity={...})

Every kept image gives one vector per class that it shows, the mean of its patch features under the mask, and one for
its background. K-means reduces a class's vectors to a few prototypes. A pixel belongs to the class of the nearest
prototype, or to the background if that is nearer. See prototype networks (Snell et al. 2017, arXiv 1703.05175) with
masked pooling (Wang et al., PANet, ICCV 2019, arXiv 1908.06391).
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from magicseg.core.errors import DataError
from magicseg.data.dataset import Samples
from magicseg.evaluate.heads.head import ScoreKind
from magicseg.evaluate.heads.segmenter_head import at_class
from magicseg.labels import BACKGROUND, IGNORE, Vocabulary
from magicseg.labels.distinct import refuse_alike
from magicseg.labels.vocabulary import name_key
from magicseg.model.sliding_window import WindowAverage

RECIPE = 1  # raise it when the same samples give another bank
_SCALE = 100.0  # CLIP's logit scale, the inverse of its temperature
_LEAST_PATCHES = 0.5  # a class with fewer patches in an image gives no vector
_BATCH = 16
_ABSENT = -1e4

Features = Callable[[Tensor], Tensor]
"""Pixels uint8 (B, 3, H, W) to patch features float (B, h * w, D), L2-normalised."""


@dataclass(frozen=True, kw_only=True)
class MemoryBank:
    """``prototypes``: float32 (P, D), unit vectors. ``classes``: int64 (P,), the class of each: BACKGROUND or a
    label's id. ``samples``: the number of images that it was made from.
    """

    vocabulary: Vocabulary
    prototypes: Tensor
    classes: Tensor
    samples: int


def build_bank(
    samples: Samples, vocabulary: Vocabulary, features: Features, *, stride: int, limit: int, prototypes: int
) -> MemoryBank:
    """Build a bank from up to ``limit`` kept samples, evenly spread.

    Args: stride: pixels per patch and side. prototypes: the most per class, and for the background.
    Raises DataError if no sample shows a class.
    """
    indices = samples.indices
    if len(indices) > limit:
        indices = indices[np.linspace(0, len(indices) - 1, limit).round().astype(np.int64)]
    found: dict[int, list[NDArray[np.float32]]] = {}
    for start in range(0, len(indices), _BATCH):
        images, _, masks = samples.read(indices[start : start + _BATCH])
        with torch.inference_mode():
            pixels = torch.from_numpy(np.asarray(images)).permute(0, 3, 1, 2)  # may be a list
            patches = features(pixels).float().cpu()
        for row, mask in zip(patches, masks, strict=True):
            for value, vector in _means(row, mask, stride).items():
                found.setdefault(value, []).append(vector)
    if not found.keys() - {BACKGROUND}:
        raise DataError("no sample shows a class that is as large as a patch: there is nothing to make a bank of")
    owners: list[int] = []
    vectors: list[NDArray[np.float32]] = []
    for value in sorted(found):
        chosen = _clustered(np.stack(found[value]), prototypes)
        owners += [value] * len(chosen)
        vectors += list(chosen)
    return MemoryBank(
        vocabulary=vocabulary,
        prototypes=F.normalize(torch.from_numpy(np.stack(vectors)), dim=1),
        classes=torch.tensor(owners),
        samples=len(indices),
    )


def _means(patches: Tensor, mask: NDArray[np.uint16], stride: int) -> dict[int, NDArray[np.float32]]:
    """Return the unit mean feature of each class of an image. A patch is weighted by its share of the class."""
    height, width = (side // stride for side in mask.shape)
    blocks = mask[: height * stride, : width * stride].reshape(height, stride, width, stride)
    means: dict[int, NDArray[np.float32]] = {}
    for value in np.unique(mask).tolist():
        if value == IGNORE:
            continue
        shares = torch.from_numpy((blocks == value).mean((1, 3), dtype=np.float32)).flatten()
        if float(shares.sum()) >= _LEAST_PATCHES:
            means[value] = F.normalize(shares @ patches, dim=0).numpy()
    return means


def _clustered(vectors: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """Return up to ``count`` k-means centres of unit vectors, deterministically."""
    vectors = np.unique(vectors, axis=0)
    if len(vectors) <= count:
        return vectors
    from scipy.cluster.vq import kmeans2

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "One of the clusters is empty")  # there are fewer prototypes then
        centres, members = kmeans2(vectors.astype(np.float64), count, minit="++", seed=0)
    return np.asarray(centres[np.unique(members)], dtype=np.float32)


class MemoryBankHead:
    """Score a class by its nearest prototype minus the background's; a `magicseg.evaluate.heads.head.Head`.

    ``lacking``: the queried classes that the bank lacks; no pixel gets them.
    """

    name = "memory-bank"
    window_average: WindowAverage = "logits"
    score_kinds: tuple[ScoreKind, ...] = ("log-odds",)

    def __init__(self, bank: MemoryBank, features: Features, *, stride: int, identity: Mapping[str, Any]) -> None:
        self.stride = stride
        self.identity: Mapping[str, Any] = {
            **identity,
            "recipe": RECIPE,
            "samples": bank.samples,
            "prototypes": len(bank.prototypes),
        }
        self.lacking: tuple[str, ...] = ()
        self._bank = bank
        self._features = features
        self._groups: list[Tensor | None] = []

    def prepare(self, classes: Sequence[Sequence[str]]) -> None:
        known: dict[str, int] = {}
        for label in self._bank.vocabulary.labels:
            for name in (label.name, label.text, *label.synonyms):
                known.setdefault(name_key(name), label.id)
        self._groups, lacking = [], []
        found: dict[int, str] = {}
        for names in classes:
            ids = [known[name_key(name)] for name in names if name_key(name) in known]
            if ids and found.setdefault(ids[0], names[0]) != names[0]:
                refuse_alike([found[ids[0]], names[0]], ids[:1] * 2, "the memory bank")
            group = self._prototypes(ids[0]) if ids else None
            self._groups.append(group)
            if group is None:
                lacking.append(names[0])
        self.lacking = tuple(lacking)

    def _prototypes(self, value: int) -> Tensor | None:
        chosen = self._bank.prototypes[self._bank.classes == value]
        return chosen if len(chosen) else None

    @torch.inference_mode()
    def logits(self, crops: Tensor) -> Tensor:
        patches = self._features(crops).float()
        background = self._prototypes(BACKGROUND)
        nothing = _nearest(patches, background) if background is not None else patches.new_zeros(patches.shape[:2])
        closer = [
            torch.full_like(nothing, _ABSENT) if group is None else _SCALE * (_nearest(patches, group) - nothing)
            for group in self._groups
        ]
        height, width = crops.shape[-2:]
        shape = (len(crops), len(closer), height // self.stride, width // self.stride)
        return torch.stack(closer, dim=1).reshape(shape)

    def score(self, logits: Tensor, chosen: Tensor, kind: ScoreKind) -> Tensor:
        return at_class(logits, chosen)


def _nearest(patches: Tensor, prototypes: Tensor) -> Tensor:
    """Return the greatest cosine to any prototype: (B, N, D) and (P, D) -> (B, N)."""
    return (patches @ prototypes.T.to(patches)).amax(-1)
