"""Trains the autoencoder of the small Stable Diffusion: 64 px to 16 x 16 x 4 and back.

python -m training.autoencoder FOLDER --steps 6000
"""

import argparse
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor, nn

from training import scenes
from training.loop import Plan, averaged, steps_of, torch_rng, train

CHANNELS = (16, 32, 64)
KL = 1e-6
PLAN = Plan(steps=6000, batch_size=8, learning_rate=1e-3, cooldown=1500, precision="bfloat16")


def build(channels: tuple[int, ...] = CHANNELS) -> nn.Module:
    """The autoencoder with fresh weights from torch's global generator; no attention, so that it is fast."""
    count = len(channels)
    vae: nn.Module = AutoencoderKL(
        latent_channels=4,
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * count,
        up_block_types=("UpDecoderBlock2D",) * count,
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=scenes.SIZE,
        mid_block_add_attention=False,
    )
    return vae


def images(step: int, *, plan: Plan) -> NDArray[np.uint8]:
    """The batch of a step, painted without sensor noise, which no latent could hold: uint8 (B, 64, 64, 3)."""
    numbers = range(step * plan.batch_size, (step + 1) * plan.batch_size)
    return np.stack(
        [scenes.scene(number, seed=plan.seed, stream="autoencoder", noise=0.0).image for number in numbers]
    )


def to_input(pixels: NDArray[np.uint8], device: str) -> Tensor:
    """uint8 (B, H, W, 3) to float (B, 3, H, W), -1 to 1."""
    return torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous()


def loss_of(vae: Any, pixels: NDArray[np.uint8], step: int, *, plan: Plan) -> Tensor:
    """Difference of pixels and of their neighbours' differences (edges), and the latents' divergence from normal."""
    image = to_input(pixels, plan.device)
    posterior = vae.encode(image).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=torch_rng(plan.seed, "autoencoder noise", step))
    again = vae.decode(posterior.mean + posterior.std * noise.to(plan.device)).sample.float()
    edges = sum(F.l1_loss(again.diff(dim=axis), image.diff(dim=axis)) for axis in (2, 3))
    return F.l1_loss(again, image) + 0.5 * F.mse_loss(again, image) + edges + KL * posterior.kl().float().mean()


def fit(folder: Path, plan: Plan = PLAN, *, channels: tuple[int, ...] = CHANNELS, workers: int = 0) -> nn.Module:
    """Train, from the folder's checkpoint if there is one. Returns: the averaged model."""
    torch.manual_seed(plan.seed)
    make = functools.partial(images, plan=plan)

    def batches(start: int, end: int) -> Iterator[NDArray[np.uint8]]:
        return scenes.ahead(make, start, end, workers)

    return train(build(channels), batches, functools.partial(loss_of, plan=plan), plan, folder)


def load(folder: Path, *, channels: tuple[int, ...] = CHANNELS) -> tuple[nn.Module, int]:
    """The averaged model of a folder, and its steps."""
    vae = build(channels)
    step = averaged(vae, folder)
    return vae.eval().requires_grad_(False), step


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=PLAN.steps)
    parser.add_argument("--cooldown", type=int, default=PLAN.cooldown)
    parser.add_argument("--device", default=PLAN.device)
    parser.add_argument("--workers", type=int, default=0, help="processes that paint; change no bit")
    given = parser.parse_args()
    torch.set_num_threads(1)
    chosen = Plan(**{**PLAN.__dict__, "steps": given.steps, "cooldown": given.cooldown, "device": given.device})
    print(f"from step {steps_of(given.folder)}")
    fit(given.folder, chosen, workers=given.workers)
