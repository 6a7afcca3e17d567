"""Tiny checkpoints, each made when a test first asks for it; no network; torch's number of threads kept."""

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported

from magicseg.stages.generate.diffusion import DiffusersGenerator


@pytest.fixture(autouse=True)
def _apart(models_apart: None) -> None:
    """For all tests of this folder."""


@pytest.fixture
def generator(checkpoint: Callable[[str], Path]) -> Callable[..., DiffusersGenerator]:
    """A back end with a tiny checkpoint: ``generator("sd15", batch_size=2, steps=3)``."""

    def make(
        family: str | Path = "sd2", /, *, size: int = 32, batch_size: int = 2, **options: Any
    ) -> DiffusersGenerator:
        model = checkpoint(family) if isinstance(family, str) else family
        chosen = {"device": "cpu", "dtype": "float32", "steps": 2} | options
        return DiffusersGenerator(
            SimpleNamespace(size=size, batch_size=batch_size), DiffusersGenerator.Options(model=str(model), **chosen)
        )

    return make
