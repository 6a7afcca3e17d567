"""Tests on a real GPU, with tiny models: ``pytest -m gpu``."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported

from helpers.gpus import DEVICE, require_gpu
from magicseg.stages.generate.diffusion import DiffusersGenerator
from magicseg.vision.batches import HasBatch
from magicseg.vision.shipped_models import TransformersDetector, TransformersSegmenter


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all tests here as in need of a GPU."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(scope="session", autouse=True)
def _gpu() -> None:
    require_gpu(os.environ)


@pytest.fixture(autouse=True)
def _apart(models_apart: None) -> None:
    """For all tests of this folder."""


@pytest.fixture
def generator(checkpoint: Callable[[str], Path]) -> Callable[..., DiffusersGenerator]:
    """A back end with a tiny checkpoint, on the GPU: ``generator("sd15", batch_size=2, dtype="bfloat16")``."""

    def make(family: str, *, size: int = 32, batch_size: int = 1, **options: Any) -> DiffusersGenerator:
        chosen = {"device": DEVICE, "dtype": "float32", "steps": 3, "min_contrast": 0, "retries": 0} | options
        return DiffusersGenerator(
            SimpleNamespace(size=size, batch_size=batch_size),
            DiffusersGenerator.Options(model=str(checkpoint(family)), **chosen),
        )

    return make


@pytest.fixture
def detector(checkpoint: Callable[[str], Path]) -> Callable[..., TransformersDetector]:
    """A detector by its checkpoint's name, on the GPU."""

    def make(name: str, **options: Any) -> TransformersDetector:
        chosen = {"device": DEVICE, "dtype": "float32"} | options
        return TransformersDetector(HasBatch(2), TransformersDetector.Options(model=str(checkpoint(name)), **chosen))

    return make


@pytest.fixture
def segmenter(checkpoint: Callable[[str], Path]) -> Callable[..., TransformersSegmenter]:
    """A segmenter by its checkpoint's name, on the GPU."""

    def make(name: str, **options: Any) -> TransformersSegmenter:
        chosen = {"device": DEVICE, "dtype": "float32"} | options
        return TransformersSegmenter(
            HasBatch(2), TransformersSegmenter.Options(model=str(checkpoint(name)), **chosen)
        )

    return make


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Leave this process 256 MiB of the GPU's memory above what it holds."""
    import torch

    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**28) / total)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()
