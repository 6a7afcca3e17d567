"""Trains the UNet and the text encoder of the small Stable Diffusion, on latents of a trained autoencoder.

python -m training.denoiser FOLDER --autoencoder FOLDER --steps 20000
python -m training.denoiser FOLDER --autoencoder FOLDER --export DIRECTORY
"""

import argparse
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from training import autoencoder, latents, scenes
from training.loop import Plan, averaged, counter_rng, steps_of, torch_rng, train
from training.tokens import LENGTH, token_ids, write_tokenizer

SCENES = 16 * latents.CHUNK
PLAN = Plan(steps=20_000, batch_size=16, learning_rate=1e-3, cooldown=4000, precision="bfloat16")
NO_TEXT = 0.1  # share of captions left out, for guidance
SNR_CLIP = 5.0
NOISE_LEVELS = {
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction",
}


@dataclass(frozen=True)
class Sizes:
    """Of the UNet and of the text encoder."""

    channels: tuple[int, int] = (64, 128)
    text_width: int = 128
    text_layers: int = 2
    heads: int = 4


class Denoiser(nn.Module):
    """Both networks, trained together."""

    def __init__(self, sizes: Sizes, vocabulary: int) -> None:
        super().__init__()
        self.text: Any = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=vocabulary,
                hidden_size=sizes.text_width,
                intermediate_size=2 * sizes.text_width,
                num_hidden_layers=sizes.text_layers,
                num_attention_heads=sizes.heads,
                max_position_embeddings=LENGTH,
                bos_token_id=vocabulary - 2,
                eos_token_id=vocabulary - 1,
                pad_token_id=vocabulary - 1,
                projection_dim=sizes.text_width,
            )
        )
        self.unet: Any = UNet2DConditionModel(
            sample_size=scenes.SIZE // 4,
            in_channels=4,
            out_channels=4,
            layers_per_block=1,
            block_out_channels=sizes.channels,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            norm_num_groups=16,
            cross_attention_dim=sizes.text_width,
            attention_head_dim=sizes.heads,  # of this class it is the number of heads
        )

    def forward(self, noisy: Tensor, times: Tensor, tokens: Tensor) -> Tensor:
        """Velocity of noisy latents (B, 4, h, w) at times (B), given tokens (B, L)."""
        velocity: Tensor = self.unet(noisy, times, self.text(tokens).last_hidden_state).sample
        return velocity


@dataclass(frozen=True)
class Batch:
    """Latents (B, 4, h, w), tokens (B, L)."""

    values: Tensor
    tokens: Tensor


def build(sizes: Sizes, tokenizer: Any) -> Denoiser:
    """With fresh weights from torch's global generator."""
    return Denoiser(sizes, len(tokenizer))


def batch(step: int, *, data: latents.Latents, empty: Tensor, plan: Plan) -> Batch:
    """The scenes of a step, some of them with the ``empty`` caption's tokens."""
    rng = counter_rng(plan.seed, "denoiser batch", step)
    chosen = torch.from_numpy(rng.integers(0, len(data.values), plan.batch_size))
    tokens = data.tokens[chosen].long()
    tokens[torch.from_numpy(rng.random(plan.batch_size) < NO_TEXT)] = empty
    return Batch(values=data.values[chosen].float(), tokens=tokens)


def loss_of(model: nn.Module, given: Batch, step: int, *, plan: Plan, levels: Any) -> Tensor:
    """Squared error of the velocity (Salimans and Ho 2022, arXiv 2202.00512), weighted by min-SNR (Hang et al. 2023,
    arXiv 2303.09556).

    The batch's times are spread evenly from a random first one.
    """
    rng = torch_rng(plan.seed, "denoiser noise", step)
    noise = torch.randn(given.values.shape, generator=rng)
    spread = (torch.rand(1, generator=rng) + torch.arange(plan.batch_size) / plan.batch_size) % 1
    times = (spread * len(levels.alphas_cumprod)).long()
    noisy = levels.add_noise(given.values, noise, times)
    target = levels.get_velocity(given.values, noise, times)
    alpha = levels.alphas_cumprod[times]
    ratio = alpha / (1 - alpha)
    weight = ratio.clamp(max=SNR_CLIP) / (ratio + 1)
    found = model(noisy.to(plan.device), times.to(plan.device), given.tokens.to(plan.device)).float()
    return ((found - target.to(plan.device)).square().mean((1, 2, 3)) * weight.to(plan.device)).mean()


def standard_autoencoder(folder: Path, plan: Plan, *, channels: tuple[int, ...] = autoencoder.CHANNELS) -> Any:
    """The trained autoencoder with latents of mean 0 and deviation 1."""
    vae, _ = autoencoder.load(folder, channels=channels)
    painted = [scenes.scene(n, seed=plan.seed, stream="standard", noise=0.0).image for n in range(256)]
    latents.standardise(vae, painted)
    return vae.to(plan.device)


def fit(
    folder: Path,
    vae: Any,
    plan: Plan = PLAN,
    *,
    sizes: Sizes | None = None,
    count: int = SCENES,
    workers: int = 0,
) -> nn.Module:
    """Train, from the folder's checkpoint if there is one. Returns: the averaged model."""
    tokenizer = write_tokenizer(folder / "tokenizer")
    data = latents.prepare(folder, vae, tokenizer, count=count, seed=plan.seed, device=plan.device, workers=workers)
    torch.manual_seed(plan.seed)
    make = functools.partial(batch, data=data, empty=token_ids(tokenizer, [""])[0], plan=plan)

    def batches(start: int, end: int) -> Iterator[Batch]:
        return scenes.ahead(make, start, end, 0)

    levels = DDPMScheduler(**NOISE_LEVELS)
    return train(
        build(sizes or Sizes(), tokenizer),
        batches,
        functools.partial(loss_of, plan=plan, levels=levels),
        plan,
        folder,
    )


def export(model: Any, vae: Any, tokenizer: Any, target: Path) -> None:
    """Write the pipeline in diffusers' format, weights in half precision."""
    pipeline = StableDiffusionPipeline(
        vae=vae.cpu(),
        text_encoder=model.text.cpu(),
        tokenizer=tokenizer,
        unet=model.unet.cpu(),
        scheduler=DPMSolverMultistepScheduler(**NOISE_LEVELS, timestep_spacing="trailing", lambda_min_clipped=-5.1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(dtype=torch.float16).save_pretrained(target, safe_serialization=True)


def load(folder: Path, sizes: Sizes | None = None) -> tuple[Denoiser, Any, int]:
    """The averaged model of a folder, its tokenizer, and its steps."""
    tokenizer = write_tokenizer(folder / "tokenizer")
    model = build(sizes or Sizes(), tokenizer)
    step = averaged(model, folder)
    return model.eval().requires_grad_(False), tokenizer, step


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--autoencoder", type=Path, required=True, help="folder of training.autoencoder")
    parser.add_argument("--steps", type=int, default=PLAN.steps)
    parser.add_argument("--cooldown", type=int, default=PLAN.cooldown)
    parser.add_argument("--batch-size", type=int, default=PLAN.batch_size)
    parser.add_argument("--scenes", type=int, default=SCENES)
    parser.add_argument("--device", default=PLAN.device)
    parser.add_argument("--workers", type=int, default=0, help="processes that paint; change no bit")
    parser.add_argument("--export", type=Path, help="write the pipeline of the checkpoint here, and do nothing else")
    given = parser.parse_args()
    torch.set_num_threads(1)
    changes = {name: getattr(given, name) for name in ("steps", "cooldown", "batch_size", "device")}
    chosen = Plan(**{**PLAN.__dict__, **changes})
    trained = standard_autoencoder(given.autoencoder, chosen)
    if given.export:
        found, words, done = load(given.folder)
        export(found, trained, words, given.export)
        print(f"{given.export}: after {done} steps")
    else:
        print(f"from step {steps_of(given.folder)}")
        fit(given.folder, trained, chosen, count=given.scenes, workers=given.workers)
