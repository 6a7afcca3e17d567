"""Check an open_clip configuration: sizes and switches of open_clip's own towers, and no names of code.

The configuration comes with the weights or a saved model, so it is not trusted. Keys that are not listed here are
refused, including those of timm's and transformers' towers.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from magicseg.core.errors import ConfigError
from magicseg.core.setting_errors import first_fault
from magicseg.core.text import printable

_DRIVEN = (
    "magicseg supports open_clip's own vision transformers with a class token and learned pooling by 'tok' or 'avg' "
    "(ViT-*, OpenAI's, LAION's, DataComp's, CLIPA's), not ResNets, timm towers (SigLIP, EVA, PE) or CoCa"
)
_MOST_POSITIONS = 1 << 26  # patches times width
_Size = Annotated[int, Field(ge=1, le=1 << 20)]
_Layers = Annotated[int, Field(ge=1, le=256)]
_Numbers = dict[str, int | float | bool | Annotated[str, Field(max_length=40)]]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class _Tower(_Part):
    layers: _Layers = 12
    width: _Size = 512
    mlp_ratio: float = Field(4.0, gt=0, le=100)
    ls_init_value: float | None = None
    final_ln_after_pool: bool = False
    pool_type: str = "tok"
    output_tokens: bool = False
    act_kwargs: _Numbers | None = None
    norm_kwargs: _Numbers | None = None
    block_type: Literal["default", "custom"] | None = None
    qk_norm: bool = False
    scaled_cosine_attn: bool = False
    scale_heads: bool = False
    scale_attn_inner: bool = False
    scale_attn: bool = False
    scale_fc: bool = False


class _Vision(_Tower):
    head_width: _Size = 64
    patch_size: _Size = 16
    image_size: _Size | Annotated[list[_Size], Field(min_length=2, max_length=2)] = 224
    patch_dropout: float = Field(0.0, ge=0, lt=1)
    attentional_pool: Literal[False] = False
    attn_pooler_queries: _Size = 256
    attn_pooler_heads: _Size = 8
    no_ln_pre: bool = False
    pos_embed_type: Literal["learnable", "sin_cos_2d"] = "learnable"
    timm_model_name: None = None
    timm_model_pretrained: bool = False
    timm_pool: str = ""
    timm_proj: str | None = None
    timm_proj_bias: bool = False
    timm_drop: float = 0.0
    timm_drop_path: float | None = None

    @model_validator(mode="after")
    def _is_of_a_size(self) -> Self:
        sides = self.image_size if isinstance(self.image_size, list) else [self.image_size] * 2
        patches = (sides[0] // self.patch_size) * (sides[1] // self.patch_size)
        if patches * self.width > _MOST_POSITIONS:
            raise ValueError(f"{patches} patches of width {self.width} are too many")
        return self


class _TokenizerOptions(_Part):
    """Allowed arguments of open_clip's tokenizers: not ``trust_remote_code``, and no path."""

    clean: str | None = Field(None, pattern=r"^[a-z]{1,20}$")
    strip_sep_token: bool | None = None
    language: str | None = Field(None, pattern=r"^\w{1,20}$")
    additional_special_tokens: list[str] | None = Field(None, max_length=1000)


class _Text(_Tower):
    context_length: Annotated[int, Field(ge=1, le=1 << 12)] = 77
    vocab_size: Annotated[int, Field(ge=1, le=1 << 24)] = 49408
    hf_tokenizer_name: str | None = Field(None, max_length=200)
    tokenizer_mode: Literal["clips", ""] | None = None
    tokenizer_kwargs: _TokenizerOptions | None = None
    heads: _Size = 8
    embed_cls: bool = False
    pad_id: int = 0
    eos_id: int = 2
    no_causal_mask: bool = False
    pool_type: str = "argmax"
    proj_bias: bool = False
    proj_type: Literal["linear", "none"] | None = "linear"
    hf_model_name: None = None
    hf_model_pretrained: bool = True
    hf_proj_type: str | None = None
    hf_pooler_type: str | None = None


class _Model(_Part):
    embed_dim: _Size
    vision_cfg: _Vision
    text_cfg: _Text
    custom_text: bool = False
    quick_gelu: bool = False
    init_logit_scale: float = 1.0
    init_logit_bias: float | None = None
    nonscalar_logit_scale: bool = False


def check_clip_config(config: Mapping[str, Any], source: object) -> None:
    """Raise ConfigError if the kind of model is not supported, or a key or value is not allowed above.

    Args: source: named in the message.
    """
    vision, text = config.get("vision_cfg"), config.get("text_cfg")
    if not isinstance(vision, dict) or not isinstance(text, dict):
        raise ConfigError("the open_clip model's configuration has no vision_cfg and text_cfg")
    reason = _not_driven(config, vision, text)
    if reason:
        raise ConfigError(f"this open_clip model cannot be used: it has {printable(reason, 300)}", hint=_DRIVEN)
    try:
        _Model.model_validate(config)
    except ValidationError as error:
        raise ConfigError(
            f"{source}: this open_clip model cannot be used: {first_fault(error)}",
            hint="only open_clip's own sizes and switches are allowed; remove keys that name code or files",
        ) from None


def _not_driven(config: Mapping[str, Any], vision: Mapping[str, Any], text: Mapping[str, Any]) -> str | None:
    if vision.get("timm_model_name"):
        return f"a timm image tower ({vision['timm_model_name']})"
    if isinstance(vision.get("layers", 12), list | tuple):
        return "a ResNet for images"
    if vision.get("attentional_pool") or "multimodal_cfg" in config:
        return "attentional pooling (CoCa): its image embedding is not a token"
    if vision.get("pool_type", "tok") not in {"tok", "avg"}:
        return f"pooling of kind {vision['pool_type']!r}"
    if text.get("hf_model_name"):
        return f"a text tower of transformers ({text['hf_model_name']}), whose configuration is on the hub"
    return None
