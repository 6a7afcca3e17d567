"""Settings that decide the model's shape. The defaults are the paper's (arXiv 2603.19575); no torch here."""

from typing import Literal

from pydantic import Field

from magicseg.settings import Settings


class EncoderSettings(Settings):
    """The image and text encoder. ``miniature`` is a small one that is trained from scratch."""

    name: Literal["miniature"] = "miniature"
    image_size: int = Field(64, ge=8, description="pixels that the positional embedding is made for")
    stride: Literal[4, 8, 16] = Field(8, description="pixels per token and side")
    width: int = Field(128, ge=8, multiple_of=8, description="token width")
    layers: int = Field(3, ge=1)
    heads: int = Field(4, ge=1)
    embed_dim: int = Field(128, ge=8, description="width of the joint image-text space")
    freeze: bool = False


class ModelSettings(Settings):
    """Encoder, prompts and mask decoder."""

    encoder: EncoderSettings = EncoderSettings()
    prompt_tokens: int = Field(10, ge=0, description="deep visual prompts per layer")
    prompt_dropout: float = Field(0.1, ge=0, lt=1)
    drop_path: float = Field(0.1, ge=0, lt=1, description="of the deepest layer; grows with depth")
    decoder_layers: int = Field(3, ge=1)
    decoder_width: int = Field(512, ge=8)
    decoder_heads: int = Field(8, ge=1)
    class_prompt: str = Field("a photo of a {}", pattern=r"\{\}", description="what the text encoder reads")
