"""Mixed and balanced streams: exact epochs, shares at every prefix, resumes without state."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from magicseg.data.sampler import MixedOrder, SampleOrder, Steps, repeat_factors

weights = st.floats(0.01, 100).map(lambda weight: round(weight, 2))


@st.composite
def mixtures(draw):
    """Orders of sources of 1 to 30 samples, some balanced, and their weights."""
    count = draw(st.integers(1, 4))
    seed = draw(st.integers(0, 2**40))
    orders = []
    for source in range(count):
        kept = sorted(draw(st.sets(st.integers(0, 60), min_size=1, max_size=30)))
        balanced = draw(st.booleans())
        repeats = 1 + np.random.default_rng(seed + source).random(len(kept)) * 2 if balanced else None
        orders.append(
            SampleOrder(
                np.array(kept),
                shard_size=draw(st.integers(1, 9)),
                window=draw(st.integers(1, 4)),
                seed=seed,
                source=source,
                repeats=repeats,
            )
        )
    return orders, MixedOrder(orders, [draw(weights) for _ in range(count)])


@pytest.mark.slow
@given(mixture=mixtures(), batch_size=st.integers(1, 9), world=st.integers(1, 4), start=st.integers(0, 15))
def test_no_sample_is_lost_or_repeated_on_any_number_of_ranks(mixture, batch_size, world, start):
    orders, mixed = mixture
    steps = 40
    parts = [
        list(Steps(mixed, batch_size=batch_size, start=0, stop=start, rank=rank, world=world))
        + list(Steps(mixed, batch_size=batch_size, start=start, stop=steps, rank=rank, world=world))
        for rank in range(world)
    ]
    picks = [pick for step in range(steps) for part in parts for pick in part[step]]
    assert Counter(picks) == Counter(mixed.pick(place) for place in range(steps * batch_size))
    for source, order in enumerate(orders):
        own = [pick for pick in picks if pick.source == source]
        assert Counter(own) == Counter(order.pick(place) for place in range(len(own)))
        last = max((pick.epoch for pick in own), default=0)
        for epoch in range(last):  # the epochs that are over
            seen = Counter(pick.sample for pick in own if pick.epoch == epoch)
            assert seen == Counter(order.epoch(epoch).tolist())
        assert max(Counter((pick.epoch, pick.sample, pick.copy) for pick in own).values(), default=1) == 1


@given(mixture=mixtures(), places=st.integers(0, 3000))
def test_every_prefix_of_the_stream_has_each_source_in_its_share(mixture, places):
    _, mixed = mixture
    rest, expected = float(places), []
    for share, whole in mixed._shares:
        expected.append(rest * share / whole)
        rest -= expected[-1]
    counts = mixed.counts(places)
    assert sum(counts) == places
    assert np.all(np.abs(np.array(counts) - expected) <= max(1, len(counts)) / 2 + 1e-6)


def test_weights_of_one_and_three_give_three_of_four_places_to_the_second():
    orders = [SampleOrder(np.arange(5), shard_size=1, window=1, seed=0, source=source) for source in range(2)]
    mixed = MixedOrder(orders, [0.5, 1.5])
    sources = [mixed.pick(place).source for place in range(400)]
    assert all(sorted(sources[start : start + 4]) == [0, 1, 1, 1] for start in range(0, 400, 4))


def test_a_far_position_of_the_stream_needs_no_earlier_position():
    orders = [SampleOrder(np.arange(1000), shard_size=10, window=4, seed=3, source=source) for source in range(3)]
    far = MixedOrder(orders, [1, 0.3, 2.7]).pick(10**12)
    assert far == MixedOrder(orders, [1, 0.3, 2.7]).pick(10**12)
    assert far.epoch > 10**7


def test_two_sources_of_the_same_samples_are_shuffled_differently():
    first, second = (SampleOrder(np.arange(50), shard_size=5, window=10, seed=1, source=source) for source in (0, 1))
    assert not np.array_equal(first.epoch(0), second.epoch(0))


def test_the_order_of_an_epoch_is_that_of_earlier_versions():
    order = SampleOrder(np.arange(12), shard_size=3, window=2, seed=5)
    assert order.epoch(0).tolist() == [10, 4, 11, 3, 9, 5, 1, 6, 7, 0, 8, 2]


@given(
    labels=st.lists(st.sets(st.integers(1, 6), max_size=3), min_size=1, max_size=40),
    threshold=st.floats(0.01, 1),
)
def test_repeat_factors_are_those_of_the_formula(labels, threshold):
    table = np.zeros((len(labels), 3), np.uint16)
    for row, ids in zip(table, labels, strict=True):
        row[: len(ids)] = sorted(ids)
    expected = []
    for ids in labels:
        shares = [sum(id_ in other for other in labels) / len(labels) for id_ in ids]
        expected.append(max([1.0, *(np.sqrt(threshold / share) for share in shares)]))
    assert repeat_factors(table, threshold) == pytest.approx(expected)


def test_balance_brings_rare_classes_nearer_to_the_threshold():
    labels = np.where(np.arange(1000) < 10, 1, 2)[:, None].astype(np.uint16)  # 1 % and 99 %
    repeats = repeat_factors(labels, 0.04)
    order = SampleOrder(np.arange(1000), shard_size=50, window=4, seed=0, repeats=repeats)
    epochs = [order.epoch(epoch) for epoch in range(20)]
    assert all(set(epoch.tolist()) == set(range(1000)) for epoch in epochs)
    assert np.mean([(epoch < 10).sum() for epoch in epochs]) == pytest.approx(20)  # sqrt(0.04 / 0.01) = 2


def test_fractions_of_a_copy_are_rounded_at_random_and_right_on_average():
    order = SampleOrder(np.arange(200), shard_size=10, window=4, seed=0, repeats=np.full(200, 1.3))
    counts = np.array([np.bincount(order.epoch(epoch), minlength=200) for epoch in range(60)])
    assert set(np.unique(counts)) == {1, 2}
    assert counts.mean() == pytest.approx(1.3, abs=0.02)
    assert np.abs(counts.mean(axis=0) - 1.3).max() < 0.25
