"""Training on a GPU: bf16 near fp32, and the settings that save time or memory."""

import numpy as np
import pytest

from helpers.coloured_squares import SETTINGS, VOCABULARY, Squares
from helpers.gpus import DEVICE
from magicseg.train.loop import train

CALM = {"prompt_dropout": 0.0, "drop_path": 0.0, "paste": 0.0, "steps": 4, "batch_size": 6}


def losses(out, device=DEVICE, **changes):
    """Train a few steps and return every step's loss."""
    found = []
    settings = SETTINGS.model_copy(update=CALM | changes)
    samples = Squares(np.arange(64))
    train(
        samples,
        VOCABULARY,
        settings,
        out,
        seed=0,
        data_fingerprint="",
        device=device,
        progress=lambda state: found.append(state.losses["loss"]),
    )
    return found


def test_the_curve_in_fp32_is_near_the_cpus(tmp_path):
    on_gpu, on_cpu = losses(tmp_path / "gpu"), losses(tmp_path / "cpu", device="cpu")
    np.testing.assert_allclose(on_gpu, on_cpu, rtol=0.02)


@pytest.mark.parametrize(
    "changes",
    [{}, {"accumulate": 2}, {"class_chunk": 1}, {"checkpoint_activations": True}, {"compile": True}],
    ids=lambda changes: next(iter(changes), "alone"),
)
def test_the_curve_in_bf16_is_near_fp32(changes, tmp_path):
    full = losses(tmp_path / "fp32", **changes | {"compile": False})  # parts of a batch have their own batch norm
    half = losses(tmp_path / "bf16", precision="bf16", **changes)
    assert len(half) == CALM["steps"]
    np.testing.assert_allclose(half, full, rtol=0.05)
