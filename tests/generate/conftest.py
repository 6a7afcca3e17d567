"""Tiny checkpoints, each made when a test first asks for it; no network; torch's number of threads kept."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported

from magicseg.generate.diffusion import DiffusersGenerator


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A family's checkpoint, not to be changed."""
    from tiny_pipelines import build

    folder = tmp_path_factory.mktemp("checkpoints")
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = build(name, folder)
        return made[name]

    return get


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def _same_threads() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def generator(checkpoint: Callable[[str], Path]) -> Callable[..., DiffusersGenerator]:
    """A back end with a tiny checkpoint: ``generator("sd15", batch_size=2, steps=3)``."""

    def make(
        family: str | Path = "sd2", *, size: int = 32, batch_size: int = 2, **options: Any
    ) -> DiffusersGenerator:
        model = checkpoint(family) if isinstance(family, str) else family
        chosen = {"device": "cpu", "dtype": "float32", "steps": 2} | options
        return DiffusersGenerator(
            SimpleNamespace(size=size, batch_size=batch_size), DiffusersGenerator.Options(model=str(model), **chosen)
        )

    return make
