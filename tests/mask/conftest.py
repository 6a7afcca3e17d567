"""Tiny detectors and segmenters, made when a test first asks for them; no network; torch keeps its threads."""

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported

import magicseg.vision.yapf_shim  # noqa: F401  # before a test imports groundingdino
from magicseg.core.devices import use_threads
from magicseg.vision.batches import HasBatch
from magicseg.vision.shipped_models import (
    OriginalDetector,
    OriginalSegmenter,
    TransformersDetector,
    TransformersSegmenter,
)

CPU = {"device": "cpu", "dtype": "float32"}


@pytest.fixture(autouse=True)
def _apart(models_apart: None) -> None:
    """For all tests of this folder."""


@pytest.fixture(scope="session")
def kept() -> dict[str, Any]:
    """Models of named checkpoints, loaded once: tests change them by `monkeypatch` alone, which is undone."""
    return {}


def _named(kept: dict[str, Any], make: Callable[..., Any], model: str | Path, **options: Any) -> Any:
    """What ``make`` gives; of a named checkpoint with equal options the same again."""
    if not isinstance(model, str):
        return make(model, **options)
    key = f"{make.__qualname__} {model} {sorted(options.items())}"
    if key not in kept:
        kept[key] = make(model, **options)
    use_threads("cpu", 1)  # as loading does
    return kept[key]


@pytest.fixture
def detector(checkpoint: Callable[[str], Path], kept: dict[str, Any]) -> Callable[..., Any]:
    """A detector by its checkpoint's name or folder."""

    def make(model: str | Path, *, batch_size: int = 3, **options: Any) -> Any:
        folder = checkpoint(model) if isinstance(model, str) else model
        settings = HasBatch(batch_size)
        if (folder / "tiny.py").exists():
            chosen = {
                "config": str(folder / "tiny.py"),
                "text_encoder": {"model": str(folder / "bert")},
                "shortest_edge": 64,
                "longest_edge": 96,
            }
            return OriginalDetector(settings, OriginalDetector.Options(model=str(folder), **CPU | chosen | options))
        return TransformersDetector(settings, TransformersDetector.Options(model=str(folder), **CPU | options))

    return functools.partial(_named, kept, make)


@pytest.fixture
def segmenter(
    checkpoint: Callable[[str], Path], kept: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """A segmenter by its checkpoint's name or folder."""

    def make(model: str | Path, *, batch_size: int = 3, **options: Any) -> Any:
        folder = checkpoint(model) if isinstance(model, str) else model
        settings = HasBatch(batch_size)
        if list(folder.glob("*.pth")):
            import segment_anything

            from helpers.tiny_detectors import build_original_sam

            monkeypatch.setitem(segment_anything.sam_model_registry, "vit_tiny", build_original_sam)
            chosen = {"architecture": "vit_tiny"}
            return OriginalSegmenter(settings, OriginalSegmenter.Options(model=str(folder), **CPU | chosen | options))
        return TransformersSegmenter(settings, TransformersSegmenter.Options(model=str(folder), **CPU | options))

    return functools.partial(_named, kept, make)
