"""Samples in a fixed order: which sample comes when, read in batches, augmented.

The order is a pure function of (seed, kept indices, shard size, window): an endless stream of epochs, each
with every sample exactly once. Step s takes the places s * batch_size and on of that stream, so every batch is
full, nothing is dropped or repeated within an epoch, and a run resumes at any step without any state.
"""

import multiprocessing
import os
import signal
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import lru_cache
from multiprocessing import resource_tracker
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from magicseg.errors import DataError
from magicseg.labels import BACKGROUND, IGNORE
from magicseg.train.distributed import STOP_SIGNALS

Read = tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint16]]


class Samples(Protocol):
    """A data set, as training sees it. Must be picklable: loader processes get a copy."""

    @property
    def indices(self) -> NDArray[np.int64]:
        """The kept samples, ascending; dropped samples are gaps."""

    @property
    def shard_size(self) -> int:
        """Sample i is in shard i // shard_size."""

    @property
    def image_size(self) -> int:
        """Side of the square images, pixels."""

    def read(self, indices: NDArray[np.int64]) -> Read:
        """Images and counterfactuals uint8 (B, H, W, 3), masks uint16 (B, H, W), in the order of ``indices``."""


class Pick(NamedTuple):
    """One sample at one place of the stream. ``partner``, the epoch's next, may lend it its objects."""

    epoch: int
    sample: int
    partner: int


class Batch(NamedTuple):
    """``images``, ``counterfactuals``: uint8 (B, 3, H, W), RGB. ``masks``: int32 (B, H, W), ids and IGNORE.
    ``paired``: bool (B,), whether there is a counterfactual (else its pixels are the image's). ``sources``: int64
    (B,), which of the mixed sources a sample is of; 0 where there is one.
    """

    images: Tensor
    counterfactuals: Tensor
    masks: Tensor
    paired: Tensor
    sources: Tensor


class SampleOrder:
    """Shards in random order, and their samples shuffled within windows of ``window`` shards.

    A window is what a reader has to keep at hand; a window of all shards is a full shuffle.
    """

    def __init__(self, indices: NDArray[np.int64], *, shard_size: int, window: int, seed: int) -> None:
        if len(indices) == 0:
            raise DataError("there are no samples to train on: all were dropped, or none is made yet")
        self._seed = seed
        self._window = window
        self._count = len(indices)
        self._shards = np.split(indices, np.flatnonzero(np.diff(indices // shard_size)) + 1)
        self.epoch = lru_cache(maxsize=2)(self._epoch)

    def _epoch(self, epoch: int) -> NDArray[np.int64]:
        """All indices, in the order of this epoch."""
        generator = np.random.default_rng((self._seed, epoch))
        shards = [self._shards[place] for place in generator.permutation(len(self._shards))]
        windows = [
            generator.permutation(np.concatenate(shards[start : start + self._window]))
            for start in range(0, len(shards), self._window)
        ]
        return np.concatenate(windows)

    def batch(self, step: int, batch_size: int, *, rank: int = 0, world: int = 1) -> list[Pick]:
        """The samples of one step (from 0) for one of ``world`` processes, which share each batch out."""
        picks = []
        for place in range(step * batch_size + rank, (step + 1) * batch_size, world):
            epoch, offset = divmod(place, self._count)
            indices = self.epoch(epoch)
            picks.append(Pick(epoch, int(indices[offset]), int(indices[(offset + 1) % self._count])))
        return picks


class Steps(Sampler[list[Pick]]):
    """The batches of the steps from ``start`` up to, not including, ``stop``, for a DataLoader."""

    def __init__(
        self, order: SampleOrder, *, batch_size: int, start: int, stop: int, rank: int = 0, world: int = 1
    ) -> None:
        self._order, self._batch_size, self._span = order, batch_size, range(start, stop)
        self._rank, self._world = rank, world

    def __len__(self) -> int:
        return len(self._span)

    def __iter__(self) -> Iterator[list[Pick]]:
        for step in self._span:
            yield self._order.batch(step, self._batch_size, rank=self._rank, world=self._world)


class SampleDataset(Dataset[Batch]):
    """Reads and augments the samples of a batch at once.

    Augmented are image, counterfactual and mask alike. With probability ``paste`` a sample gets its partner's
    objects on top of its own (copy-paste, Ghiasi et al. 2021, arXiv 2012.07177), so that a data set of single
    objects teaches scenes of two; the counterfactual stays the scene without any. Then, with probability
    ``flip``, all three are mirrored. The coins belong to (seed, epoch, sample) and to nothing else.

    Whole shards are read and the latest kept, where ``cache_bytes`` has room for a window of them and one
    more; else only the samples asked for.
    """

    def __init__(
        self, samples: Samples, *, window: int, seed: int, flip: float, paste: float, cache_bytes: int
    ) -> None:
        self._samples = samples
        self._seed = seed
        self._flip = flip
        self._paste = paste
        shards = np.unique(samples.indices // samples.shard_size)
        room = cache_bytes // (samples.shard_size * samples.image_size**2 * (3 + 3 + 2))
        self._room = room if room >= min(window + 1, len(shards)) else 0
        self._cache: OrderedDict[int, tuple[NDArray[np.int64], Read]] = OrderedDict()

    def __getitems__(self, picks: Sequence[Pick]) -> Batch:
        coins = np.array([self._coins(pick) for pick in picks])
        flipped, pasted = coins[:, 0] < self._flip, coins[:, 1] < self._paste
        own = np.array([pick.sample for pick in picks], dtype=np.int64)
        partners = np.array([pick.partner for pick in picks], dtype=np.int64)[pasted]
        images, counterfactuals, masks = self._read(np.concatenate([own, partners]))
        count = len(own)
        lent = (masks[count:] != BACKGROUND) & (masks[count:] != IGNORE)
        images[:count][pasted] = np.where(lent[..., None], images[count:], images[:count][pasted])
        masks[:count][pasted] = np.where(lent, masks[count:], masks[:count][pasted])
        images, counterfactuals, masks = images[:count], counterfactuals[:count], masks[:count]
        for array in (images, counterfactuals, masks):
            array[flipped] = array[flipped, :, ::-1]
        return Batch(
            images=torch.from_numpy(images).permute(0, 3, 1, 2),
            counterfactuals=torch.from_numpy(counterfactuals).permute(0, 3, 1, 2),
            masks=torch.from_numpy(masks.astype(np.int32)),
            paired=torch.ones(count, dtype=torch.bool),
            sources=torch.zeros(count, dtype=torch.int64),
        )

    def _coins(self, pick: Pick) -> NDArray[np.float64]:
        """Two uniform numbers in [0, 1)."""
        words = np.random.SeedSequence((self._seed, pick.epoch, pick.sample)).generate_state(2)
        return words / np.float64(2**32)

    def _read(self, indices: NDArray[np.int64]) -> Read:
        return self._read_by_shards(indices) if self._room else self._read_each(indices)

    def _read_each(self, indices: NDArray[np.int64]) -> Read:
        """In ascending order, which is that of the storage, then in the order asked for."""
        unique, places = np.unique(indices, return_inverse=True)
        images, counterfactuals, masks = self._samples.read(unique)
        return images[places], counterfactuals[places], masks[places]

    def _read_by_shards(self, indices: NDArray[np.int64]) -> Read:
        side = self._samples.image_size
        images = np.empty((len(indices), side, side, 3), np.uint8)
        counterfactuals = np.empty_like(images)
        masks = np.empty((len(indices), side, side), np.uint16)
        shards = indices // self._samples.shard_size
        for shard in np.unique(shards):
            wanted = shards == shard
            members, read = self._shard(int(shard))
            places = np.searchsorted(members, indices[wanted])
            images[wanted], counterfactuals[wanted], masks[wanted] = (part[places] for part in read)
        return images, counterfactuals, masks

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


def load_batches(dataset: SampleDataset, steps: Steps, *, workers: int, pin_memory: bool = False) -> Iterator[Batch]:
    """The batches of ``steps``, in order, read by ``workers`` processes (0: by this one).

    The processes come from a fork server: a store's threads do not survive a plain fork. They end with their
    reader, which may still need a batch when a signal to the whole process group has asked it to stop.
    """
    loader = DataLoader(
        dataset,
        batch_sampler=steps,
        collate_fn=cast("Any", _as_is),  # what __getitems__ returns is a batch already
        num_workers=workers,
        multiprocessing_context="forkserver" if workers else None,
        pin_memory=pin_memory,
        worker_init_fn=_end_with_reader,
        generator=torch.Generator(),  # else the loader draws from, and so moves, the global one
    )
    if workers:
        resource_tracker.ensure_running()  # first: its start unblocks signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # new processes inherit it
    try:
        return iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_reader(_worker: int) -> None:
    """Have a reading process end when the process it reads for is killed.

    torch looks at the parent in the sense of the operating system: the fork server, which waits for its children.
    """
    reader = multiprocessing.parent_process()
    assert reader is not None

    def watch() -> None:
        reader.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _as_is(batch: Batch) -> Batch:
    return batch
