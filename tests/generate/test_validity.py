"""Pairs that a detector finds to be none are made again, with other seeds, up to a limit."""

import json

import pytest

from helpers.tiny_runs import change, do, make_run
from magicseg.core.errors import PlanMismatch
from magicseg.run import Run
from magicseg.run.digest import logical_digest
from magicseg.stages.worker import run_shards

pytestmark = pytest.mark.usefixtures("faulty")

WORLD = (
    "plan.samples=48",
    "plan.max_labels=2",
    "generate.backend=patches",
    "mask.backend=detect-segment",
    "mask.options={detector: {backend: patches}, segmenter: {backend: patches}}",
)


def run_of(path, faults, retries=None, *more):
    validity = [f"generate.validity={{detector: {{backend: patches}}, retries: {retries}, batch_size: 5}}"]
    return make_run(path, *WORLD, f"generate.options={{{faults}}}", *(validity if retries is not None else []), *more)


def qualities(run, stage="generate"):
    return [json.loads(text) for text in run.store.read(f"{stage}/quality", 0, run.plan.samples)]


def test_invalid_pairs_are_made_again_until_they_are_valid(tmp_path):
    run = run_of(tmp_path / "run", "forget: 1, leave: 1", 20)
    do(run)
    entries = qualities(run)
    assert all(entry["status"] == "kept" for entry in entries)
    attempts = [entry["validity_attempts"] for entry in entries]
    assert 1 < sum(attempts) / len(attempts) < 3  # 7 of 16 seeds go wrong
    assert all(entry["score"] > 0.8 and entry["counterfactual_score"] < 0.2 for entry in entries)
    assert all(entry["status"] == "kept" for entry in qualities(run, "mask"))


def test_pairs_that_stay_invalid_are_dropped_with_every_attempt_told(tmp_path):
    run = run_of(tmp_path / "run", "forget: 2, leave: 2", 1)
    do(run)
    dropped = [entry for entry in qualities(run) if entry["status"] == "dropped"]
    assert {entry["reason"] for entry in dropped} == {"object-missing", "object-remains"}
    assert all(entry["detail"].startswith("2 attempts: object-") for entry in dropped)
    assert all(entry["detail"].count("best score") + entry["detail"].count("score 0.9") == 2 for entry in dropped)
    assert 15 < len(dropped) < 40  # 9 of 16 expected
    total = sum(sum(record.dropped.values()) for record in run.ledger("generate").commits().values())
    assert total == len(dropped)


def test_a_pair_that_was_valid_at_once_is_what_it_is_without_the_check(tmp_path):
    checked, unchecked = run_of(tmp_path / "one", "forget: 1", 20), run_of(tmp_path / "two", "forget: 1")
    do(checked)
    do(unchecked)
    at_once = [place for place, entry in enumerate(qualities(checked)) if entry["validity_attempts"] == 1]
    assert 20 < len(at_once) < 48
    for place in at_once[:5]:
        for name in ("generate/image", "generate/counterfactual"):
            one, two = (run.store.read(name, place, place + 1) for run in (checked, unchecked))
            assert (one == two).all()


def test_invalid_pairs_of_a_shard_are_regenerated_in_full_batches(tmp_path, monkeypatch):
    import patch_backends

    sizes = []
    whole = patch_backends.Patches.generate

    def generate(self, requests):
        sizes.append(len(requests))
        return whole(self, requests)

    monkeypatch.setattr(patch_backends.Patches, "generate", generate)
    run = run_of(tmp_path / "run", "forget: 1, leave: 1", 20, "plan.shard_size=48", "generate.batch_size=8")
    do(run, "describe", "generate")
    attempts = [entry["validity_attempts"] for entry in qualities(run)]
    assert sum(sizes) == sum(attempts)
    regenerated = sum(attempts) - 48
    assert regenerated > 16
    # 6 batches of first attempts, then full ones; a pair that fails last may need a few small ones.
    assert sizes[: 6 + regenerated // 8 - 1] == [8] * (6 + regenerated // 8 - 1)


def test_a_stop_is_noticed_before_pairs_are_regenerated(tmp_path):
    run = run_of(tmp_path / "run", "forget: 4", 20, "plan.shard_size=16", "generate.batch_size=16")
    do(run, "describe")
    asked = []

    def should_stop():
        asked.append(None)
        return len(asked) > 3  # before the shard, before its first batch, before the second

    events = []
    run_shards(run, "generate", [0], report=events.append, should_stop=should_stop)
    assert [event.outcome for event in events] == ["started", "abandoned"]
    assert len(asked) == 4


@pytest.mark.slow
def test_the_same_bytes_whatever_the_batches_and_the_order(tmp_path):
    one, two = run_of(tmp_path / "one", "forget: 2", 3), run_of(tmp_path / "two", "forget: 2", 3)
    do(one)
    for stage in ("describe", "generate", "mask"):
        do(two, stage, shards=[2, 0, 1])
    assert logical_digest(one) == logical_digest(two)
    other = run_of(tmp_path / "three", "forget: 2", 3, "generate.batch_size=7")
    do(other)
    assert logical_digest(other) == logical_digest(one)


def test_the_check_is_part_of_the_fingerprint(tmp_path):
    run = run_of(tmp_path / "run", "forget: 1", 2)
    do(run)
    change(run, "generate.validity.retries", 3)
    with pytest.raises(PlanMismatch, match=r"generate\.validity\.retries is 3, was 2"):
        Run.open(run.path).checked_commits("generate")


@pytest.mark.parametrize(
    ("threshold", "reason"), [("min_sharpness: 1.0e+9", "blurred-image"), ("min_contrast: 128", "flat-image")]
)
def test_images_below_the_thresholds_are_dropped(tmp_path, threshold, reason):
    run = run_of(tmp_path / "run", "", None, f"generate.quality={{{threshold}}}", "plan.samples=16")
    do(run, "describe", "generate")
    assert run.ledger("generate").commits()[0].dropped == {reason: 16}


def test_every_pair_is_measured(tmp_path):
    run = run_of(tmp_path / "run", "")
    do(run)
    entries = qualities(run)
    assert all(entry["sharpness"] > 0 and entry["contrast"] > 0 and len(entry["hash"]) == 16 for entry in entries)
    assert len({entry["hash"] for entry in entries}) > 40


def test_an_unknown_detector_is_refused_when_the_run_is_made(tmp_path, magicseg):
    done = magicseg("init", "run", "--preset", "painted", "--set", "generate.validity={detector: {backend: eye}}")
    assert done.code == 2
    assert "no back end 'eye' among the detectors" in done.err
