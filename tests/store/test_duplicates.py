"""Near duplicates equal the result of comparing all pairs, and are left out of training."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from magicseg.core.errors import IncompleteError
from magicseg.data.duplicates import near_duplicates
from magicseg.data.kept_samples import KeptSamples
from magicseg.run import Run
from magicseg.run.progress import run_status


def by_comparing_all(hashes, bits):
    kept, found = [], []
    for value in hashes:
        near = any((value ^ other).bit_count() <= bits for other in kept)
        found.append(near)
        if not near:
            kept.append(value)
    return found


@st.composite
def hash_lists(draw):
    """Draw hashes, and others that differ from them in a few bits."""
    base = draw(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=6))
    flips = st.lists(st.integers(0, 63), max_size=9)
    more = draw(st.lists(st.tuples(st.sampled_from(base), flips), max_size=20))
    values = base + [value ^ sum(1 << bit for bit in set(bits)) for value, bits in more]
    return draw(st.permutations(values))


@given(hash_lists(), st.integers(0, 7))
def test_the_band_search_finds_all_near_duplicates(values, bits):
    assert near_duplicates(np.array(values, dtype=np.uint64), bits).tolist() == by_comparing_all(values, bits)


def test_an_empty_list_has_no_duplicates():
    assert near_duplicates(np.zeros(0, dtype=np.uint64), 3).tolist() == []


def with_duplicate_bits(run, bits):
    train = run.config.train.model_copy(update={"duplicate_bits": bits})
    return Run(run.path, run.config.model_copy(update={"train": train}))


def rewrite(run, changes):
    """Change entries of the first shard's quality records."""
    samples = run.plan.shard_range(0)
    texts = run.store.read("generate/quality", samples.start, samples.stop)
    for position, text in changes.items():
        texts[position] = text
    run.store.write_shard(0, samples, {"generate/quality": texts})


def test_training_leaves_near_duplicates_out(finished):
    everything = KeptSamples.of(finished)
    assert everything.near_duplicates == 0
    twin = near_hashes(finished, everything)[2] ^ 0b1011
    rewrite(finished, {5: json.dumps({"status": "kept", "hash": f"{twin:016x}"})})
    hashes = near_hashes(finished, everything)
    for bits, least in ((2, 0), (3, 1)):
        left = KeptSamples.of(with_duplicate_bits(finished, bits))
        expected = by_comparing_all(hashes, bits)
        assert left.near_duplicates == sum(expected) >= least
        kept = [index for index, gone in zip(everything.indices.tolist(), expected, strict=True) if not gone]
        assert left.indices.tolist() == kept
        assert (5 in kept) == (bits == 2)


def near_hashes(run, samples):
    texts = run.store.read("generate/quality", 0, run.plan.samples)
    return [int(json.loads(texts[index])["hash"], 16) for index in samples.indices.tolist()]


def test_images_without_a_hash_are_named(finished):
    rewrite(finished, {3: '{"status": "kept"}'})
    with pytest.raises(IncompleteError, match=r"samples 3 have no hash"):
        KeptSamples.of(with_duplicate_bits(finished, 1))


def test_status_shows_the_number_of_near_duplicates(finished):
    assert run_status(finished)["train"]["near_duplicates"] is None
    (finished.path / "model").mkdir()
    (finished.path / "model" / "model.json").write_text('{"provenance": {"near_duplicates": 5}}')
    assert run_status(finished)["train"]["near_duplicates"] == 5
