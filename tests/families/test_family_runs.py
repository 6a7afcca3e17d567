"""All three stages with every family of models: the digest is the same despite stops and kills."""

import json
import signal
import time

import numpy as np
import pytest

from helpers.model_runs import FAMILIES, make_model_run
from helpers.tiny_runs import do
from magicseg.labels import IGNORE
from magicseg.run import Run
from magicseg.run.digest import logical_digest
from magicseg.stages.worker import run_shards

pytestmark = pytest.mark.usefixtures("faulty")


def stopped_within(run, stage, batches):
    """Run a stage in this process and stop it after ``batches`` batches."""
    asked = iter([False] * batches + [True] * 99)
    run_shards(run, stage, range(run.plan.shards), report=lambda event: None, should_stop=lambda: next(asked))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_stopped_in_every_stage_has_the_digest_of_an_undisturbed_run(family, checkpoint, tmp_path):
    undisturbed, run = (make_model_run(tmp_path / name, family, checkpoint) for name in ("one", "two"))
    do(undisturbed)
    for stage in ("describe", "generate", "mask"):
        stopped_within(run, stage, 3)
        assert len(run.ledger(stage).commits()) < run.plan.shards
        do(run, stage, shards=[2, 0, 1])
    assert logical_digest(run) == logical_digest(undisturbed)
    masks = run.store.read("mask/mask", 0, 12)
    assert (masks != IGNORE).any()
    entries = [json.loads(text) for text in run.store.read("mask/quality", 0, 12)]
    kept = [entry for entry in entries if entry["status"] == "kept"]
    assert len(kept) >= 6, entries
    assert any(len(np.unique(mask)) > 1 for mask in masks)


@pytest.mark.slow
def test_repeating_killed_commands_gives_the_same_digest(checkpoint, tmp_path, magicseg):
    undisturbed, run = (make_model_run(tmp_path / name, "sd2", checkpoint) for name in ("one", "two"))
    do(undisturbed)
    for stage in ("describe", "generate", "mask"):
        process = magicseg.start(stage, run.path, "--workers", "1", "--shards-per-job", "9")
        while not run.ledger(stage).commits() and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert magicseg(stage, run.path, "--workers", "2" if stage == "generate" else "1").code == 0
    assert logical_digest(Run.open(run.path)) == logical_digest(undisturbed)
