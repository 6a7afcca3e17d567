"""Runs whose three stages use tiny models of every family, in real formats."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from helpers.tiny_runs import make_run
from magicseg.run import Run

# Diffusion pipeline -> captioner, detector, segmenter. SAM 3 gives masks itself.
FAMILIES: Mapping[str, tuple[str, str, str | None]] = {
    "sd15": ("template", "original_grounding_dino", "original_sam"),
    "sd2": ("transformers", "grounding_dino", "sam"),
    "sdxl": ("template", "owlv2", "sam_hq"),
    "lcm": ("template", "grounding_dino", "sam2"),
    "sd3": ("transformers", "owlv2", "sam"),
    "flux": ("template", "grounding_dino", "sam_hq"),
    "pixart_alpha": ("template", "original_grounding_dino", "sam2"),
    "pixart_sigma": ("template", "owlv2", "original_sam"),
    "flux2": ("template", "grounding_dino", "sam2_video"),
    "flux2_klein": ("template", "owlv2", "edgetam"),
    "qwen_image": ("template", "grounding_dino", "sam2"),
    "z_image": ("template", "grounding_dino", "sam3_tracker"),
    "chroma": ("template", "omdet_turbo", "sam"),
    "lumina2": ("template", "grounding_dino", "sam_hq"),
    "sana": ("template", "sam3", None),
    "sana_sprint": ("template", "grounding_dino", "sam2"),
}
CPU = {"device": "cpu", "dtype": "float32"}


class Checkpoints:
    """Tiny checkpoints in a folder, each created on first use."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, name: str) -> Path:
        """Return the folder of a pipeline, a detector, a segmenter, an open_clip model, or "language"."""
        made = self._folder / name
        if not made.exists():
            if name == "language":
                from helpers.tiny_language_model import make_tiny_model

                make_tiny_model(made)
            elif name.startswith("open_clip"):
                from helpers.tiny_clip import build as build_clip

                build_clip(name, self._folder)
            elif name in FAMILIES:
                from helpers.tiny_pipelines import build

                build(name, self._folder)
            else:
                from helpers.tiny_detectors import build as build_model

                build_model(name, self._folder)
        return made


def _detector(name: str, get: Callable[[str], Path]) -> dict[str, Any]:
    folder = get(name)
    if not name.startswith("original"):
        return {"backend": "sam3" if name == "sam3" else "transformers", "options": {"model": str(folder), **CPU}}
    original = {"config": str(folder / "tiny.py"), "text_encoder": {"model": str(folder / "bert")}}
    sizes = {"shortest_edge": 64, "longest_edge": 96}
    return {"backend": "original", "options": {"model": str(folder), **original, **sizes, **CPU}}


def _segmenter(name: str | None, get: Callable[[str], Path]) -> dict[str, Any] | None:
    if name is None:
        return None
    own = {"architecture": "vit_tiny"} if name.startswith("original") else {}
    backend = "tiny-original" if own else "transformers"  # a plug-in of the tests with the tiny architecture
    return {"backend": backend, "options": {"model": str(get(name)), **own, **CPU}}


def make_model_run(path: Path, family: str, get: Callable[[str], Path], *overrides: str) -> Run:
    """Create an empty run of three shards of four small samples. Args: get: returns a checkpoint's folder."""
    captioner, detector, segmenter = FAMILIES[family]
    describe: dict[str, Any] = {"backend": captioner, "batch_size": 4, "options": {}}
    if captioner == "transformers":
        describe["options"] = {"model": str(get("language")), "attempts": 1, "max_new_tokens": 16, **CPU}
    detecting = _detector(detector, get)
    generate: dict[str, Any] = {
        "backend": "diffusers",
        "size": 32,
        "batch_size": 2,
        "options": {"model": str(get(family)), "steps": 2, "guidance": 1.0, **CPU},
    }
    mask: dict[str, Any] = {
        "backend": "detect-segment",
        "batch_size": 3,
        "options": {
            "detector": detecting,
            "segmenter": _segmenter(segmenter, get),
            "box_threshold": 0.0,
            "text_threshold": 0.0,
            "max_objects": 2,
            "missing_labels": "keep",
            "check_counterfactual": False,  # random weights find objects in all images
            "min_area": 0.0,
            "max_area": 1.0,
        },
    }
    groups = {"describe": describe, "generate": generate, "mask": mask}
    texts = {name: yaml.safe_dump(group, default_flow_style=True, width=10**6) for name, group in groups.items()}
    settings = [f"{name}={text}" for name, text in texts.items()]
    return make_run(path, "plan.samples=12", "plan.shard_size=4", "plan.max_labels=2", *settings, *overrides)
