"""A run trained with every loss on pairs, through the command line."""

import json
import shutil

import numpy as np
import pytest

from helpers.tiny_runs import change, do, make_run
from magicseg.config.training_data import SourceSettings
from magicseg.data.kept_samples import KeptSamples
from magicseg.data.mixture import Renamed, open_sources
from magicseg.run import Run

CHANGES = {
    "encoder.image_size": 32, "encoder.width": 16, "encoder.heads": 2, "encoder.embed_dim": 16, "decoder_width": 16,
    "decoder_heads": 2, "decoder_layers": 2, "prompt_tokens": 2, "batch_size": 8, "sampled_classes": 4, "steps": 6,
    "warmup_steps": 2, "checkpoint_every": 3, "keep_checkpoints": 5, "log_every": 1, "loader_workers": 0,
    "silence_weight": 20.0, "aligned_pair_weight": 1.0, "text_direction_weight": 1.0, "hard_negatives": 2,
}  # fmt: skip


def rows(run):
    found = [json.loads(line) for line in (run.path / "train.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "samples_per_second"} for row in found]


def digest(run):
    return json.loads((run.path / "model" / "model.json").read_text())["weights_digest"]


@pytest.mark.slow
def test_a_training_with_every_loss_on_pairs_resumes_to_the_same_bits(magicseg, finished_run, copy_of):
    run = copy_of(finished_run)
    for name, value in CHANGES.items():
        change(run, f"train.{name}", value)
    done = magicseg("train", run.path)
    assert done.code == 0, done.err
    whole, weights = rows(run), digest(run)
    assert [row["step"] for row in whole] == list(range(1, 7))
    for row in whole:
        assert all(row[name] > 0 for name in ("silence", "aligned_pair", "text_direction"))
    (run.path / "checkpoints" / "step-00000006.safetensors").unlink()
    shutil.rmtree(run.path / "model")
    again = magicseg("train", run.path)
    assert again.code == 0, again.err
    assert rows(run) == whole
    assert digest(run) == weights
    (run.path / "checkpoints" / "step-00000006.safetensors").unlink()
    change(run, "train.hard_negatives", 1)
    refused = magicseg("train", run.path)
    assert refused.code != 0
    assert "hard_negatives" in refused.err


@pytest.mark.slow
@pytest.mark.usefixtures("faulty")
def test_a_source_is_validated_if_its_run_checked_its_pairs(finished_run, tmp_path):
    checked = make_run(
        tmp_path / "checked",
        "plan.samples=16",
        "generate.backend=patches",
        "generate.validity={detector: {backend: patches}}",
        "mask.backend=detect-segment",
        "mask.options={detector: {backend: patches}, segmenter: {backend: patches}}",
    )
    do(checked)
    assert open_sources(checked).samples.validated.tolist() == [True]
    assert open_sources(finished_run).samples.validated.tolist() == [False]
    sources = tuple(SourceSettings(run=str(run.path)) for run in (checked, finished_run, checked))
    train = finished_run.config.train.model_copy(update={"sources": sources})
    mixed = Run(finished_run.path, finished_run.config.model_copy(update={"train": train}))
    assert open_sources(mixed).samples.validated.tolist() == [True, False, True]
    assert Renamed(KeptSamples.of(checked), np.arange(2**16, dtype=np.uint16)).validated
