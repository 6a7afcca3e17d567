"""What the denoiser learns from: latents and caption tokens of painted scenes, made once and kept in chunks."""

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save, save_file
from torch import Tensor, nn

from training import scenes
from training.autoencoder import to_input
from training.tokens import token_ids

CHUNK = 1024  # scenes


@dataclass(frozen=True)
class Latents:
    """``values``: float16 (N, 4, h, w), with mean 0 and deviation 1 or about; ``tokens``: int16 (N, L)."""

    values: Tensor
    tokens: Tensor


def digest(model: nn.Module) -> str:
    """SHA-256 of a model's weights."""
    return hashlib.sha256(save({name: value.contiguous() for name, value in model.state_dict().items()})).hexdigest()


@torch.no_grad()
def encode(vae: Any, pixels: Sequence[Any], device: str, batch: int = 32) -> Tensor:
    """Mean latents of images: float32 (N, 4, h, w), on the CPU."""
    parts = [
        vae.encode(to_input(np.stack(pixels[at : at + batch]), device)).latent_dist.mean.float().cpu()
        for at in range(0, len(pixels), batch)
    ]
    return torch.cat(parts)


def prepare(
    folder: Path, vae: Any, tokenizer: Any, *, count: int, seed: int, device: str = "cpu", workers: int = 0
) -> Latents:
    """Latents of the first ``count`` scenes, from the folder as far as they are there (a multiple of `CHUNK`).

    They lie in a folder named after the autoencoder's digest: another autoencoder makes its own.
    """
    place = folder / f"latents-{digest(vae)[:12]}-{seed}"
    place.mkdir(parents=True, exist_ok=True)
    make = functools.partial(scenes.scene, seed=seed, stream="denoiser", noise=0.0)
    parts: list[dict[str, Tensor]] = []
    for number in range(count // CHUNK):
        file = place / f"{number:04d}.safetensors"
        if not file.is_file():
            painted = list(scenes.ahead(make, number * CHUNK, (number + 1) * CHUNK, workers))
            values = encode(vae, [one.image for one in painted], device).half()
            tokens = token_ids(tokenizer, [one.caption for one in painted]).short()
            save_file({"values": values, "tokens": tokens}, file.with_suffix(".part"))
            file.with_suffix(".part").replace(file)
        parts.append(load_file(file))
    return Latents(
        values=torch.cat([part["values"] for part in parts]), tokens=torch.cat([part["tokens"] for part in parts])
    )


@torch.no_grad()
def standardise(vae: Any, pixels: Sequence[Any], device: str = "cpu") -> None:
    """Move the latents' mean and deviation over these images into the convolutions around them, channel by channel.

    The autoencoder reconstructs as before; its latents then have mean 0 and deviation 1, and its scaling factor is 1.
    """
    values = encode(vae, pixels, device)
    mean, std = values.mean((0, 2, 3)).to(device), values.std((0, 2, 3)).to(device)
    count = len(mean)
    before, after = vae.quant_conv, vae.post_quant_conv
    after.bias += after.weight[:, :, 0, 0] @ mean
    after.weight *= std.view(1, -1, 1, 1)
    before.weight[:count] /= std.view(-1, 1, 1, 1)
    before.bias[:count] = (before.bias[:count] - mean) / std
    before.bias[count:] -= 2 * std.log()
    vae.register_to_config(scaling_factor=1.0)
