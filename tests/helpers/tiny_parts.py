"""Parts that tiny checkpoints of several families share."""

import string
from collections.abc import Mapping
from typing import Any

from diffusers import AutoencoderKL
from transformers import T5Config, T5EncoderModel, T5Tokenizer

WORDS = ["a", "the", "photo", "of", "cat", "dog", "with", "in", "on", "red"]
FLOW_VAE: Mapping[str, Any] = {"shift_factor": 0.06, "use_quant_conv": False, "use_post_quant_conv": False}


def t5_tokenizer() -> T5Tokenizer:
    """Return a tokenizer of letters and a few whole words."""
    signs = string.ascii_letters + string.digits + string.punctuation
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -10.0), ("▁", -2.0)]
    pieces += [(sign, -3.0) for sign in signs] + [("▁" + word, -4.0) for word in WORDS if len(word) > 1]
    return T5Tokenizer(vocab=pieces, extra_ids=0)


def t5_encoder(tokenizer: T5Tokenizer, width: int = 32) -> T5EncoderModel:
    """Return a text encoder of ``width`` features."""
    return T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=width,
            d_ff=64,
            d_kv=8,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
        )
    )


def vae(latent_channels: int = 4, **settings: Any) -> AutoencoderKL:
    """Return an autoencoder that halves the image three times."""
    return AutoencoderKL(
        latent_channels=latent_channels,
        block_out_channels=(8, 16, 16, 16),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        **settings,
    )
