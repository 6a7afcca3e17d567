"""Train the autoencoder of the small Stable Diffusion, from 64 px to the latents of `training.latents` (16 x 16 x 8).

python -m training.autoencoder FOLDER --data FOLDER
"""

import functools
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from training import arguments, latents, scenes
from training.loop import Plan, averaged, chosen, torch_rng, train
from training.painted import Painted

CHANNELS = (16, 32, 64)
SCENES = 16_384
NOISE = 0.1  # added to latents (standard deviation 1) before decoding, because a denoiser's latents have errors
PLAN = Plan(steps=4000, batch_size=8, learning_rate=1e-3, cooldown=1000)


def build(channels: tuple[int, ...] = CHANNELS) -> nn.Module:
    """Return the autoencoder with initial weights from torch's global generator. It has no attention, for speed.

    Its norms have one group: groups of a few channels normalise an image's colours away, and training recovers them
    late. The variance of the latents is a constant.
    """
    count = len(channels)
    vae: Any = AutoencoderKL(
        latent_channels=latents.CHANNELS,
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * count,
        up_block_types=("UpDecoderBlock2D",) * count,
        layers_per_block=1,
        norm_num_groups=1,
        sample_size=scenes.SIZE,
        mid_block_add_attention=False,
        scaling_factor=1.0,
    )
    with torch.no_grad():
        vae.quant_conv.weight[latents.CHANNELS :] = 0
        vae.quant_conv.bias[latents.CHANNELS :] = -6  # the log variance; no loss term changes it
    made: nn.Module = vae
    return made


def to_input(images: Tensor) -> Tensor:
    """Convert images from uint8 (B, 3, H, W) to float, -1 to 1."""
    return images.float().div(127.5).sub(1)


def loss_of(vae: Any, step: int, *, data: Painted, space: latents.Components, plan: Plan) -> Tensor:
    """Return the sum of the encoder's and the decoder's losses.

    The encoder's loss is the squared error of its latents. The decoder gets the true latents with some noise. Its
    loss compares pixels, means over squares (colours) and differences between neighbours (edges).
    """
    picked = data.images[chosen(plan, len(data), step)]
    image, true = to_input(picked), space.of(picked)
    found = vae.encode(image).latent_dist.mean.float()
    rng = torch_rng(plan, "autoencoder noise", step)
    noise = torch.randn(true.shape, generator=rng, device=plan.device)
    again = vae.decode(true + NOISE * noise).sample.float()
    across = F.l1_loss(again.diff(dim=2), image.diff(dim=2))
    along = F.l1_loss(again.diff(dim=3), image.diff(dim=3))
    colours = F.l1_loss(F.avg_pool2d(again, 4), F.avg_pool2d(image, 4))
    pixels = F.l1_loss(again, image) + 0.5 * F.mse_loss(again, image)
    loss: Tensor = F.mse_loss(found, true) + pixels + colours + across + along
    return loss


def fit(folder: Path, data: Painted, plan: Plan = PLAN, *, channels: tuple[int, ...] = CHANNELS) -> nn.Module:
    """Train, or resume from the folder's checkpoint. Returns: the averaged model."""
    torch.manual_seed(plan.seed)
    space = latents.components(data.images[: latents.SAMPLE])
    loss = functools.partial(loss_of, data=data.to(plan.device), space=space, plan=plan)
    return train(build(channels), loss, plan, folder)


def load(folder: Path, *, channels: tuple[int, ...] = CHANNELS) -> tuple[nn.Module, int]:
    """Return the averaged model of a folder, and its number of steps."""
    vae = build(channels)
    step = averaged(vae, folder)
    return vae.eval().requires_grad_(False), step


def main() -> None:
    """Run the training program."""
    given = arguments.parser(__doc__, PLAN, SCENES).parse_args()
    plan = arguments.plan_of(given, PLAN)
    arguments.fit_painted(given, plan, fit)


if __name__ == "__main__":
    main()
