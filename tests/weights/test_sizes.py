"""The memory of weights on a device, from their files."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from magicseg.weights import Weights
from magicseg.weights.sizes import loaded_bytes


@pytest.fixture
def folder(tmp_path):
    tensors = {"a": np.zeros((10, 10), np.float32), "b": np.zeros(50, np.float16), "ids": np.zeros(5, np.int64)}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def of(path):
    return Weights(setting="model", model=str(path))


@pytest.mark.parametrize(("dtype", "values"), [("float32", 150 * 4), ("float16", 150 * 2), ("bfloat16", 150 * 2)])
def test_floating_point_tensors_take_the_memory_of_the_type_that_they_are_loaded_as(folder, dtype, values):
    assert loaded_bytes(of(folder), dtype) == values + 5 * 8
    assert loaded_bytes(of(folder / "model.safetensors"), dtype) == values + 5 * 8


def test_files_of_other_formats_and_damaged_ones_count_whole(folder):
    size = (folder / "model.safetensors").stat().st_size
    assert loaded_bytes(of(folder), None) == size
    for header in (b"", b"\xff" * 8, (2).to_bytes(8, "little") + b"[]"):
        (folder / "model.safetensors").write_bytes(header)
        assert loaded_bytes(of(folder), "float16") == len(header)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(bytes(1000))
    assert loaded_bytes(of(folder), "float16") == 1000


def test_weights_that_are_not_here_have_no_size(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert loaded_bytes(of(tmp_path / "nowhere"), None) is None
    assert loaded_bytes(Weights(setting="model", model="org/model", revision="0" * 40), None) is None
