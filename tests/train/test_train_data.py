"""The order of samples, and how they are read."""

import pickle
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from magicseg.config.training_data import DataSettings
from magicseg.core.errors import DataError
from magicseg.data.dataset import Pick, SampleDataset, SampleOrder, Steps
from magicseg.data.loader import load_batches


def plain(**changes):
    """Settings without crop and distortion; memory in fractions of a MiB too."""
    return DataSettings(crop=None, photometric=False).model_copy(update=changes)


orders = st.builds(
    lambda kept, shard_size, window, seed: SampleOrder(
        np.array(sorted(kept), np.int64), shard_size=shard_size, window=window, seed=seed
    ),
    kept=st.sets(st.integers(0, 200), min_size=1, max_size=60),
    shard_size=st.integers(1, 20),
    window=st.integers(1, 5),
    seed=st.integers(0, 2**63 - 1),
)


def stream(order, steps, batch_size):
    return [pick for step in range(steps) for pick in order.batch(step, batch_size)]


@given(order=orders, batch_size=st.integers(1, 16), epochs=st.integers(1, 3))
def test_every_epoch_has_every_sample_exactly_once(order, batch_size, epochs):
    count = len(order.epoch(0))
    steps = -(-count * epochs // batch_size)
    picks = stream(order, steps, batch_size)[: count * epochs]
    assert [pick.epoch for pick in picks] == [epoch for epoch in range(epochs) for _ in range(count)]
    expected = Counter(dict.fromkeys(order.epoch(0).tolist(), 1))
    for epoch in range(epochs):
        assert Counter(pick.sample for pick in picks if pick.epoch == epoch) == expected


@given(order=orders, batch_size=st.integers(1, 16), world=st.integers(1, 5), step=st.integers(0, 40))
def test_ranks_shard_the_same_batch(order, batch_size, world, step):
    whole = order.batch(step, batch_size)
    parts = [order.batch(step, batch_size, rank=rank, world=world) for rank in range(world)]
    assert sum(map(len, parts)) == batch_size
    assert [part[place] for place in range(len(parts[0])) for part in parts if place < len(part)] == whole
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(order=orders, batch_size=st.integers(1, 16), start=st.integers(0, 20))
def test_a_resumed_stream_goes_on_where_it_stopped(order, batch_size, start):
    whole = list(Steps(order, batch_size=batch_size, start=0, stop=25))
    assert list(Steps(order, batch_size=batch_size, start=start, stop=25)) == whole[start:]


def test_epochs_and_seeds_differ():
    indices = np.arange(100)
    order = SampleOrder(indices, shard_size=10, window=3, seed=0)
    other = SampleOrder(indices, shard_size=10, window=3, seed=1)
    assert not np.array_equal(order.epoch(0), order.epoch(1))
    assert not np.array_equal(order.epoch(0), other.epoch(0))


def test_a_window_holds_whole_shards():
    order = SampleOrder(np.arange(100), shard_size=10, window=2, seed=0)
    for start in range(0, 100, 20):
        window = order.epoch(0)[start : start + 20]
        assert Counter((window // 10).tolist()) == Counter(dict.fromkeys(set((window // 10).tolist()), 10))
        assert any(b - a != 1 for a, b in pairwise(window.tolist()))


def test_no_samples_is_an_error():
    with pytest.raises(DataError, match="no samples"):
        SampleOrder(np.array([], np.int64), shard_size=4, window=1, seed=0)


@pytest.mark.parametrize("cache_bytes", [0, 3 * 4 * 16 * 16 * 8, 2**30])
def test_batches_hold_the_requested_samples(squares, cache_bytes):
    samples = squares(np.delete(np.arange(40), [3, 8, 9, 10, 11, 30]))
    dataset = SampleDataset(
        samples, plain(flip=0, paste=0, shuffle_window=2, loader_cache_mib=cache_bytes / 2**20), seed=0
    )
    for asked in ([5, 0, 39, 5, 12], [1], [33, 2, 7]):
        batch = dataset.__getitems__([Pick(0, index, index) for index in asked])
        images, counterfactuals, masks = samples.read(np.array(asked))
        assert np.array_equal(batch.images.permute(0, 2, 3, 1).numpy(), images)
        assert np.array_equal(batch.counterfactuals.permute(0, 2, 3, 1).numpy(), counterfactuals)
        assert np.array_equal(batch.masks.numpy(), masks)


def test_whole_shards_are_read_once_if_the_cache_holds_them(squares):
    samples = squares(np.arange(40))
    dataset = SampleDataset(samples, plain(flip=0, paste=0, shuffle_window=2, loader_cache_mib=1024), seed=0)
    order = SampleOrder(samples.indices, shard_size=4, window=2, seed=0)
    for step in range(16):
        dataset.__getitems__(order.batch(step, 5))
    assert samples.calls == [4] * 10


def test_without_cache_memory_only_the_requested_samples_are_read(squares):
    samples = squares(np.arange(40))
    SampleDataset(samples, plain(flip=0, paste=0, shuffle_window=2, loader_cache_mib=1e-4), seed=0).__getitems__(
        [Pick(0, 7, 1), Pick(0, 2, 1)]
    )
    assert samples.calls == [1, 1]


def test_flips_treat_image_counterfactual_and_mask_alike(squares):
    samples = squares(np.arange(64))
    picks = [Pick(1, index, 63 - index) for index in range(64)]
    still = SampleDataset(samples, plain(flip=0, paste=0, shuffle_window=1, loader_cache_mib=0), seed=4).__getitems__(
        picks
    )
    all_flipped = SampleDataset(
        samples, plain(flip=1, paste=0, shuffle_window=1, loader_cache_mib=0), seed=4
    ).__getitems__(picks)
    some = SampleDataset(
        samples, plain(flip=0.5, paste=0, shuffle_window=1, loader_cache_mib=0), seed=4
    ).__getitems__(picks)
    for before, after in zip(still[:3], all_flipped[:3], strict=True):
        assert torch.equal(before.flip(-1), after)
    flipped = (some.images != still.images).flatten(1).any(1)
    assert 20 < flipped.sum() < 44
    for part, before, after in zip(some[:3], still[:3], all_flipped[:3], strict=True):
        assert torch.equal(part[flipped], after[flipped])
        assert torch.equal(part[~flipped], before[~flipped])


def test_a_pasted_partner_lends_its_objects_and_nothing_else(squares):
    samples = squares(np.arange(40))
    picks = [Pick(1, index, 39 - index) for index in range(40)]
    before, every, some = (
        SampleDataset(samples, plain(flip=0, paste=paste, loader_cache_mib=0), seed=4).__getitems__(picks)
        for paste in (0, 1, 0.5)
    )
    lent = before.masks.flip(0) > 0
    assert torch.equal(every.masks, torch.where(lent, before.masks.flip(0), before.masks))
    assert torch.equal(every.images, torch.where(lent[:, None], before.images.flip(0), before.images))
    assert torch.equal(every.counterfactuals, before.counterfactuals)
    pasted = (some.masks != before.masks).flatten(1).any(1)
    assert 5 < pasted.sum() < 35
    assert torch.equal(some.images[pasted], every.images[pasted])
    assert torch.equal(some.images[~pasted], before.images[~pasted])


def test_a_partner_is_another_sample_of_the_epoch():
    order = SampleOrder(np.arange(0, 60, 2), shard_size=10, window=3, seed=0)
    picks = order.batch(0, 30)
    assert sorted(pick.partner for pick in picks) == list(range(0, 60, 2))
    assert all(pick.partner != pick.sample for pick in picks)


def test_a_samples_flip_does_not_depend_on_its_batch(squares):
    samples = squares(np.arange(16))
    dataset = SampleDataset(samples, plain(flip=0.5, paste=0, shuffle_window=1, loader_cache_mib=0), seed=4)
    together = dataset.__getitems__([Pick(2, index, 0) for index in range(16)])
    alone = [dataset.__getitems__([Pick(2, index, 0)]).masks[0] for index in range(16)]
    assert torch.equal(together.masks, torch.stack(alone))


def test_reading_leaves_the_global_generator_alone(squares):
    samples = squares(np.arange(16))
    order = SampleOrder(samples.indices, shard_size=4, window=2, seed=0)
    dataset = SampleDataset(samples, plain(flip=0.5, paste=0, shuffle_window=2, loader_cache_mib=0), seed=0)
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    batches = list(load_batches(dataset, Steps(order, batch_size=3, start=2, stop=6), workers=0))
    assert torch.equal(torch.rand(2), expected)
    assert [len(batch.images) for batch in batches] == [3, 3, 3, 3]


def test_a_data_set_travels_to_a_loader_process(squares):
    samples = squares(np.arange(16))
    dataset = SampleDataset(samples, plain(flip=0.5, paste=0, shuffle_window=2, loader_cache_mib=1), seed=0)
    again = pickle.loads(pickle.dumps(dataset))
    picks = [Pick(0, 3, 4), Pick(0, 9, 1)]
    assert torch.equal(again.__getitems__(picks).images, dataset.__getitems__(picks).images)


FAULT = """
import numpy as np
from helpers.coloured_squares import Squares
from magicseg.data.dataset import SampleDataset, SampleOrder, Steps
from magicseg.config.training_data import DataSettings
from magicseg.data.loader import load_batches

def train():
    samples = Squares(np.arange(16))
    order = SampleOrder(samples.indices, shard_size=4, window=2, seed=0)
    dataset = SampleDataset(samples, DataSettings(crop=None, photometric=False), seed=0)
    for batch in load_batches(dataset, Steps(order, batch_size=4, start=0, stop=40), workers=2):
        raise RuntimeError("a fault of the device")

if __name__ == "__main__":
    train()
"""


@pytest.mark.slow
def test_a_fault_ends_the_process_and_its_readers(tmp_path, monkeypatch):
    """The traceback of an uncaught error keeps the batches until the interpreter ends; its output ends with the last
    of the readers, which inherit it."""
    program = tmp_path / "fault.py"
    program.write_text(FAULT)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    ended = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == "RuntimeError: a fault of the device"
