"""TensorBoard, Weights & Biases and the logged speed."""

import json
import sys

import numpy as np
import pytest
import torch

from helpers.coloured_squares import SETTINGS, VOCABULARY, Squares
from magicseg.core.errors import BackendError
from magicseg.train.loop import train


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Killed(BaseException):
    pass


def go(out, *, kill_at=None, **changes):
    def progress(state):
        if state.step == kill_at:
            raise Killed

    return train(
        Squares(np.arange(24)),
        VOCABULARY,
        SETTINGS.model_copy(update={"checkpoint_every": 4, "log_every": 1, **changes}),
        out,
        seed=0,
        data_fingerprint="data",
        progress=progress,
        evaluate=lambda _model, step: {"miou": step / 10},
    )


def rows(out):
    return [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]


def test_tensorboard_has_every_row_once_also_after_a_kill(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with pytest.raises(Killed):
        go(tmp_path, tensorboard=True, kill_at=6, evaluate_every=4)
    go(tmp_path, tensorboard=True, evaluate_every=4)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert {"focal", "dice", "counterfactual", "samples_per_second"} < set(events.Tags()["scalars"])
    for name in ("loss", "gradient_norm", "learning_rate"):
        values = [(event.step, event.value) for event in events.Scalars(name)]
        assert values == [(row["step"], pytest.approx(row[name], rel=1e-6)) for row in rows(tmp_path)]
    assert [(event.step, event.value) for event in events.Scalars("evaluation/miou")] == [
        (4, pytest.approx(0.4)),
        (8, pytest.approx(0.8)),
    ]


def test_the_logged_speed_excludes_evaluation(tmp_path):
    go(tmp_path, evaluate_every=2, log_every=2)
    assert all(0 < row["samples_per_second"] < 1e5 for row in rows(tmp_path))


class FakeWandb:
    """As much of the package as is used: a run's rows, the first of a step kept."""

    def __init__(self):
        self.inits, self.runs = [], {}

    def init(self, **options):
        self.inits.append(options)
        history = self.runs.setdefault(options["id"], {})

        class Run:
            def log(self, values, *, step):
                history.setdefault(step, values)

            def finish(self):
                history["finished"] = True

        return Run()


def test_a_resumed_training_goes_on_in_its_wandb_run(tmp_path, monkeypatch):
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    with pytest.raises(Killed):
        go(tmp_path / "one", wandb="squares", kill_at=6)
    go(tmp_path / "one", wandb="squares")
    go(tmp_path / "other", wandb="squares")
    assert [options["project"] for options in wandb.inits] == ["squares"] * 3
    assert [options["resume"] for options in wandb.inits] == ["allow"] * 3
    assert wandb.inits[0]["id"] == wandb.inits[1]["id"] != wandb.inits[2]["id"]
    assert wandb.inits[0]["config"]["train"]["steps"] == 8
    history = wandb.runs[wandb.inits[0]["id"]]
    assert history.pop("finished")
    assert {step: values["loss"] for step, values in history.items()} == {
        row["step"]: row["loss"] for row in rows(tmp_path / "one")
    }


def test_wandb_that_is_not_installed_is_an_error_that_says_how(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(BackendError, match="wandb") as failure:
        go(tmp_path, wandb="squares")
    assert "pip install 'magicseg[wandb]'" in failure.value.hint


def test_a_finished_training_opens_no_log_again(tmp_path, monkeypatch):
    go(tmp_path, tensorboard=True)
    before = sorted((tmp_path / "tensorboard").iterdir())
    go(tmp_path, tensorboard=True)
    assert sorted((tmp_path / "tensorboard").iterdir()) == before


def test_speed_does_not_count_the_wait_for_the_last_step(tmp_path):
    go(tmp_path)
    speeds = [row["samples_per_second"] for row in rows(tmp_path)][1:]
    assert max(speeds) < 20 * min(speeds)


def test_fp16_logs_the_scale_of_its_gradients(tmp_path):
    go(tmp_path, precision="fp16")
    assert all(row["loss_scale"] > 0 for row in rows(tmp_path))
