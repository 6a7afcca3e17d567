"""The plan: labels depend only on seed and index, and are frozen once drawn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.tiny_runs import change, do, make_run
from magicseg.config.loading import load_config
from magicseg.core.errors import DamageError, PlanMismatch, RunError
from magicseg.core.randomness import sample_seed, sample_words
from magicseg.labels import load_vocabulary
from magicseg.run import Run
from magicseg.store.plan import draw_classes, read_plan, write_plan

VOCABULARY = load_vocabulary("miniature")


def config_of(**plan):
    seed = plan.pop("seed", 0)
    return load_config(preset="painted", overrides=[f"seed={seed}", *(f"plan.{k}={v}" for k, v in plan.items())])


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**40), st.integers(1, 50), st.data())
def test_random_words_are_independent_of_the_requested_range(seed, start, count, data):
    cut = data.draw(st.integers(0, count))
    whole = sample_words(seed, "x", start, start + count)
    parts = [sample_words(seed, "x", start, start + cut), sample_words(seed, "x", start + cut, start + count)]
    assert np.array_equal(whole, np.concatenate(parts))
    assert sample_seed(seed, "x", start) == int(whole[0, 0]) >> 1


def test_random_words_never_change():
    # A change would alter every existing data set.
    assert sample_seed(0, "generate", 0) == 5135791207661061488
    assert sample_seed(7, "mask", 123_456) == 7560453374992067492


@given(st.integers(0, 10_000), st.integers(0, 10_000), st.integers(0, 100))
def test_different_samples_have_different_seeds(first, second, seed):
    assert (first == second) == (sample_seed(seed, "s", first) == sample_seed(seed, "s", second))


@settings(max_examples=50)
@given(
    seed=st.integers(0, 2**62),
    low=st.integers(1, 8),
    more=st.integers(0, 7),
    classes=st.integers(8, 60_000),
    start=st.integers(0, 10**9),
)
def test_a_sample_has_distinct_valid_classes_in_the_allowed_number(seed, low, more, classes, start):
    high = min(8, low + more)
    drawn = draw_classes(config_of(seed=seed, min_labels=low, max_labels=high), classes, start, start + 64)
    for row in drawn:
        ids = [int(id_) for id_ in row if id_]
        assert row[: len(ids)].all(), "no gap before the last label"
        assert low <= len(ids) <= high
        assert len(set(ids)) == len(ids)
        assert max(ids) <= classes


@settings(max_examples=20)
@given(shard_size=st.integers(1, 300), samples=st.integers(1, 500), seed=st.integers(0, 99))
def test_a_samples_labels_depend_only_on_seed_and_index(tmp_path_factory, shard_size, samples, seed):
    folder = tmp_path_factory.mktemp("plan")
    write_plan(folder, config_of(seed=seed, samples=samples, shard_size=shard_size, max_labels=3), VOCABULARY)
    plan = read_plan(folder)
    reference = draw_classes(config_of(seed=seed, max_labels=3), len(VOCABULARY), 0, 500)
    assert np.array_equal(plan.classes, reference[:samples])
    assert [i for shard in range(plan.shards) for i in plan.shard_range(shard)] == list(range(samples))


def test_the_plan_is_independent_of_the_block_size(tmp_path, monkeypatch):
    config = config_of(samples=1000, max_labels=2)
    write_plan(tmp_path / "whole", config, VOCABULARY)
    monkeypatch.setattr("magicseg.store.plan._BLOCK", 77)
    write_plan(tmp_path / "blocks", config, VOCABULARY)
    assert (tmp_path / "whole/classes.npy").read_bytes() == (tmp_path / "blocks/classes.npy").read_bytes()
    assert (tmp_path / "whole/plan.json").read_bytes() == (tmp_path / "blocks/plan.json").read_bytes()


def test_classes_and_their_number_are_about_uniform():
    drawn = draw_classes(config_of(max_labels=3), 10, 0, 30_000)
    counts = (drawn > 0).sum(axis=1)
    assert np.bincount(counts, minlength=4)[1:] / 30_000 == pytest.approx([1 / 3] * 3, abs=0.02)
    shares = np.bincount(drawn[drawn > 0], minlength=11)[1:] / (drawn > 0).sum()
    assert shares == pytest.approx([0.1] * 10, abs=0.01)


def test_another_seed_gives_another_plan():
    first = draw_classes(config_of(seed=1), 10, 0, 100)
    assert not np.array_equal(first, draw_classes(config_of(seed=2), 10, 0, 100))


def test_more_labels_per_sample_than_in_the_vocabulary_is_refused(tmp_path):
    few = tmp_path / "few.txt"
    few.write_text("star\nmoon\n")
    with pytest.raises(RunError) as caught:
        make_run(tmp_path / "run", "plan.max_labels=3", f"labels.vocabulary={few}")
    assert "plan.max_labels=2" in caught.value.hint


@pytest.mark.parametrize(("key", "new"), [("samples", 64), ("shard_size", 32), ("max_labels", 2)])
def test_a_frozen_plan_refuses_other_settings_by_name_until_it_is_reset(finished, key, new, magicseg):
    old = change(finished, f"plan.{key}", new)
    with pytest.raises(PlanMismatch) as caught:
        _ = Run.open(finished.path).plan
    assert f"plan.{key} is {new}, was {old}" in caught.value.message
    hint = caught.value.hint[caught.value.hint.index("magicseg reset") :]
    assert magicseg.typed(f"{hint} --yes").code == 0
    run = Run.open(finished.path)
    assert getattr(run.config.plan, key) == new
    assert run.ledger("mask").commits() == {}
    assert not list(run.store.path.glob("*/*/0*"))
    do(run, "describe")


def test_the_seed_is_frozen_with_the_plan(finished):
    change(finished, "seed", 5)
    with pytest.raises(PlanMismatch, match="seed is 5, was 0"):
        _ = Run.open(finished.path).plan


@pytest.mark.parametrize("name", ["plan.json", "classes.npy"])
@pytest.mark.parametrize("how", ["truncated", "garbage"])
def test_a_damaged_plan_is_reported_as_damage(fresh, name, how):
    file = fresh.path / "plan" / name
    file.write_bytes(file.read_bytes()[:-1] if how == "truncated" else b"\x93\xff garbage")
    with pytest.raises(DamageError) as caught:
        _ = Run.open(fresh.path).plan
    assert caught.value.hint == f"magicseg repair {fresh.path}"


def test_a_run_without_a_plan_is_an_error(fresh):
    (fresh.path / "plan/plan.json").unlink()
    with pytest.raises(RunError, match="no plan"):
        _ = Run.open(fresh.path).plan
