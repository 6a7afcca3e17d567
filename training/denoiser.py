"""Train the UNet and the text encoder of the small Stable Diffusion, in the space of `training.latents`.

python -m training.denoiser FOLDER --data FOLDER
python -m training.denoiser FOLDER --data FOLDER --autoencoder FOLDER --export DIRECTORY
"""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import CLIPTextConfig, CLIPTextModel

from training import arguments, autoencoder, latents, scenes
from training.loop import Plan, averaged, chosen, torch_rng, train
from training.painted import Painted
from training.tokens import LENGTH, token_ids, write_tokenizer

SCENES = 16_384
PLAN = Plan(
    steps=12_000,
    batch_size=16,
    learning_rate=2e-3,
    cooldown=3000,
    muon=r"unet|layers",
)
NO_TEXT = 0.1  # fraction of captions that are dropped, for classifier-free guidance
OBJECT_WEIGHT = 10.0  # additional loss weight of object pixels
SNR_CLIP, SNR_CLIP_COOLDOWN = 5.0, 1.0
NOISE_LEVELS = {
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction",
}


@dataclass(frozen=True)
class Sizes:
    """The sizes of the UNet and of the text encoder."""

    channels: tuple[int, int] = (64, 128)
    text_width: int = 128
    text_layers: int = 2
    heads: int = 4


class Denoiser(nn.Module):
    """The UNet and the text encoder, trained together."""

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
            sample_size=scenes.SIZE // latents.PATCH,
            in_channels=latents.CHANNELS,
            out_channels=latents.CHANNELS,
            layers_per_block=1,
            block_out_channels=sizes.channels,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            norm_num_groups=4,
            cross_attention_dim=sizes.text_width,
            attention_head_dim=sizes.heads,  # in this class it is the number of heads
        )

        for name, module in self.unet.named_modules():
            if isinstance(module, nn.Conv2d) and name not in {"conv_in", "conv_out"}:
                parametrize.register_parametrization(module, "weight", _Filters(module.weight.shape))

    def forward(self, noisy: Tensor, times: Tensor, tokens: Tensor) -> Tensor:
        """Predict the velocity of noisy latents (B, 8, h, w) at times (B), given tokens (B, L)."""
        velocity: Tensor = self.unet(noisy, times, self.text(tokens).last_hidden_state).sample
        return velocity

    def as_stored(self) -> Any:
        """Return the UNet with convolution weights in the checkpoint's format. It can no longer be trained."""
        for module in self.unet.modules():
            if parametrize.is_parametrized(module, "weight"):
                parametrize.remove_parametrizations(module, "weight")
        return self.unet


class _Filters(nn.Module):
    """Parametrize a convolution's weight as a matrix with one row per filter, because Muon only updates matrices."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, matrix: Tensor) -> Tensor:
        return matrix.view(self.shape)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight.flatten(1)


def build(sizes: Sizes, tokenizer: Any) -> Denoiser:
    """Return the model with initial weights from torch's global generator."""
    return Denoiser(sizes, len(tokenizer))


def loss_of(
    model: nn.Module,
    step: int,
    *,
    values: Tensor,
    objects: Tensor,
    channels: Tensor,
    tokens: Tensor,
    empty: Tensor,
    plan: Plan,
    levels: Any,
) -> Tensor:
    """Return the weighted squared error of the velocity (Salimans and Ho 2022, arXiv 2202.00512).

    Weights are min-SNR (Hang et al. 2023, arXiv 2303.09556), with larger weights for object pixels. The batch's times
    are evenly spaced, from a random start. In the cooldown, high noise has a larger weight, channels are weighted by
    their contribution to pixels, and all positions have equal weights. Otherwise objects would come out too large:
    weights that depend on the target bias the prediction towards heavy targets.

    Args: values: latents, float16 (N, 8, h, w). objects: uint8 (N, h, w), number of object pixels per latent.
    channels: float (8), the channels' weights in the cooldown; all latent channels have standard deviation 1, but
    their contributions to pixels differ. tokens: int16 (N, L). empty: int16 (L), tokens of dropped captions.
    """
    cooling = plan.cools(step)
    rng = torch_rng(plan, "denoiser noise", step)
    picked = chosen(plan, len(values), step)
    clean = values[picked].float()
    noise = torch.randn(clean.shape, generator=rng, device=plan.device)
    draws = torch.rand(plan.batch_size + 1, generator=rng, device=plan.device)
    texts = torch.where((draws[1:] < NO_TEXT)[:, None], empty, tokens[picked]).long()
    spread = (draws[0] + torch.arange(plan.batch_size, device=plan.device) / plan.batch_size) % 1
    times = (spread * len(levels.alphas_cumprod)).long()
    target = levels.get_velocity(clean, noise, times)
    alpha = levels.alphas_cumprod.to(plan.device)[times]
    ratio = alpha / (1 - alpha)
    weight = ratio.clamp(max=SNR_CLIP_COOLDOWN if cooling else SNR_CLIP) / (ratio + 1)
    found = model(levels.add_noise(clean, noise, times), times, texts).float()
    error = (found - target).square()
    if not cooling:
        of_place = 1 + OBJECT_WEIGHT * objects[picked] / latents.PATCH**2
        error = error * (of_place / of_place.mean())[:, None]
    of_channels = error.mean((2, 3)) * (channels if cooling else 1)
    loss: Tensor = (of_channels.mean(1) * weight).mean()
    return loss


def fit(folder: Path, data: Painted, plan: Plan = PLAN, *, sizes: Sizes | None = None) -> nn.Module:
    """Train, or resume from the folder's checkpoint. Returns: the averaged model."""
    tokenizer = write_tokenizer(folder / "tokenizer")
    torch.manual_seed(plan.seed)
    model = build(sizes or Sizes(), tokenizer)
    components = latents.components(data.images[: latents.SAMPLE])
    loss = functools.partial(
        loss_of,
        values=components.of(data.images).half().to(plan.device),
        objects=data.objects.to(plan.device),
        channels=(components.deviations / components.deviations.mean()).to(plan.device),
        tokens=data.tokens.to(plan.device),
        empty=token_ids(tokenizer, [""])[0].short().to(plan.device),
        plan=plan,
        levels=DDPMScheduler(**NOISE_LEVELS),
    )
    return train(model, loss, plan, folder)


def export(model: Any, vae: Any, tokenizer: Any, target: Path) -> None:
    """Write the pipeline in diffusers' format, weights in half precision."""
    pipeline = StableDiffusionPipeline(
        vae=vae.cpu(),
        text_encoder=model.text.cpu(),
        tokenizer=tokenizer,
        unet=model.as_stored().cpu(),
        scheduler=DPMSolverMultistepScheduler(
            **NOISE_LEVELS, timestep_spacing="trailing", steps_offset=1, lambda_min_clipped=-5.1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(dtype=torch.float16).save_pretrained(target, safe_serialization=True)


def load(folder: Path, sizes: Sizes | None = None) -> tuple[Denoiser, Any, int]:
    """Return the averaged model of a folder, its tokenizer, and its number of steps."""
    tokenizer = write_tokenizer(folder / "tokenizer")
    model = build(sizes or Sizes(), tokenizer)
    step = averaged(model, folder)
    return model.eval().requires_grad_(False), tokenizer, step


def main() -> None:
    """Run the training program."""
    parser = arguments.parser(__doc__, PLAN, SCENES, exports=True)
    parser.add_argument("--autoencoder", type=Path, help="folder of training.autoencoder, for the export")
    given = parser.parse_args()
    plan = arguments.plan_of(given, PLAN)
    if given.export:
        model, tokenizer, steps = load(given.folder)
        vae, _ = autoencoder.load(given.autoencoder)
        export(model, vae, tokenizer, given.export)
        print(f"{given.export}: after {steps} steps")
    else:
        arguments.fit_painted(given, plan, fit)


if __name__ == "__main__":
    main()
