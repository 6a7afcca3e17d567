"""The digest: equal for equal content, regardless of sharding, order and layout."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.tiny_runs import do, make_run
from magicseg.core.errors import IncompleteError
from magicseg.run import STAGES
from magicseg.run.digest import logical_digest


@pytest.mark.slow
@settings(max_examples=6)
@given(shard_size=st.integers(1, 120))
def test_the_digest_does_not_depend_on_shard_size(tmp_path_factory, expected_digest, shard_size):
    if shard_size < 8:
        shard_size *= 8  # tiny shards are slow but give the same result
    run = make_run(tmp_path_factory.mktemp("sizes") / "run", f"plan.shard_size={shard_size}")
    do(run)
    assert logical_digest(run) == expected_digest


@pytest.mark.parametrize("seed", [1, 2])
def test_the_digest_does_not_depend_on_the_order_of_shards(tmp_path, expected_digest, seed):
    run = make_run(tmp_path / "run")
    rng = random.Random(seed)
    for stage in STAGES:
        order = rng.sample(range(6), 6)
        for cut in (order[:1], order[1:4], order[4:]):
            do(run, stage, shards=cut)
    assert logical_digest(run) == expected_digest


def test_the_digest_of_jpeg_images_is_reproducible_too(tmp_path, jpeg_run, expected_digest):
    run = make_run(tmp_path / "run", "store.image_codec=jpeg", "plan.shard_size=7")
    do(run)
    assert logical_digest(run) == logical_digest(jpeg_run) != expected_digest


@pytest.mark.parametrize(
    "override", ["seed=1", "plan.samples=95", "mask.options.threshold=90", "generate.size=40", "plan.max_labels=2"]
)
def test_other_content_has_another_digest(tmp_path, expected_digest, override):
    run = make_run(tmp_path / "run", override)
    do(run)
    assert logical_digest(run) != expected_digest


def test_the_first_samples_of_a_larger_set_are_the_smaller_set(tmp_path, finished_run):
    larger = make_run(tmp_path / "run", "plan.samples=130", "plan.shard_size=50")
    do(larger)
    for name in ("describe/captions", "generate/image", "generate/counterfactual", "mask/mask"):
        assert (larger.store.read(name, 0, 96) == finished_run.store.read(name, 0, 96)).all()


def test_an_unfinished_data_set_has_no_digest(fresh):
    do(fresh, "describe")
    do(fresh, "generate", shards=[0, 1, 2, 5])
    with pytest.raises(IncompleteError, match="2 shards of generate are not done: 3-4") as caught:
        logical_digest(fresh)
    assert caught.value.hint == f"magicseg run {fresh.path}"
