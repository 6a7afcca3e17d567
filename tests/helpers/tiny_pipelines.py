"""Checkpoints of every family with random weights, about a megabyte each, in the hub's layout."""

import itertools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    PNDMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from helpers.tiny_parts import FLOW_VAE, WORDS, t5_encoder, t5_tokenizer, vae
from helpers.tiny_recent_pipelines import RECENT

_BETAS: Mapping[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
_SD_STEPS: Mapping[str, Any] = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}


def clip_tokenizer(folder: Path) -> CLIPTokenizer:
    """Return a byte pair tokenizer with a few whole words and single letters for all other text."""
    letters = [chr(code) for code in (*range(33, 127), *range(161, 173), *range(174, 256))]
    letters += [chr(256 + number) for number in range(256 - len(letters))]
    merges: dict[tuple[str, str], None] = {}
    for word in WORDS:
        signs = [*word[:-1], word[-1] + "</w>"]
        for end in range(1, len(signs)):
            merges["".join(signs[:end]), signs[end]] = None
    vocabulary = [*letters, *(letter + "</w>" for letter in letters), *map("".join, merges)]
    vocabulary = [*dict.fromkeys(vocabulary), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    folder.joinpath("vocab.json").write_text(json.dumps({word: id_ for id_, word in enumerate(vocabulary)}))
    folder.joinpath("merges.txt").write_text("#version: 0.2\n" + "\n".join(map(" ".join, merges)) + "\n")
    end = "<|endoftext|>"
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "bos_token": "<|startoftext|>"}
    settings |= {"eos_token": end, "unk_token": end, "pad_token": end}
    folder.joinpath("tokenizer_config.json").write_text(json.dumps(settings))
    return CLIPTokenizer.from_pretrained(folder)


def _clip(tokenizer: CLIPTokenizer, kind: type = CLIPTextModel, **settings: Any) -> Any:
    size = len(tokenizer)
    return kind(
        CLIPTextConfig(
            vocab_size=size,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            bos_token_id=size - 2,
            eos_token_id=size - 1,
            pad_token_id=size - 1,
            **settings,
        )
    )


def _unet(**settings: Any) -> UNet2DConditionModel:
    defaults: dict[str, Any] = {
        "sample_size": 8,
        "layers_per_block": 1,
        "block_out_channels": (32, 64),
        "norm_num_groups": 8,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 32,
        "attention_head_dim": 8,
    }
    return UNet2DConditionModel(**defaults | settings)


def _checker() -> StableDiffusionSafetyChecker:
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    vision = tower | {"image_size": 32, "patch_size": 16}
    checker = StableDiffusionSafetyChecker(CLIPConfig(text_config=tower, vision_config=vision, projection_dim=32))
    for weights in (checker.concept_embeds_weights, checker.special_care_embeds_weights):
        torch.nn.init.constant_(weights, 2.0)  # no image reaches this similarity, so none is flagged
    return checker


def _stable_diffusion(
    folder: Path, *, prediction: str = "epsilon", checker: bool = False, scheduler: Any = None
) -> Any:
    tokenizer = clip_tokenizer(folder)
    return StableDiffusionPipeline(
        vae=vae(),
        text_encoder=_clip(tokenizer),
        tokenizer=tokenizer,
        unet=_unet(),
        scheduler=scheduler or DDIMScheduler(prediction_type=prediction, **_BETAS, **_SD_STEPS),
        safety_checker=_checker() if checker else None,
        feature_extractor=CLIPImageProcessor(size=32, crop_size=32) if checker else None,
        requires_safety_checker=checker,
    )


def sd15(folder: Path) -> Any:
    """Return a Stable Diffusion 1.5 with a safety checker that never flags."""
    return _stable_diffusion(folder, checker=True, scheduler=PNDMScheduler(
        skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1, **_BETAS
    ))  # fmt: skip


def sd2(folder: Path) -> Any:
    """Return a Stable Diffusion 2: velocity prediction, no checker."""
    return _stable_diffusion(folder, prediction="v_prediction")


def lcm(folder: Path) -> Any:
    """Return a latent consistency model."""
    tokenizer = clip_tokenizer(folder)
    return LatentConsistencyModelPipeline(
        vae=vae(),
        text_encoder=_clip(tokenizer),
        tokenizer=tokenizer,
        unet=_unet(time_cond_proj_dim=32),
        scheduler=LCMScheduler(**_BETAS, **_SD_STEPS),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl(folder: Path) -> Any:
    """Return a Stable Diffusion XL. Turbo has the same parts."""
    tokenizer = clip_tokenizer(folder)
    unet = _unet(
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 1),
        projection_class_embeddings_input_dim=8 * 6 + 32,
        cross_attention_dim=64,
    )
    return StableDiffusionXLPipeline(
        vae=vae(),
        text_encoder=_clip(tokenizer),
        text_encoder_2=_clip(tokenizer, CLIPTextModelWithProjection, projection_dim=32),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet,
        scheduler=EulerDiscreteScheduler(timestep_spacing="leading", steps_offset=1, **_BETAS),
        add_watermarker=False,
    )


def sd3(folder: Path) -> Any:
    """Return a Stable Diffusion 3 with its three text encoders."""
    tokenizer, spelling = clip_tokenizer(folder), t5_tokenizer()
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=64,
        pooled_projection_dim=64,
    )
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(latent_channels=16, scaling_factor=1.5, **FLOW_VAE),
        text_encoder=_clip(tokenizer, CLIPTextModelWithProjection, projection_dim=32),
        text_encoder_2=_clip(tokenizer, CLIPTextModelWithProjection, projection_dim=32),
        text_encoder_3=t5_encoder(spelling, 64),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        tokenizer_3=spelling,
    )


def flux(folder: Path) -> Any:
    """Return a Flux with embedded guidance, like FLUX.1-dev."""
    tokenizer, spelling = clip_tokenizer(folder), t5_tokenizer()
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=True,
    )
    return FluxPipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae(scaling_factor=1.5, **FLOW_VAE),
        text_encoder=_clip(tokenizer),
        text_encoder_2=t5_encoder(spelling),
        tokenizer=tokenizer,
        tokenizer_2=spelling,
    )


def _pixart(kind: type) -> Any:
    spelling = t5_tokenizer()
    transformer = PixArtTransformer2DModel(
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_channels=32,
        in_channels=4,
        out_channels=8,
        cross_attention_dim=32,
        num_embeds_ada_norm=1000,
    )
    scheduler = DPMSolverMultistepScheduler()
    return kind(
        tokenizer=spelling, text_encoder=t5_encoder(spelling), vae=vae(), transformer=transformer, scheduler=scheduler
    )


def pixart_alpha(folder: Path) -> Any:
    """Return a PixArt-alpha."""
    return _pixart(PixArtAlphaPipeline)


def pixart_sigma(folder: Path) -> Any:
    """Return a PixArt-Sigma."""
    return _pixart(PixArtSigmaPipeline)


FAMILIES: Mapping[str, Callable[[Path], Any]] = {
    **{made.__name__: made for made in (sd15, sd2, sdxl, lcm, sd3, flux, pixart_alpha, pixart_sigma)},
    **RECENT,
}


def build(name: str, folder: Path) -> Path:
    """Write the checkpoint of a family with fixed random weights to ``folder / name``."""
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    try:
        pipe = FAMILIES[name](folder / f"{name}-tokenizer")
        for module in filter(lambda part: isinstance(part, torch.nn.Module), pipe.components.values()):
            for values in itertools.chain(module.parameters(), module.buffers()):
                assert torch.isfinite(values).all()
        pipe.save_pretrained(folder / name)
    finally:
        torch.random.set_rng_state(state)
    return folder / name
