"""Stages of a run on GPUs: the samples that the CPU keeps, and workers on all GPUs."""

import os

import numpy as np
import pytest

from helpers.gpus import DEVICE
from helpers.model_runs import make_model_run
from helpers.tiny_runs import do
from magicseg.core.gpus import visible_gpus
from magicseg.run import STAGES
from magicseg.stages.pool import run_stage

ON_GPU = (
    f"generate.options.device={DEVICE}",
    f"mask.options.detector.options.device={DEVICE}",
    f"mask.options.segmenter.options.device={DEVICE}",
    "generate.options.min_contrast=0",
)


@pytest.fixture
def run(checkpoint, tmp_path):
    return make_model_run(tmp_path / "run", "flux", checkpoint, *ON_GPU)


def kept(run, stage):
    return {shard: (record.kept, record.dropped) for shard, record in run.ledger(stage).commits().items()}


def test_a_run_keeps_the_samples_that_it_keeps_on_the_cpu(run, checkpoint, tmp_path):
    on_cpu = make_model_run(tmp_path / "cpu", "flux", checkpoint, "generate.options.min_contrast=0")
    for each in (run, on_cpu):
        do(each)
    assert len(kept(run, "mask")) == run.plan.shards
    assert [kept(run, stage) for stage in STAGES] == [kept(on_cpu, stage) for stage in STAGES]
    images, expected = (each.store.read_images("generate/image", 0, run.plan.samples) for each in (run, on_cpu))
    assert np.abs(np.stack(images).astype(int) - np.stack(expected)).mean() < 2
    assert all(record.versions["gpu"] for record in run.ledger("generate").commits().values())
    assert all(record.peak_gpu_memory > 0 for record in run.ledger("mask").commits().values())


def test_workers_on_all_visible_gpus_do_all_shards(run):
    gpus = visible_gpus(os.environ).gpus
    run_stage(run, "describe")
    outcome = run_stage(run, "generate", workers=max(len(gpus), 1), gpus=gpus)
    assert not outcome.missing, outcome.failures
    records = run.ledger("generate").commits().values()
    assert all(record.peak_gpu_memory > 0 for record in records)
