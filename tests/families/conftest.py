"""Tiny checkpoints for all tests of this folder; no network; torch's number of threads kept."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from model_runs import Checkpoints

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    """Not to be changed."""
    return Checkpoints(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def _same_threads() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
