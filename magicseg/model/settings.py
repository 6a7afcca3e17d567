"""Settings that decide the model's shape. The defaults are the paper's (arXiv 2603.19575); no torch here."""

from typing import Literal

from pydantic import Field

from magicseg.settings import Settings


class EncoderSettings(Settings):
    """The image and text encoder. ``miniature`` is a small one that is trained from scratch."""

    name: Literal["miniature"] = "miniature"
    image_size: int = Field(default=64, ge=8, description="pixels that the positional embedding is made for")
    stride: Literal[4, 8, 16] = Field(default=8, description="pixels per token and side")
    width: int = Field(default=128, ge=8, multiple_of=8, description="token width")
    layers: int = Field(default=3, ge=1)
    heads: int = Field(default=4, ge=1)
    embed_dim: int = Field(default=128, ge=8, description="width of the joint image-text space")
    freeze: bool = False


class ModelSettings(Settings):
    """Encoder, prompts and mask decoder."""

    encoder: EncoderSettings = EncoderSettings()
    prompt_tokens: int = Field(default=10, ge=0, description="deep visual prompts per layer")
    prompt_dropout: float = Field(default=0.1, ge=0, lt=1)
    drop_path: float = Field(default=0.1, ge=0, lt=1, description="of the deepest layer; grows with depth")
    decoder_layers: int = Field(default=3, ge=1)
    decoder_width: int = Field(default=512, ge=8)
    decoder_heads: int = Field(default=8, ge=1)
    class_prompt: str = Field(default="a photo of a {}", pattern=r"\{\}", description="for the text encoder")
