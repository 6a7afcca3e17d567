"""The loop: learning, exact resume, refusals, what a kill leaves behind."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from magicseg.core.errors import ConfigError, IncompleteError, MagicsegError, PlanMismatch, StoreError
from magicseg.model.saved_model import load_segmenter, weights_digest
from magicseg.train.loop import train


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def go(squares, vocabulary, settings):
    """Train on 20 squares in ``out``, up to step ``stop_at``; ``losses`` collects each step's."""

    def call(out, *, stop_at=None, losses=None, data="data", seed=0, samples=None, evaluate=None, **changes):
        asked = [int(path.stem[5:]) for path in (out / "checkpoints").glob("step-*.safetensors")][-1:] or [0]

        def stop():
            """Says yes in the step before the last."""
            asked.append(max(asked) + 1)
            return stop_at is not None and asked[-1] >= stop_at - 1

        def progress(state):
            if losses is not None:
                losses.append((state.step, dict(state.losses), state.learning_rate))

        return train(
            samples or squares(np.delete(np.arange(24), [2, 9, 10, 23])),
            vocabulary,
            settings.model_copy(update=changes),
            out,
            seed=seed,
            data_fingerprint=data,
            progress=progress,
            stop=stop,
            evaluate=evaluate,
        )

    return call


def checkpoints(out):
    return sorted(path.name for path in (out / "checkpoints").iterdir())


def rows(out):
    return [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]


def without_speed(out):
    return [{key: value for key, value in row.items() if key != "samples_per_second"} for row in rows(out)]


def test_stopped_and_resumed_is_bitwise_the_same_as_never_stopped(go, tmp_path):
    whole, parts = [], []
    never = go(tmp_path / "never", losses=whole)
    first = go(tmp_path / "stopped", losses=parts, stop_at=2)
    second = go(tmp_path / "stopped", losses=parts, stop_at=5)
    last = go(tmp_path / "stopped", losses=parts)
    assert [first.status, second.status, last.status] == ["interrupted", "interrupted", "finished"]
    assert [first.step, second.step, last.step] == [2, 5, 8]
    assert parts == whole
    assert last.weights_digest == never.weights_digest is not None
    assert without_speed(tmp_path / "stopped") == without_speed(tmp_path / "never")


def test_a_killed_run_repeats_the_steps_since_its_checkpoint(go, tmp_path):
    class Killed(BaseException):
        pass

    whole, parts = [], []

    class KillingList(list):
        def append(self, item):
            super().append(item)
            if item[0] == 7:
                raise Killed

    go(tmp_path / "whole", losses=whole)
    killed = KillingList()
    with pytest.raises(Killed):
        go(tmp_path / "killed", losses=killed, checkpoint_every=4)
    go(tmp_path / "killed", losses=parts, checkpoint_every=4)
    assert list(killed) == whole[:7]
    assert parts == whole[4:]
    assert without_speed(tmp_path / "killed") == without_speed(tmp_path / "whole")


def test_a_finished_training_changes_nothing_when_called_again(go, tmp_path):
    before = go(tmp_path)
    stamp = (tmp_path / "model" / "model.json").stat().st_mtime_ns
    losses = []
    again = go(tmp_path, losses=losses)
    assert losses == []
    assert again.status == "finished"
    assert again.weights_digest == before.weights_digest
    assert (tmp_path / "model" / "model.json").stat().st_mtime_ns == stamp


def test_the_saved_model_is_the_last_checkpoints(go, tmp_path):
    result = go(tmp_path)
    model = load_segmenter(result.model_dir)
    assert weights_digest(model) == result.weights_digest
    tensors = load_file(tmp_path / "checkpoints" / "step-00000008.safetensors")
    for name, value in model.state_dict().items():
        assert torch.equal(tensors[f"model/{name}"], value)


def test_the_newest_two_checkpoints_are_kept(go, tmp_path):
    go(tmp_path, checkpoint_every=2)
    assert checkpoints(tmp_path) == ["step-00000006.safetensors", "step-00000008.safetensors"]


def test_a_log_row_is_the_mean_of_its_steps(go, tmp_path):
    losses = []
    go(tmp_path, losses=losses)
    assert [row["step"] for row in rows(tmp_path)] == [3, 6, 8]
    for row, span in zip(rows(tmp_path), (losses[:3], losses[3:6], losses[6:]), strict=True):
        for term in ("loss", "focal", "dice", "counterfactual"):
            assert row[term] == pytest.approx(np.mean([values[term] for _, values, _ in span]))
        assert row["learning_rate"] == span[-1][2]
        assert row["samples_per_second"] > 0


def test_partial_files_of_a_killed_training_are_ignored(go, tmp_path):
    whole, losses = [], []
    go(tmp_path / "whole", losses=whole)
    go(tmp_path / "run", stop_at=2, losses=losses)
    go(tmp_path / "run", stop_at=4, losses=losses)
    folder = tmp_path / "run" / "checkpoints"
    good = (folder / "step-00000004.safetensors").read_bytes()
    (folder / "step-00000006.safetensors.123.abc.partial").write_bytes(good[:50])
    (folder / "step-00000005.safetensors").write_bytes(good[: len(good) // 2])
    with (tmp_path / "run" / "train.jsonl").open("a") as file:
        file.write('{"step": 6, "loss": 1}\n{"step": 7, "lo')
    go(tmp_path / "run", losses=losses)
    assert losses == whole
    assert without_speed(tmp_path / "run") == without_speed(tmp_path / "whole")


def test_checkpoints_that_cannot_be_read_at_all_are_an_error(go, tmp_path):
    go(tmp_path, stop_at=2)
    (tmp_path / "checkpoints" / "step-00000002.safetensors").write_bytes(b"nonsense")
    with pytest.raises(StoreError, match="none of 1 checkpoints"):
        go(tmp_path)


def test_a_checkpoint_of_other_settings_or_data_is_refused(go, tmp_path):
    go(tmp_path, stop_at=2)
    with pytest.raises(PlanMismatch, match=r"data was 'data' and is now 'other'") as refusal:
        go(tmp_path, data="other")
    assert refusal.value.hint is not None
    assert "magicseg reset train " in refusal.value.hint
    with pytest.raises(PlanMismatch, match=r"train\.dice_weight was 1\.0 and is now 3\.0"):
        go(tmp_path, dice_weight=3.0)
    with pytest.raises(PlanMismatch, match="seed was 0 and is now 1"):
        go(tmp_path, seed=1)


def test_neutral_settings_may_change_before_a_resume(go, tmp_path):
    go(tmp_path / "whole")
    go(tmp_path / "run", stop_at=2)
    go(tmp_path / "run", checkpoint_every=3, loader_cache_mib=0)
    assert without_speed(tmp_path / "run") == without_speed(tmp_path / "whole")


def test_a_resume_may_change_the_chunk_of_classes(go, tmp_path):
    """With the same chunk it is exact; with another one it differs by rounding."""
    go(tmp_path / "whole", class_chunk=1, log_every=1)
    for name, chunk in {"same": 1, "other": 0}.items():
        go(tmp_path / name, class_chunk=1, log_every=1, stop_at=4)
        go(tmp_path / name, class_chunk=chunk, log_every=1)
    whole = without_speed(tmp_path / "whole")
    assert without_speed(tmp_path / "same") == whole
    for one, other in zip(whole, without_speed(tmp_path / "other"), strict=True):
        assert other == pytest.approx(one, rel=1e-3)


@pytest.mark.slow
def test_loader_processes_do_not_change_the_curve(go, tmp_path):
    alone, helped = [], []
    go(tmp_path / "alone", losses=alone)
    go(tmp_path / "helped", losses=helped, loader_workers=2)
    assert helped == alone


def test_a_loss_that_is_not_a_number_stops_training(go, tmp_path):
    go(tmp_path, stop_at=2)
    with pytest.raises(IncompleteError, match="loss of step") as failure:
        go(tmp_path / "nan", learning_rate=1e30, warmup_steps=0, min_learning_rate=0.0)
    assert isinstance(failure.value, MagicsegError)
    assert "learning_rate" in failure.value.hint


def test_without_counterfactuals_the_term_is_absent(go, tmp_path):
    losses = []
    go(tmp_path, losses=losses, counterfactual_weight=0)
    assert losses[0][1].keys() == {"loss", "focal", "dice"}


def test_training_leaves_the_global_generator_alone(go, tmp_path):
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    go(tmp_path)
    assert torch.equal(torch.rand(2), expected)


def test_images_that_do_not_fit_the_encoder_are_refused(go, squares, tmp_path):
    with pytest.raises(ConfigError, match="18 pixels"):
        go(tmp_path, samples=squares(np.arange(8), image_size=18))


@pytest.mark.slow
def test_training_learns_a_tiny_data_set(go, tmp_path):
    losses = []
    go(
        tmp_path,
        losses=losses,
        steps=250,
        warmup_steps=10,
        learning_rate=3e-3,
        new_layer_lr_multiplier=1,
        paste=0.0,
        prompt_dropout=0.0,
        drop_path=0.0,
        sampled_classes=3,
    )
    assert losses[0][1]["dice"] > 0.5
    assert losses[-1][1]["dice"] < 0.5 * losses[0][1]["dice"]
