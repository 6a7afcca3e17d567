"""Tiny detectors and segmenters, made when a test first asks for them; no network; torch keeps its threads."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported

import magicseg.mask.private_yapf  # noqa: F401  # before a test imports groundingdino
from magicseg.mask.batches import HasBatch
from magicseg.mask.models import OriginalDetector, OriginalSegmenter, TransformersDetector, TransformersSegmenter

CPU = {"device": "cpu", "dtype": "float32"}


@pytest.fixture(autouse=True)
def _apart(models_apart: None) -> None:
    """For all tests of this folder."""


@pytest.fixture
def detector(checkpoint: Callable[[str], Path]) -> Callable[..., Any]:
    """A detector by its checkpoint's name or folder."""

    def make(model: str | Path = "grounding_dino", *, batch_size: int = 3, **options: Any) -> Any:
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

    return make


@pytest.fixture
def segmenter(checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """A segmenter by its checkpoint's name or folder."""

    def make(model: str | Path = "sam", *, batch_size: int = 3, **options: Any) -> Any:
        folder = checkpoint(model) if isinstance(model, str) else model
        settings = HasBatch(batch_size)
        if list(folder.glob("*.pth")):
            import segment_anything
            from tiny_models import build_original_sam

            monkeypatch.setitem(segment_anything.sam_model_registry, "vit_tiny", build_original_sam)
            chosen = {"architecture": "vit_tiny"}
            return OriginalSegmenter(settings, OriginalSegmenter.Options(model=str(folder), **CPU | chosen | options))
        return TransformersSegmenter(settings, TransformersSegmenter.Options(model=str(folder), **CPU | options))

    return make
