"""Sampling order: endless epochs, mixed by weight, as pure functions of (seed, position).

The order of a source is an endless stream of epochs. An epoch has every sample exactly once, or with balancing as
often as its repeat factor says. A mixture assigns positions to sources in proportion to their weights. Step s takes
``batch_size`` positions from s * ``batch_size`` on. So every batch is full, no sample is dropped within an epoch, and
a run resumes at any step, on any number of processes, without stored state.
"""

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from magicseg.core.errors import DataError

_REPEATS = 1  # the stream of random numbers that rounds repeat factors


class Pick(NamedTuple):
    """The sample at one position of the stream.

    ``partner``: the epoch's next sample of the same source, whose objects copy-paste may use. ``copy``: how often
    the epoch had the sample before.
    """

    epoch: int
    sample: int
    partner: int
    source: int = 0
    copy: int = 0


class Order(Protocol):
    """A stream of picks."""

    def pick(self, place: int) -> Pick:
        """Return the sample at a position, counted from 0."""

    def batch(self, step: int, batch_size: int, *, rank: int = 0, world: int = 1) -> list[Pick]:
        """Return one rank's samples of a step, counted from 0. Each batch is sharded across ``world`` ranks."""


class _Dealt(ABC):
    """Takes batches from consecutive positions."""

    @abstractmethod
    def pick(self, place: int) -> Pick: ...

    def batch(self, step: int, batch_size: int, *, rank: int = 0, world: int = 1) -> list[Pick]:
        """Return one rank's samples of a step, counted from 0. Each batch is sharded across ``world`` ranks."""
        return [self.pick(place) for place in range(step * batch_size + rank, (step + 1) * batch_size, world)]


class SampleOrder(_Dealt):
    """Orders shards at random, and shuffles their samples within windows of ``window`` shards.

    A reader has to cache one window; a window of all shards is a full shuffle.

    Args:
        indices: the samples, ascending; sample i is in shard i // shard_size.
        source: which of the mixed sources this is; each has a shuffle of its own.
        repeats: float (samples,), 1 or more: how often an epoch has each sample on average, see
            `repeat_factors`. An epoch's number of copies is that rounded down or up at random, by (seed, epoch).
            Finding a place then costs a random number per sample of all epochs before, once.
    """

    def __init__(
        self,
        indices: NDArray[np.int64],
        *,
        shard_size: int,
        window: int,
        seed: int,
        source: int = 0,
        repeats: NDArray[np.float64] | None = None,
    ) -> None:
        if len(indices) == 0:
            raise DataError("there are no samples to train on: all were dropped, or none is made yet")
        self._seed = seed
        self._window = window
        self._indices = indices
        self._source = source
        self._repeats = repeats
        self._shards = np.split(np.arange(len(indices)), np.flatnonzero(np.diff(indices // shard_size)) + 1)
        self._starts = [0]  # the first place of every epoch
        self._epoch = lru_cache(maxsize=2)(self._shuffled)

    def epoch(self, epoch: int) -> NDArray[np.int64]:
        """All samples, in the order of this epoch."""
        return self._epoch(epoch)[0]

    def pick(self, place: int) -> Pick:
        """Return the sample at a position, counted from 0."""
        epoch, offset = self._found(place)
        samples, copies = self._epoch(epoch)
        partner = int(samples[(offset + 1) % len(samples)])
        return Pick(epoch, int(samples[offset]), partner, self._source, int(copies[offset]))

    def _found(self, place: int) -> tuple[int, int]:
        """The epoch of a place, and the place in it."""
        if self._repeats is None:
            return divmod(place, len(self._indices))
        while self._starts[-1] <= place:
            self._starts.append(self._starts[-1] + int(self._counts(len(self._starts) - 1).sum()))
        epoch = bisect_right(self._starts, place) - 1
        return epoch, place - self._starts[epoch]

    def _entropy(self, epoch: int) -> tuple[int, ...]:
        return (self._seed, epoch, self._source) if self._source else (self._seed, epoch)

    def _counts(self, epoch: int) -> NDArray[np.int64]:
        """How often the epoch has each sample."""
        assert self._repeats is not None
        generator = np.random.default_rng(np.random.SeedSequence(self._entropy(epoch), spawn_key=(_REPEATS,)))
        return np.floor(self._repeats + generator.random(len(self._repeats))).astype(np.int64)

    def _shuffled(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The epoch's samples, and which copy each is."""
        generator = np.random.default_rng(self._entropy(epoch))
        counts = None if self._repeats is None else self._counts(epoch)
        shards = [self._shards[place] for place in generator.permutation(len(self._shards))]
        windows = []
        for start in range(0, len(shards), self._window):
            members = np.concatenate(shards[start : start + self._window])
            windows.append(generator.permutation(members if counts is None else np.repeat(members, counts[members])))
        members = np.concatenate(windows)
        copies = np.zeros_like(members)
        if counts is not None:
            ascending = np.argsort(members, kind="stable")
            ranked = members[ascending]
            copies[ascending] = np.arange(len(members)) - np.searchsorted(ranked, ranked)
        return self._indices[members], copies


class MixedOrder(_Dealt):
    """Merges several orders into one stream, in proportion to their weights at every prefix.

    Of the first p positions, a source of relative weight w has w * p, with an error of at most half the number of
    sources: the first source gets its share rounded, the next its share of the rest rounded, and so on. The source of
    a position follows from integer arithmetic, without earlier positions. Each source keeps its own epochs.
    """

    def __init__(self, orders: Sequence[SampleOrder], weights: Sequence[float]) -> None:
        self._orders = orders
        shares = [Fraction(str(weight)) for weight in weights]
        rests = list(accumulate(reversed(shares)))[::-1]
        self._shares = [(share / rest).as_integer_ratio() for share, rest in zip(shares, rests, strict=True)]

    def counts(self, places: int) -> list[int]:
        """Return how many of the first ``places`` positions each source has."""
        counts = []
        for share, whole in self._shares:
            own = (2 * places * share + whole) // (2 * whole)
            counts.append(own)
            places -= own
        return counts

    def pick(self, place: int) -> Pick:
        """Return the sample at a position, counted from 0."""
        before, after = self.counts(place), self.counts(place + 1)
        source = next(number for number, (low, high) in enumerate(zip(before, after, strict=True)) if high > low)
        return self._orders[source].pick(before[source])


class Steps:
    """Yields the batches of steps ``start`` to ``stop`` - 1, for a DataLoader."""

    def __init__(
        self, order: Order, *, batch_size: int, start: int, stop: int, rank: int = 0, world: int = 1
    ) -> None:
        self._order, self._batch_size, self._span = order, batch_size, range(start, stop)
        self._rank, self._world = rank, world

    def __len__(self) -> int:
        return len(self._span)

    def __iter__(self) -> Iterator[list[Pick]]:
        for step in self._span:
            yield self._order.batch(step, self._batch_size, rank=self._rank, world=self._world)


def repeat_factors(labels: NDArray[np.uint16], threshold: float) -> NDArray[np.float64]:
    """Return repeat factors, which let samples of rare classes come more often (Gupta et al. 2019, LVIS, arXiv
    1908.03195).

    r_i = max over the labels c of sample i of max(1, sqrt(threshold / f_c)), f_c being the share of samples with c.

    Args: labels: (samples, most), the ids of each sample's labels, 0 where it has fewer; none twice in a row.
    Returns: float (samples,), 1 or more; 1 for a sample without labels.
    """
    frequency = np.bincount(labels.ravel(), minlength=1) / max(len(labels), 1)
    with np.errstate(divide="ignore"):
        factors = np.maximum(1.0, np.sqrt(threshold / frequency))
    factors[0] = 1.0  # no label
    return np.asarray(factors[labels].max(axis=1, initial=1.0))
