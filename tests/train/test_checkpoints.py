"""Checkpoints: which are kept, what is in them, old ones, full disks, two trainings at once."""

import json
import resource
import socket

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save

from helpers.coloured_squares import SETTINGS, VOCABULARY, Squares
from magicseg.core.errors import PlanMismatch, RunError, StoreError
from magicseg.model.saved_model import load_segmenter
from magicseg.train.loop import train


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def go(out, *, stop_after=None, evaluate=None, progress=None, **changes):
    """Train on 24 squares, at most ``stop_after`` steps and one."""
    asked = []
    return train(
        Squares(np.arange(24)),
        VOCABULARY,
        SETTINGS.model_copy(update=changes),
        out,
        seed=0,
        data_fingerprint="data",
        stop=lambda: asked.append(0) or len(asked) == stop_after,
        evaluate=evaluate,
        progress=progress,
    )


def kept(out):
    return [int(path.stem[5:]) for path in sorted((out / "checkpoints").iterdir())]


def rows(out):
    lines = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "samples_per_second"} for row in lines]


def path_of(out, step):
    return out / "checkpoints" / f"step-{step:08d}.safetensors"


def read(path):
    with safe_open(path, framework="pt") as file:
        scalars = json.loads(file.metadata()["magicseg"])
        return scalars, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def test_newest_checkpoints_and_milestones_are_kept(tmp_path):
    go(tmp_path / "one", checkpoint_every=1, keep_checkpoints=1)
    go(tmp_path / "many", checkpoint_every=1, keep_checkpoints=2, keep_every=3)
    assert kept(tmp_path / "one") == [8]
    assert kept(tmp_path / "many") == [3, 6, 7, 8]


def test_the_best_by_evaluation_is_kept_whatever_comes_after(tmp_path):
    scores = {2: 0.3, 4: 0.9, 6: float("nan"), 8: 0.5}
    asked = []

    def evaluate(model, step):
        assert not model.training
        asked.append(step)
        return {"miou": scores[step], "accuracy": 1 - scores[step]}

    go(tmp_path, checkpoint_every=3, keep_checkpoints=1, evaluate_every=2, evaluate=evaluate, stop_after=4)
    go(tmp_path, checkpoint_every=3, keep_checkpoints=1, evaluate_every=2, evaluate=evaluate)
    assert asked == [2, 4, 6, 8]
    assert kept(tmp_path) == [4, 8]
    assert read(path_of(tmp_path, 8))[0]["best"] == [4, 0.9]
    logged = {row["step"]: row["evaluation"] for row in rows(tmp_path) if "evaluation" in row}
    assert logged.keys() == scores.keys()
    assert logged[4] == pytest.approx({"miou": 0.9, "accuracy": 0.1})


def test_evaluation_does_not_change_the_training(tmp_path):
    def meddle(model, step):
        torch.rand(7)
        for value in model.parameters():
            value.zero_()
        model.train()
        return {"miou": step}

    plain = go(tmp_path / "plain")
    evaluated = go(tmp_path / "evaluated", evaluate_every=1, evaluate=meddle)
    assert evaluated.weights_digest == plain.weights_digest
    regular = [{k: v for k, v in row.items() if k != "evaluation"} for row in rows(tmp_path / "evaluated")]
    assert [row for row in regular if row["step"] in (3, 6, 8)] == rows(tmp_path / "plain")


def test_the_moving_average_is_evaluated_and_saved(tmp_path):
    seen = []

    def evaluate(model, step):
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return {"miou": 1.0}

    result = go(tmp_path, ema_decay=0.5, evaluate_every=8, evaluate=evaluate)
    _, tensors = read(path_of(tmp_path, 8))
    model = load_segmenter(result.model_dir)
    for name, value in model.named_parameters():
        assert torch.equal(value, tensors[f"ema/{name}"])
        assert torch.equal(value, seen[0][name])
        assert not torch.equal(value, tensors[f"model/{name}"]) or not value.any()
    for name, value in model.named_buffers():
        assert torch.equal(value, tensors[f"model/{name}"])


@pytest.mark.parametrize(
    "changes",
    [
        {"ema_decay": 0.9},
        {"precision": "fp16"},
        {"precision": "bf16", "accumulate": 5, "upsampling": "guided"},
    ],
)
def test_all_that_changes_is_resumed_exactly(changes, tmp_path):
    whole = go(tmp_path / "whole", **changes)
    go(tmp_path / "parts", **changes, stop_after=2)
    assert kept(tmp_path / "parts") == [3]
    parts = go(tmp_path / "parts", **changes)
    assert parts.weights_digest == whole.weights_digest
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")


def test_frozen_weights_are_not_stored_and_are_there_after_a_resume(tmp_path):
    frozen = {"encoder": SETTINGS.encoder.model_copy(update={"freeze": True})}
    whole = go(tmp_path / "whole", **frozen)
    go(tmp_path / "parts", **frozen, stop_after=2)
    _, tensors = read(path_of(tmp_path / "parts", 3))
    assert not [name for name in tensors if "encoder" in name]
    assert [name for name in tensors if name.startswith("model/decoder")]
    assert go(tmp_path / "parts", **frozen).weights_digest == whole.weights_digest


def as_format_1(path):
    """The file as the first version of this package would have written it."""
    scalars, tensors = read(path)
    later = set(SETTINGS.model_dump()) - {
        "encoder", "prompt_tokens", "prompt_dropout", "drop_path", "decoder_layers", "decoder_width", "decoder_heads",
        "class_prompt", "flip", "paste", "duplicate_bits", "shuffle_window", "steps", "batch_size", "learning_rate",
        "new_layer_lr_multiplier", "weight_decay", "warmup_steps", "poly_power", "min_learning_rate", "gradient_clip",
        "sampled_classes", "focal_weight", "focal_alpha", "focal_gamma", "dice_weight", "counterfactual_weight",
        "cpu_threads",
    }  # fmt: skip
    scalars["identity"]["train"] = {k: v for k, v in scalars["identity"]["train"].items() if k not in later}
    scalars = {"format": 1, **{key: scalars[key] for key in ("step", "identity", "sums")}}
    path.write_bytes(save(tensors, metadata={"magicseg": json.dumps(scalars)}))


def test_a_checkpoint_of_the_first_format_goes_on(tmp_path):
    whole = go(tmp_path / "whole")
    go(tmp_path / "old", stop_after=3)
    as_format_1(path_of(tmp_path / "old", 4))
    assert go(tmp_path / "old").weights_digest == whole.weights_digest


def test_a_setting_that_an_old_checkpoint_does_not_know_must_be_as_it_was(tmp_path):
    go(tmp_path, stop_after=3)
    as_format_1(path_of(tmp_path, 4))
    with pytest.raises(PlanMismatch, match=r"train\.deep_supervision_weight was 0\.0 and is now 0\.4"):
        go(tmp_path, deep_supervision_weight=0.4)


@pytest.mark.parametrize("change", ["missing", "too much"])
def test_a_checkpoint_that_does_not_fit_the_model_is_refused(change, tmp_path):
    go(tmp_path, stop_after=3)
    path = path_of(tmp_path, 4)
    scalars, tensors = read(path)
    if change == "missing":
        del tensors["model/decoder.query.weight"]
    else:
        tensors["model/surprise"] = torch.zeros(1)
    path.write_bytes(save(tensors, metadata={"magicseg": json.dumps(scalars)}))
    with pytest.raises(StoreError, match="does not fit the model"):
        go(tmp_path)


@pytest.mark.parametrize("lost", ["all moments", "a moment", "a moment's shape", "an average"])
def test_a_checkpoint_without_moments_or_averages_is_refused(lost, tmp_path):
    averaged = {"ema_decay": 0.9}
    go(tmp_path, stop_after=3, **averaged)
    path = path_of(tmp_path, 4)
    scalars, tensors = read(path)
    if lost == "all moments":
        tensors = {name: value for name, value in tensors.items() if not name.startswith("optimizer/")}
    elif lost == "a moment":
        del tensors["optimizer/decoder.query.weight/exp_avg_sq"]
    elif lost == "an average":
        del tensors["ema/decoder.query.weight"]
    else:
        tensors["optimizer/decoder.query.weight/exp_avg"] = torch.zeros(3)
    path.write_bytes(save(tensors, metadata={"magicseg": json.dumps(scalars)}))
    with pytest.raises(StoreError, match=r"it lacks|does not fit") as caught:
        go(tmp_path, **averaged)
    assert "magicseg reset train" in caught.value.hint


@pytest.mark.parametrize(
    "scalars",
    ["[", '{"format": 2, "step": "8"}', '{"format": 2, "step": -1, "identity": {}, "sums": {}}', "[" * 200_000],
)
def test_a_checkpoint_whose_scalars_cannot_be_used_is_passed_over(scalars, tmp_path):
    whole = go(tmp_path / "whole")
    go(tmp_path / "parts", checkpoint_every=2, keep_checkpoints=9, stop_after=3)
    path = path_of(tmp_path / "parts", 4)
    path.write_bytes(save(read(path)[1], metadata={"magicseg": scalars}))
    assert go(tmp_path / "parts", checkpoint_every=2).weights_digest == whole.weights_digest


def test_a_full_disk_leaves_the_older_checkpoints(tmp_path):
    """No file may grow beyond a limit, which the system reports as it does a full disk: in mid-write."""
    whole = go(tmp_path / "whole", checkpoint_every=3)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(state):
        if state.step == 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))

    try:
        with pytest.raises(StoreError, match="cannot be written") as failure:
            go(tmp_path / "full", checkpoint_every=3, progress=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "free some space" in failure.value.hint
    assert kept(tmp_path / "full") == [3]
    assert go(tmp_path / "full", checkpoint_every=3).weights_digest == whole.weights_digest


def test_temporary_files_of_a_killed_write_are_removed(tmp_path):
    go(tmp_path, stop_after=3)
    left = tmp_path / "checkpoints" / "step-00000006.safetensors.12.ab.partial"
    left.write_bytes(b"half")
    go(tmp_path)
    assert not left.exists()


def test_a_second_training_in_the_same_folder_is_refused_by_name(tmp_path):
    refusals = []

    def second(state):
        if state.step == 2:
            with pytest.raises(RunError, match="is already training here") as refusal:
                go(tmp_path)
            refusals.append(str(refusal.value))

    go(tmp_path, progress=second)
    assert len(refusals) == 1
    assert f"on {socket.gethostname()}" in refusals[0]
    assert kept(tmp_path) == [8], "the claim is given back"
