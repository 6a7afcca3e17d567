"""Latents of painted scenes, made once per autoencoder, with mean 0 and deviation 1 in every channel."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save, save_file
from torch import Tensor, nn

from training.autoencoder import to_input
from training.painted import Painted


def digest(model: nn.Module) -> str:
    """SHA-256 of a model's weights."""
    state = {name: value.cpu().contiguous() for name, value in model.state_dict().items()}
    return hashlib.sha256(save(state)).hexdigest()


@torch.no_grad()
def encode(vae: Any, images: Tensor, batch: int = 64) -> Tensor:
    """Mean latents of images uint8 (N, 3, H, W): float32 (N, 4, h, w), on the CPU."""
    parts = [
        vae.encode(to_input(part.to(vae.device))).latent_dist.mean.float().cpu()
        for part in torch.split(images, batch)
    ]
    return torch.cat(parts)


def prepare(folder: Path, vae: Any, data: Painted) -> Tensor:
    """Latents of all scenes, float16 (N, 4, h, w); from the folder if they are there for this autoencoder."""
    file = folder / f"latents-{digest(vae)[:12]}-{len(data)}.safetensors"
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        save_file({"values": encode(vae, data.images).half()}, part)
        part.replace(file)
    return load_file(file)["values"]


@torch.no_grad()
def standardise(vae: Any, images: Tensor) -> None:
    """Move the latents' mean and deviation over these images into the convolutions around them, channel by channel.

    The autoencoder reconstructs as before; its latents then have mean 0 and deviation 1, and its scaling factor is 1.
    """
    values = encode(vae, images).to(vae.device)
    mean, std = values.mean((0, 2, 3)), values.std((0, 2, 3))
    count = len(mean)
    before, after = vae.quant_conv, vae.post_quant_conv
    after.bias += after.weight[:, :, 0, 0] @ mean
    after.weight *= std.view(1, -1, 1, 1)
    before.weight[:count] /= std.view(-1, 1, 1, 1)
    before.bias[:count] = (before.bias[:count] - mean) / std
    before.bias[count:] -= 2 * std.log()
    vae.register_to_config(scaling_factor=1.0)
