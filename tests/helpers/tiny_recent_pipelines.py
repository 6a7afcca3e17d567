"""Checkpoints of the families whose texts are read by a language model, with random weights, in the hub's layout."""

import string
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from diffusers import (
    AutoencoderDC,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    ChromaPipeline,
    ChromaTransformer2DModel,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaSprintPipeline,
    SanaTransformer2DModel,
    SCMScheduler,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from transformers import (
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    PixtralImageProcessor,
    PixtralProcessor,
    PixtralVisionConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
)

from helpers.tiny_parts import FLOW_VAE, WORDS, t5_encoder, t5_tokenizer, vae

_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _byte_letters() -> list[str]:
    """Return the 256 letters of byte-level tokenizers."""
    return [chr(code) for code in (*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324))]


def qwen_tokenizer() -> Qwen2Tokenizer:
    """Return a byte-level tokenizer with a few whole words and a chat template."""
    merges: dict[tuple[str, str], None] = {}
    for word in WORDS:
        letters = "Ġ" + word
        for end in range(1, len(letters)):
            merges[letters[:end], letters[end]] = None
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    words = list(dict.fromkeys([*_byte_letters(), *map("".join, merges), *special]))
    tokenizer = Qwen2Tokenizer(
        vocab={word: number for number, word in enumerate(words)},
        merges=list(merges),
        additional_special_tokens=special[1:],
        model_max_length=4096,
    )
    tokenizer.chat_template = _CHAT
    return tokenizer


def gemma_tokenizer() -> GemmaTokenizer:
    """Return a tokenizer of letters and a few whole words."""
    signs = string.ascii_letters + string.digits + string.punctuation
    merges: dict[tuple[str, str], None] = {}
    for word in WORDS:
        letters = "▁" + word
        for end in range(1, len(letters)):
            merges[letters[:end], letters[end]] = None
    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *signs, *map("".join, merges)]
    words = list(dict.fromkeys(words))
    return GemmaTokenizer(vocab={word: number for number, word in enumerate(words)}, merges=list(merges))


_LANGUAGE: Mapping[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
_ROPE: Mapping[str, Any] = {"axes_dims_rope": (4, 4, 8), "attention_head_dim": 16, "num_attention_heads": 2}


def _flux2_parts() -> dict[str, Any]:
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(),
        "vae": AutoencoderKLFlux2(
            block_out_channels=(8, 16, 16, 16), norm_num_groups=4, latent_channels=4, layers_per_block=1
        ),
    }


def _flux2_transformer(layers: int, *, guidance: bool) -> Flux2Transformer2DModel:
    return Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        joint_attention_dim=32 * layers,
        axes_dims_rope=(4, 4, 4, 4),
        attention_head_dim=16,
        num_attention_heads=2,
        timestep_guidance_channels=16,
        guidance_embeds=guidance,
    )


def flux2(folder: Path) -> Any:
    """Return a FLUX.2 like dev: embedded guidance, a multimodal text encoder of which three layers are read."""
    tokenizer = qwen_tokenizer()
    tokenizer.add_tokens(["[IMG]", "[IMG_BREAK]", "[IMG_END]"], special_tokens=True)
    language = MistralConfig(vocab_size=len(tokenizer), num_hidden_layers=31, head_dim=8, **_LANGUAGE)
    vision = PixtralVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    config = Mistral3Config(text_config=language, vision_config=vision, image_token_index=len(tokenizer) - 3)
    return Flux2Pipeline(
        **_flux2_parts(),
        text_encoder=Mistral3ForConditionalGeneration(config),
        tokenizer=PixtralProcessor(
            image_processor=PixtralImageProcessor(), tokenizer=tokenizer, patch_size=14, chat_template=_CHAT
        ),
        transformer=_flux2_transformer(3, guidance=True),
    )


def _qwen3(kind: type, tokenizer: Qwen2Tokenizer, layers: int) -> Any:
    return kind(Qwen3Config(vocab_size=len(tokenizer), num_hidden_layers=layers, head_dim=8, **_LANGUAGE))


def flux2_klein(folder: Path) -> Any:
    """Return a FLUX.2 klein that is not distilled, so that it takes guidance."""
    tokenizer = qwen_tokenizer()
    return Flux2KleinPipeline(
        **_flux2_parts(),
        text_encoder=_qwen3(Qwen3ForCausalLM, tokenizer, 28),
        tokenizer=tokenizer,
        transformer=_flux2_transformer(3, guidance=False),
    )


def qwen_image(folder: Path) -> Any:
    """Return a Qwen-Image."""
    tokenizer = qwen_tokenizer()
    language = dict(_LANGUAGE) | {
        "vocab_size": len(tokenizer),
        "num_hidden_layers": 2,
        "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
    }
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32}
    special = {"vision_start_token_id": 0, "vision_end_token_id": 1, "image_token_id": 2, "video_token_id": 3}
    return QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 2, 2, 2],
            num_res_blocks=1,
            latents_mean=[0.0] * 4,
            latents_std=[1.0] * 4,
        ),
        text_encoder=Qwen2_5_VLForConditionalGeneration(
            Qwen2_5_VLConfig(text_config=language, vision_config=vision, **special)
        ),
        tokenizer=tokenizer,
        transformer=QwenImageTransformer2DModel(
            in_channels=16, out_channels=4, num_layers=2, joint_attention_dim=32, **_ROPE
        ),
    )


def z_image(folder: Path) -> Any:
    """Return a Z-Image."""
    tokenizer = qwen_tokenizer()
    return ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae(latent_channels=16, scaling_factor=1.5, **FLOW_VAE),
        text_encoder=_qwen3(Qwen3Model, tokenizer, 2),
        tokenizer=tokenizer,
        transformer=ZImageTransformer2DModel(
            dim=32,
            n_layers=1,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=32,
            axes_dims=[4, 4, 8],
            axes_lens=[1024, 64, 64],
        ),
    )


def chroma(folder: Path) -> Any:
    """Return a Chroma."""
    spelling = t5_tokenizer()
    return ChromaPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae(scaling_factor=1.5, **FLOW_VAE),
        text_encoder=t5_encoder(spelling),
        tokenizer=spelling,
        transformer=ChromaTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            joint_attention_dim=32,
            approximator_num_channels=8,
            approximator_hidden_dim=16,
            approximator_layers=1,
            **_ROPE,
        ),
    )


def _gemma(tokenizer: GemmaTokenizer) -> Gemma2Model:
    return Gemma2Model(Gemma2Config(vocab_size=len(tokenizer), num_hidden_layers=2, head_dim=8, **_LANGUAGE))


def lumina2(folder: Path) -> Any:
    """Return a Lumina Image 2."""
    tokenizer = gemma_tokenizer()
    return Lumina2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae(latent_channels=16, scaling_factor=1.5, **FLOW_VAE),
        text_encoder=_gemma(tokenizer),
        tokenizer=tokenizer,
        transformer=Lumina2Transformer2DModel(
            sample_size=8,
            hidden_size=32,
            num_layers=1,
            num_refiner_layers=1,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=16,
            axes_dim_rope=(4, 4, 8),
            axes_lens=(512, 64, 64),
            cap_feat_dim=32,
        ),
    )


def _sana(kind: type, scheduler: Any, *, sprint: bool) -> Any:
    tokenizer = gemma_tokenizer()
    extra = {"guidance_embeds": True, "qk_norm": "rms_norm_across_heads"} if sprint else {}
    return kind(
        tokenizer=tokenizer,
        text_encoder=_gemma(tokenizer),
        vae=AutoencoderDC(
            latent_channels=4,
            attention_head_dim=8,
            encoder_block_types=("ResBlock",) * 6,
            decoder_block_types=("ResBlock",) * 6,
            encoder_block_out_channels=(8, 8, 8, 16, 16, 16),
            decoder_block_out_channels=(8, 8, 8, 16, 16, 16),
            encoder_layers_per_block=(1, 1, 1, 1, 1, 1),
            decoder_layers_per_block=(1, 1, 1, 1, 1, 1),
            encoder_qkv_multiscales=((),) * 6,
            decoder_qkv_multiscales=((),) * 6,
            scaling_factor=0.4,
        ),
        transformer=SanaTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_layers=1,
            num_attention_heads=2,
            attention_head_dim=16,
            num_cross_attention_heads=2,
            cross_attention_head_dim=16,
            cross_attention_dim=32,
            caption_channels=32,
            sample_size=4,
            **extra,
        ),
        scheduler=scheduler,
    )


def sana(folder: Path) -> Any:
    """Return a Sana."""
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    return _sana(SanaPipeline, DPMSolverMultistepScheduler(**flow), sprint=False)


def sana_sprint(folder: Path) -> Any:
    """Return a Sana-Sprint."""
    return _sana(SanaSprintPipeline, SCMScheduler(), sprint=True)


RECENT: Mapping[str, Callable[[Path], Any]] = {
    made.__name__: made for made in (flux2, flux2_klein, qwen_image, z_image, chroma, lumina2, sana, sana_sprint)
}
