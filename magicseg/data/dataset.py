"""Read, augment and stack samples into batches.

Sampling order: `magicseg.data.sampler`. Augmentation: `magicseg.data.augmentation`. Sources of samples:
`magicseg.data.mixture`. Reader processes: `magicseg.data.loader`.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from magicseg.config.training_data import DataSettings
from magicseg.core.errors import ConfigError
from magicseg.data.augmentation import (
    MEAN_COLOUR,
    choose_crop,
    cut_image,
    cut_mask,
    distort,
    draw_distortion,
    mirror,
)
from magicseg.data.kept_samples import Images, Masks
from magicseg.data.sampler import MixedOrder, Pick, SampleOrder, Steps, repeat_factors
from magicseg.labels import BACKGROUND, IGNORE

__all__ = [
    "Batch",
    "Mixture",
    "Pick",
    "Read",
    "SampleDataset",
    "SampleOrder",
    "Samples",
    "Steps",
    "input_size",
    "order_of",
]

Read = tuple[Images, Images | None, Masks]
Sample = tuple[NDArray[np.uint8], NDArray[np.uint8] | None, NDArray[np.uint16]]

# What a sample's random numbers are for. The coins of flip and paste have no number: they were first.
_OWN, _PARTNER = 1, 2


class Samples(Protocol):
    """A source of training samples. Must be picklable: reader processes get a copy."""

    @property
    def indices(self) -> NDArray[np.int64]:
        """The kept samples, ascending; dropped samples are gaps."""

    @property
    def shard_size(self) -> int:
        """Sample i is in shard i // shard_size."""

    @property
    def image_size(self) -> int | None:
        """Side of the square images, pixels; None where they differ or are not square."""

    @property
    def allowed(self) -> NDArray[np.bool_] | None:
        """Bool (sources, C): which classes a sample of that source may be queried for. None: all of them."""

    @property
    def validated(self) -> bool:
        """Whether a detector checked that each counterfactual lacks its image's classes."""

    def labels(self) -> NDArray[np.uint16]:
        """Return each sample's label ids, (samples, most), 0 where it has fewer, in the order of ``indices``."""

    def read(self, indices: NDArray[np.int64]) -> Read:
        """Return images and counterfactuals, uint8 (H, W, 3), and masks, uint16 (H, W), in the order of ``indices``.

        Each is one array with the samples first, or a list if sizes differ. Counterfactuals may be None.
        """


@dataclass(frozen=True)
class Mixture:
    """Several sources with their relative weights. ``allowed``: as in `Samples`."""

    sources: tuple[Samples, ...]
    weights: tuple[float, ...]
    allowed: NDArray[np.bool_] | None = None

    @classmethod
    def of(cls, samples: "Samples | Mixture") -> "Mixture":
        """Wrap a single source as a mixture."""
        return samples if isinstance(samples, Mixture) else cls((samples,), (1.0,))

    @property
    def validated(self) -> NDArray[np.bool_]:
        """Bool (sources,), each source's."""
        return np.array([source.validated for source in self.sources], bool)


class Batch(NamedTuple):
    """A batch of training samples.

    ``images``, ``counterfactuals``: uint8 (B, 3, H, W), RGB. ``masks``: int32 (B, H, W), ids and IGNORE. ``paired``:
    bool (B,), whether the sample has a counterfactual; otherwise the image takes its place. ``sources``: int64 (B,),
    the index of the sample's source.
    """

    images: Tensor
    counterfactuals: Tensor
    masks: Tensor
    paired: Tensor
    sources: Tensor


def input_size(samples: Samples | Mixture, settings: DataSettings) -> int:
    """Return the side of a batch's images in pixels. Raises ConfigError if sizes differ and there is no crop."""
    if settings.crop is not None:
        return settings.crop
    sizes = {source.image_size for source in Mixture.of(samples).sources}
    size = sizes.pop() if len(sizes) == 1 else None
    if size is None:
        raise ConfigError(
            "the images to train on differ in size or are not square, and train.crop is null",
            hint="set train.crop, to 512 as in the paper",
        )
    return size


def order_of(samples: Samples | Mixture, settings: DataSettings, *, seed: int) -> MixedOrder:
    """Return the sampling order."""
    mixture = Mixture.of(samples)
    orders = []
    for number, source in enumerate(mixture.sources):
        repeats = None if settings.balance is None else repeat_factors(source.labels(), settings.balance)
        orders.append(
            SampleOrder(
                source.indices,
                shard_size=source.shard_size,
                window=settings.shuffle_window,
                seed=seed,
                source=number,
                repeats=repeats,
            )
        )
    return MixedOrder(orders, mixture.weights)


class SampleDataset(Dataset[Batch]):
    """Reads and augments the samples of a batch.

    Image, counterfactual and mask get the same crop at a random scale and the same distorted colours
    (`magicseg.data.augmentation`). Then, with probability ``paste``, a sample gets its partner's objects on top of
    its own (copy-paste, Ghiasi et al. 2021, arXiv 2012.07177), so that a data set of single objects teaches scenes of
    two; the partner was cropped and distorted by draws of its own, and the counterfactual stays the scene without
    any. Then, with probability ``flip``, all three are mirrored. All draws belong to (seed, epoch, sample), where
    the sample's source and which of its copies in the epoch it is count too, and to nothing else.
    """

    def __init__(self, samples: Samples | Mixture, settings: DataSettings, *, seed: int) -> None:
        sources = Mixture.of(samples).sources
        self._settings, self._seed = settings, seed
        self._size = input_size(samples, settings)
        room = settings.loader_cache_mib * 2**20 / len(sources)
        self._readers = [_Reader(source, window=settings.shuffle_window, cache_bytes=room) for source in sources]

    def __getitems__(self, picks: Sequence[Pick]) -> Batch:
        coins = np.array([self._coins(pick) for pick in picks])
        flipped, pasted = (
            coins[:, 0] < self._settings.flip,
            np.flatnonzero(coins[:, 1] < self._settings.paste).tolist(),
        )
        count, total, size = len(picks), len(picks) + len(pasted), self._size
        images = np.empty((total, size, size, 3), np.uint8)
        counterfactuals = np.empty((count, size, size, 3), np.uint8)
        masks = np.empty((total, size, size), np.uint16)
        paired = np.ones(count, bool)
        # One after the other: a sample that is read, changed and put away stays in the processor's cache.
        for place, pick in enumerate(picks):
            image, counterfactual, mask = self._readers[pick.source].read(pick.sample)
            paired[place] = counterfactual is not None
            into = images[place], counterfactuals[place], masks[place]
            self._put((image, counterfactual, mask), into, pick, _OWN)
        for place, partner in zip(pasted, range(count, total), strict=True):
            pick = picks[place]
            image, _, mask = self._readers[pick.source].read(pick.partner)
            self._put((image, None, mask), (images[partner], None, masks[partner]), pick, _PARTNER)
            lent = (masks[partner] != BACKGROUND) & (masks[partner] != IGNORE)
            images[place][lent] = images[partner][lent]
            masks[place][lent] = masks[partner][lent]
        for place in range(count):
            if flipped[place]:
                images[place], masks[place] = mirror(images[place]), mirror(masks[place])
                if paired[place]:
                    counterfactuals[place] = mirror(counterfactuals[place])
            if not paired[place]:
                counterfactuals[place] = images[place]
        return Batch(
            images=torch.from_numpy(images[:count]).permute(0, 3, 1, 2),
            counterfactuals=torch.from_numpy(counterfactuals).permute(0, 3, 1, 2),
            masks=torch.from_numpy(masks[:count].astype(np.int32)),
            paired=torch.from_numpy(paired),
            sources=torch.tensor([pick.source for pick in picks], dtype=torch.int64),
        )

    def _put(
        self,
        sample: Sample,
        into: Sample,
        pick: Pick,
        purpose: int,
    ) -> None:
        """Crop, distort and pad one sample into its place."""
        settings, mask = self._settings, sample[2]
        crop = distortion = None
        if settings.crop is not None or settings.photometric:
            generator = np.random.default_rng(self._sequence(pick, purpose))
            crop = choose_crop(mask, settings, generator) if settings.crop is not None else None
            distortion = draw_distortion(generator) if settings.photometric else None
        for pixels, target in zip(sample[:2], into[:2], strict=True):
            if pixels is None or target is None:
                continue
            changed = pixels if crop is None else cut_image(pixels, crop)
            changed = changed if distortion is None else distort(changed, distortion)
            _pad(changed, target, MEAN_COLOUR)
        _pad(mask if crop is None else cut_mask(mask, crop), into[2], IGNORE)

    def _coins(self, pick: Pick) -> NDArray[np.float64]:
        """Draw two uniform numbers in [0, 1)."""
        return self._sequence(pick).generate_state(2) / np.float64(2**32)

    def _sequence(self, pick: Pick, purpose: int = 0) -> np.random.SeedSequence:
        key = (pick.source, pick.copy, purpose)
        return np.random.SeedSequence((self._seed, pick.epoch, pick.sample), spawn_key=key if any(key) else ())


def _pad(content: NDArray[Any], into: NDArray[Any], value: Any) -> None:
    """Put ``content`` in the upper left corner and ``value`` in the rest."""
    height, width = content.shape[:2]
    into[:height, :width] = content
    into[height:] = value
    into[:height, width:] = value


class _Reader:
    """Reads one source's samples.

    Whole shards are read and the latest kept, where ``cache_bytes`` has room for a window of them and one more; else
    only the samples asked for.
    """

    def __init__(self, samples: Samples, *, window: int, cache_bytes: float) -> None:
        self._samples = samples
        self._room = 0
        self._cache: OrderedDict[int, tuple[NDArray[np.int64], Read]] = OrderedDict()
        if samples.image_size is not None:
            shards = np.unique(samples.indices // samples.shard_size)
            room = int(cache_bytes // (samples.shard_size * samples.image_size**2 * (3 + 3 + 2)))
            self._room = room if room >= min(window + 1, len(shards)) else 0

    def read(self, index: int) -> Sample:
        """Return a sample's image, its counterfactual or None, and its mask."""
        if self._room:
            members, read = self._shard(index // self._samples.shard_size)
            place = int(np.searchsorted(members, index))
        else:
            read, place = self._samples.read(np.array([index])), 0
        images, counterfactuals, masks = read
        return images[place], None if counterfactuals is None else counterfactuals[place], masks[place]

    def _shard(self, shard: int) -> tuple[NDArray[np.int64], Read]:
        if shard in self._cache:
            self._cache.move_to_end(shard)
        else:
            size = self._samples.shard_size
            first, last = np.searchsorted(self._samples.indices, (shard * size, (shard + 1) * size))
            members = self._samples.indices[first:last]
            if len(self._cache) >= self._room:
                self._cache.popitem(last=False)
            self._cache[shard] = members, self._samples.read(members)
        return self._cache[shard]
