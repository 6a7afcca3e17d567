"""Tiny open_clip models with random weights, in the formats of published models."""

import copy
import json
from pathlib import Path
from typing import Any

import torch
from open_clip.model import CLIP, CustomTextCLIP
from safetensors.torch import save_file

MEAN, STD = (0.4, 0.45, 0.5), (0.2, 0.25, 0.3)

_BASE: dict[str, Any] = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 16, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1},
}
# Differences from the base configuration, by variant: model, image tower, text tower.
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "open_clip": ({}, {}, {}),
    "open_clip_quickgelu": ({"quick_gelu": True}, {}, {}),
    "open_clip_heads": ({}, {"head_width": 4, "mlp_ratio": 2.0, "ls_init_value": 0.5}, {}),
    "open_clip_average": ({}, {"pool_type": "avg"}, {"pool_type": "last", "no_causal_mask": True}),
    "open_clip_late_norm": ({}, {"pool_type": "avg", "final_ln_after_pool": True, "no_ln_pre": True}, {}),
    "open_clip_late_norm_of_token": ({}, {"final_ln_after_pool": True, "patch_dropout": 0.5}, {}),
    "open_clip_custom_text": ({"custom_text": True}, {"qk_norm": True}, {"proj_bias": True}),
}


def config_of(name: str) -> dict[str, Any]:
    """Return the ``model_cfg`` of a variant."""
    config = copy.deepcopy(_BASE)
    model, vision, text = VARIANTS[name]
    config |= model
    config["vision_cfg"] |= vision
    config["text_cfg"] |= text
    return config


def stock(config: dict[str, Any]) -> Any:
    """Return open_clip's model with random weights, none of which is zero or one."""
    config = copy.deepcopy(config)
    kind = CustomTextCLIP if config.pop("custom_text", False) else CLIP
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(**config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


def build(name: str, folder: Path) -> None:
    """Write a folder in open_clip's ``local-dir:`` format, and the same weights as a ``.pt`` file."""
    made = folder / name
    made.mkdir(parents=True)
    config = config_of(name)
    state = {key: value.contiguous() for key, value in stock(config).state_dict().items()}
    save_file(state, made / "open_clip_model.safetensors")
    torch.save(state, made / "weights.pt")
    stored = {"model_cfg": config, "preprocess_cfg": {"mean": MEAN, "std": STD}}
    (made / "open_clip_config.json").write_text(json.dumps(stored))
