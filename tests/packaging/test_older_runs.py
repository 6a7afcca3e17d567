"""A run and a model that version 0.1.0 made are opened, verified, resumed and used by this version."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from magicseg import load_model
from magicseg.run import STAGES, Run
from magicseg.run.digest import logical_digest
from magicseg.run.verify import inspect

KEPT = Path(__file__).parent / "kept" / "run-0.1.0.tar.xz"
DIGEST = "d5620c67e028f1ec1b12f9d8d343bbdbe1cb518464a7ff580bcdeeae443fc863"


@pytest.fixture
def older(tmp_path):
    """The kept run: four painted samples, a model after four steps, the checkpoint after two."""
    shutil.unpack_archive(KEPT, tmp_path)
    return tmp_path / "run-0.1.0"


def test_the_data_set_opens_under_the_same_fingerprints_with_the_same_digest(older):
    run = Run.open(older)
    assert {stage: sorted(run.checked_commits(stage)) for stage in STAGES} == {stage: [0, 1] for stage in STAGES}
    assert logical_digest(run) == DIGEST
    found = inspect(run)
    assert (found.damage, found.records, found.leftovers) == ([], [], [])


def part_of(old, new):
    """The values of ``new`` under the keys that ``old`` has, at every depth."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    return {key: part_of(value, new[key]) for key, value in old.items() if key in new}


@pytest.mark.slow
def test_commands_regenerate_nothing_and_score_the_same(older, magicseg):
    """Evaluation scores again, because the results name the version that computed them."""
    files = [path for name in ("dataset.zarr", "ledger") for path in (older / name).rglob("*") if path.is_file()]
    files.append(older / "model" / "model.safetensors")
    times = [path.stat().st_mtime_ns for path in files]
    results = older / "results" / "miniature.json"
    scores = {key: value for key, value in json.loads(results.read_text()).items() if key != "provenance"}
    for stage in (*STAGES, "train", "evaluate"):
        done = magicseg(stage, older)
        assert done.code == 0, done.err
    assert [path.stat().st_mtime_ns for path in files] == times
    again = json.loads(results.read_text())
    assert part_of(scores, again) == scores
    assert magicseg("report", older).code == 0


def decided(name, value):
    """Return the values that the data decide: not the biases of keys.

    They have no effect on attention, so their gradients are rounding errors. AdamW scales these up to whole steps,
    and they differ between processors.
    """
    if not name.endswith("qkv.bias"):
        return value
    queries, _, values = np.split(value, 3)
    return np.concatenate([queries, values])


@pytest.mark.slow
def test_training_resumes_from_the_checkpoint(older, magicseg):
    before = load_file(older / "model" / "model.safetensors")
    loss = json.loads((older / "train.jsonl").read_text())["loss"]
    shutil.rmtree(older / "model")
    done = magicseg("train", older)
    assert done.code == 0, done.err
    after = load_file(older / "model" / "model.safetensors")
    assert after.keys() == before.keys()
    for name, value in before.items():
        np.testing.assert_allclose(decided(name, after[name]), decided(name, value), atol=1e-5, err_msg=name)
    row = json.loads((older / "train.jsonl").read_text())
    assert (row["step"], row["loss"]) == (4, pytest.approx(loss, abs=1e-5))


def test_the_model_segments(older):
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    found = load_model(older / "model").segment(image, ["car", "house"])
    assert found.labels.shape == (40, 50)
