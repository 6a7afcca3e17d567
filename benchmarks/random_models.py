"""Checkpoints of released architectures with random weights, in the libraries' layouts. Nothing is downloaded.

Random weights do not affect the time. They are drawn on the device and in the dtype in which they are saved, so a
GPU draws billions of them in seconds. Tokenizers are those of the tests, which spell most words letter by letter:
captions are padded to the encoder's length in any case.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

sys.path.append(str(Path(__file__).parents[1] / "tests"))

T5_LAYERS = 2  # of 24: the text encoder of Flux runs once per call, and 9 GB of weights would have to be written
_BETAS: Mapping[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
_CLIP_L = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
}
_BIG_G = {
    "vocab_size": 49408,
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}


@contextlib.contextmanager
def _drawn(device: str, dtype: torch.dtype) -> Iterator[None]:
    """Draw new weights on ``device`` in ``dtype``, from a fixed seed."""
    before = torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


def _clip_text(kind: type, sizes: Mapping[str, Any], tokenizer: Any) -> Any:
    size = len(tokenizer)
    ids = {"bos_token_id": size - 2, "eos_token_id": size - 1, "pad_token_id": size - 1}
    return kind(transformers.CLIPTextConfig(**sizes, **ids))


def _vae(**settings: Any) -> Any:
    return diffusers.AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        **settings,
    )


def _sd15(folder: Path, drawn: AbstractContextManager[None]) -> Any:
    """Return Stable Diffusion 1.5 without its safety checker."""
    from helpers.tiny_pipelines import clip_tokenizer

    tokenizer = clip_tokenizer(folder)
    with drawn:
        text_encoder = _clip_text(transformers.CLIPTextModel, _CLIP_L, tokenizer)
        # the other sizes are the class's defaults
        unet = diffusers.UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
        vae = _vae(latent_channels=4, sample_size=512)
    return diffusers.StableDiffusionPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        unet=unet,
        vae=vae,
        scheduler=diffusers.DDIMScheduler(**_BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sdxl(folder: Path, drawn: AbstractContextManager[None]) -> Any:
    """Return Stable Diffusion XL 1.0."""
    from helpers.tiny_pipelines import clip_tokenizer

    tokenizer = clip_tokenizer(folder)
    with drawn:
        text_encoder = _clip_text(transformers.CLIPTextModel, _CLIP_L, tokenizer)
        text_encoder_2 = _clip_text(transformers.CLIPTextModelWithProjection, _BIG_G, tokenizer)
        unet = diffusers.UNet2DConditionModel(
            sample_size=128,
            cross_attention_dim=2048,
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )
        vae = _vae(latent_channels=4, sample_size=1024, scaling_factor=0.13025)
    return diffusers.StableDiffusionXLPipeline(
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        text_encoder=text_encoder,
        text_encoder_2=text_encoder_2,
        unet=unet,
        vae=vae,
        scheduler=diffusers.EulerDiscreteScheduler(timestep_spacing="leading", steps_offset=1, **_BETAS),
        add_watermarker=False,
    )


def _flux(folder: Path, drawn: AbstractContextManager[None]) -> Any:
    """Return FLUX.1-dev with `T5_LAYERS` layers of its second text encoder."""
    from helpers.tiny_pipelines import clip_tokenizer, t5_tokenizer

    tokenizer = clip_tokenizer(folder)
    t5 = transformers.T5Config(
        d_model=4096,
        d_ff=10240,
        d_kv=64,
        num_heads=64,
        num_layers=T5_LAYERS,
        feed_forward_proj="gated-gelu",
    )
    with drawn:
        text_encoder = _clip_text(transformers.CLIPTextModel, _CLIP_L, tokenizer)
        text_encoder_2 = transformers.T5EncoderModel(t5)
        transformer = diffusers.FluxTransformer2DModel(guidance_embeds=True)  # the sizes are the class's defaults
        vae = _vae(
            latent_channels=16,
            sample_size=1024,
            scaling_factor=0.3611,
            shift_factor=0.1159,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
    return diffusers.FluxPipeline(
        tokenizer=tokenizer,
        tokenizer_2=t5_tokenizer(),
        text_encoder=text_encoder,
        text_encoder_2=text_encoder_2,
        transformer=transformer,
        vae=vae,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(
            shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15
        ),
    )


PIPELINES: Mapping[str, Callable[[Path, AbstractContextManager[None]], Any]] = {
    "sd15": _sd15,
    "sdxl": _sdxl,
    "flux": _flux,
}


def parameters_of(pipe: Any) -> dict[str, int]:
    """Return the number of parameters of every component with weights."""
    parts = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    return {name: sum(values.numel() for values in part.parameters()) for name, part in parts.items()}


def draw_pipeline(name: str, folder: Path, dtype: torch.dtype, device: str) -> Any:
    """Return a pipeline of `PIPELINES`. Its tokenizer's files go to ``folder``."""
    return PIPELINES[name](folder, _drawn(device, dtype))


def write_pipeline(name: str, folder: Path, dtype: torch.dtype, device: str) -> Path:
    """Write the checkpoint of a pipeline of `PIPELINES` to ``folder / name``, and return that path."""
    draw_pipeline(name, folder / f"{name}-tokenizer", dtype, device).save_pretrained(folder / name)
    return folder / name


def draw_grounding_dino(device: str) -> Any:
    """Return GroundingDINO with Swin-T: 172 M parameters, float32."""
    swin = transformers.SwinConfig(
        embed_dim=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24], out_features=["stage2", "stage3", "stage4"]
    )
    config = transformers.GroundingDinoConfig(backbone_config=swin, text_config=transformers.BertConfig())
    with _drawn(device, torch.float32):
        return transformers.GroundingDinoForObjectDetection(config)


def draw_sam(size: str, device: str) -> Any:
    """Return SAM, float32, with its ViT-B (94 M parameters) if ``size`` is "b", with its ViT-H (641 M) if "h"."""
    vision = transformers.SamVisionConfig()
    if size == "h":
        vision = transformers.SamVisionConfig(
            hidden_size=1280,
            num_hidden_layers=32,
            num_attention_heads=16,
            mlp_dim=5120,
            global_attn_indexes=[7, 15, 23, 31],
        )
    with _drawn(device, torch.float32):
        return transformers.SamModel(transformers.SamConfig(vision_config=vision.to_dict()))


def write_detector_and_sam(folder: Path, *, sam: str, device: str) -> None:
    """Write GroundingDINO and SAM to the folders ``grounding_dino`` and ``sam``. Args: sam: as in `draw_sam`."""
    from helpers.tiny_detectors import bert_tokenizer

    draw_grounding_dino(device).save_pretrained(folder / "grounding_dino")
    images = transformers.GroundingDinoImageProcessor()
    transformers.GroundingDinoProcessor(images, bert_tokenizer()).save_pretrained(folder / "grounding_dino")
    draw_sam(sam, device).save_pretrained(folder / "sam")
    transformers.SamProcessor(transformers.SamImageProcessor()).save_pretrained(folder / "sam")
