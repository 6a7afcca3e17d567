"""What the validity check finds is kept with the pair, and the mask stage does not look again."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from helpers.tiny_runs import do, make_run
from magicseg.backends import Instances
from magicseg.exchange.hdf5 import export_hdf5, import_hdf5
from magicseg.run.digest import logical_digest
from magicseg.run.verify import inspect
from magicseg.vision.recorded_instances import kept_instances, read_instances

pytestmark = pytest.mark.usefixtures("faulty")

FLOATS = st.floats(0, 10_000, width=32)


def instances(boxes, labels, scores, best):
    return Instances(
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        labels=np.array(labels, np.int64),
        scores=np.array(scores, np.float32),
        best=np.array(best, np.float32),
    )


NOTHING = instances([], [], [], [0.125])


@given(arrays(np.float32, (7, 4), elements=FLOATS), arrays(np.float32, 7, elements=st.floats(0, 1, width=32)))
def test_numbers_are_kept_to_the_bit(boxes, scores):
    found = instances(boxes, [0, 1, 2, 0, 1, 2, 0], scores, scores[:3])
    remaining = instances([], [], [], scores[3:6])
    text = json.dumps(kept_instances(found, remaining))
    pair = read_instances(json.loads(text), 3)
    for name in ("boxes", "labels", "scores", "best"):
        for one, other in ((pair.image, found), (pair.counterfactual, remaining)):
            assert getattr(one, name).dtype == getattr(other, name).dtype
            assert getattr(one, name).tobytes() == getattr(other, name).tobytes()


@pytest.mark.parametrize(
    "change",
    [
        {"found_boxes": None},
        {"found_boxes": [1, 2, 3]},
        {"found_boxes": ["a", 2, 3, 4]},
        {"found_boxes": [1, 2, 3, float("nan")]},
        {"found_labels": [1]},
        {"found_labels": [0.5]},
        {"found_scores": [0.5, 0.5]},
        {"label_scores": [[0.5]]},
        {"counterfactual_label_scores": []},
    ],
)
def test_a_record_without_sound_instances_is_as_one_that_has_none(change):
    kept = kept_instances(instances([1, 2, 3, 4], [0], [0.5], [0.5]), NOTHING)
    assert read_instances(kept, 1) is not None
    assert read_instances({**kept, **change}, 1) is None
    assert read_instances({}, 1) is None


def test_more_instances_than_a_record_holds_are_not_kept():
    many = 400
    assert kept_instances(instances([[1, 2, 3, 4]] * many, [0] * many, [0.5] * many, [0.5]), NOTHING) == {}


def run_of(path, *more, codec="lossless", mask="{detector: {backend: blobs}, segmenter: {backend: blobs}}"):
    return make_run(
        path,
        "plan.samples=24",
        "plan.shard_size=12",
        "generate.backend=patches",
        "generate.size=48",
        "generate.options={forget: 1, leave: 1}",
        "generate.validity={detector: {backend: blobs}, retries: 20}",
        "mask.backend=detect-segment",
        f"mask.options={mask}",
        f"store.image_codec={codec}",
        *more,
    )


@pytest.fixture
def looked(monkeypatch):
    """The number of images that the detector has seen, as a list with one entry per call."""
    import patch_backends

    sizes = []
    detect = patch_backends.BlobDetector.detect

    def counted(self, requests):
        sizes.append(len(requests))
        return detect(self, requests)

    monkeypatch.setattr(patch_backends.BlobDetector, "detect", counted)
    return sizes


def qualities(run, stage):
    return [json.loads(text) for text in run.store.read(f"{stage}/quality", 0, run.plan.samples)]


@pytest.mark.parametrize("codec", ["lossless", "jpeg"])
def test_masks_are_equal_with_and_without_the_kept_instances(tmp_path, looked, monkeypatch, codec):
    kept = run_of(tmp_path / "kept", codec=codec)
    do(kept, "describe", "generate")
    attempts = sum(entry["validity_attempts"] for entry in qualities(kept, "generate"))
    assert sum(looked) == 2 * attempts
    do(kept, "mask")
    assert sum(looked) == 2 * attempts, "the mask stage looked again"
    assert all(entry["status"] == "kept" for entry in qualities(kept, "mask"))

    monkeypatch.setattr("magicseg.stages.generate.validity.kept_instances", lambda *_: {})
    plain = run_of(tmp_path / "plain", codec=codec)
    do(plain)
    assert "found_boxes" not in qualities(plain, "generate")[0]
    assert sum(looked) == 2 * (2 * attempts + 24), "without them it looks at both images of every pair"
    assert logical_digest(plain) == logical_digest(kept)
    assert qualities(plain, "mask") == qualities(kept, "mask")


def test_with_other_thresholds_the_mask_stage_looks_itself(tmp_path, looked):
    run = run_of(tmp_path / "run", "mask.options.box_threshold=0.31")
    do(run, "describe", "generate")
    before = sum(looked)
    do(run, "mask")
    assert sum(looked) == before + 2 * 24


def test_a_detector_that_gives_masks_needs_no_segmenter(tmp_path, looked):
    two_steps, one_step = (
        run_of(tmp_path / "two"),
        run_of(
            tmp_path / "one",
            "generate.validity.detector.backend=blobs-with-masks",
            mask="{detector: {backend: blobs-with-masks}}",
        ),
    )
    do(two_steps)
    do(one_step, "describe", "generate")
    before = sum(looked)
    do(one_step, "mask")
    assert sum(looked) == before + 24, "the images have to be seen for their masks, the counterfactuals do not"
    assert logical_digest(one_step) == logical_digest(two_steps)


def test_an_imported_data_set_has_the_kept_instances(tmp_path, looked):
    run = run_of(tmp_path / "run")
    do(run)
    export_hdf5(run, tmp_path / "all.h5")
    again = import_hdf5(tmp_path / "all.h5", tmp_path / "again")
    assert inspect(again).sound
    before = sum(looked)
    again.ledger("mask").take_back(range(again.plan.shards))
    do(again, "mask")
    assert sum(looked) == before
    assert logical_digest(again) == logical_digest(run)
