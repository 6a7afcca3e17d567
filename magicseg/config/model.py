"""Settings of the model's architecture. Importing this loads no torch.

Sizes are those of the paper (arXiv 2603.19575). Its layers are those of ``decoder: zegclip`` (docs/method.md).
"""

from collections.abc import Mapping
from pathlib import PurePath
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from magicseg.core.errors import ConfigError
from magicseg.core.settings import Settings
from magicseg.labels.templates import load_templates
from magicseg.weights import PinnedSettings, Weights

_ONE_FILE = frozenset({".safetensors", ".pt", ".pth", ".bin"})
_CONFIG = "open_clip_config.json"
_SETTING = "encoder.weights.model"


class EncoderSettings(Settings):
    """The encoder ``miniature``: a small image and text encoder, trained from scratch."""

    name: Literal["miniature"] = "miniature"
    image_size: int = Field(default=64, ge=8, description="image side of the positional embedding, pixels")
    stride: Literal[4, 8, 16] = Field(default=8, description="side of a patch, pixels")
    width: int = Field(default=128, ge=8, multiple_of=8, description="token width")
    layers: int = Field(default=3, ge=1)
    heads: int = Field(default=4, ge=1)
    embed_dim: int = Field(default=128, ge=8, description="width of the joint image-text space")
    freeze: bool = False


class ClipWeights(PinnedSettings):
    """Weights of an open_clip model: one file, or a folder (or a repository of the hub) in its ``local-dir:`` format.

    Such a folder has ``open_clip_config.json``, the weights, and a tokenizer's files where the model needs its own.
    """

    file: str = Field("open_clip_model.safetensors", description="the weights' file in a folder or repository")

    @property
    def is_one_file(self) -> bool:
        """Whether ``model`` is a path to a file, by its suffix."""
        return self.revision is None and PurePath(self.model).suffix in _ONE_FILE


class OpenClipSettings(Settings):
    """A vision transformer of open_clip with its text tower, ``open-clip``."""

    name: Literal["open-clip"]
    architecture: str | None = Field(
        None, description="an open_clip model such as ViT-B-16-quickgelu; null: as in open_clip_config.json"
    )
    weights: ClipWeights | None = Field(description="null: random weights from the seed")
    image_size: int | None = Field(
        None, ge=8, description="image side that the positional embedding is resized to, pixels; null: as pretrained"
    )
    position_resize: Literal["bicubic", "bilinear"] = Field(
        default="bicubic",
        description="how the positional embedding is resized: bicubic with antialiasing, as open_clip does it, "
        "or bilinear, as the paper's release does it",
    )
    freeze: bool | Literal["text"] = Field(default=True, description='"text": only the text tower')

    @model_validator(mode="after")
    def _has_an_architecture(self) -> Self:
        if self.architecture is None and (self.weights is None or self.weights.is_one_file):
            what = "random weights" if self.weights is None else "weights in one file"
            raise ValueError(f"{what} need an architecture, such as ViT-B-16-quickgelu")
        return self


def _name_of(encoder: Any) -> Any:
    """Return the encoder's name. Settings from before there was a choice have none: ``miniature``."""
    return encoder.get("name", "miniature") if isinstance(encoder, Mapping) else getattr(encoder, "name", None)


AnyEncoderSettings = Annotated[
    Annotated[EncoderSettings, Tag("miniature")] | Annotated[OpenClipSettings, Tag("open-clip")],
    Discriminator(
        _name_of,
        custom_error_type="encoder_name",
        custom_error_message="there is no such encoder; name is one of miniature, open-clip",
    ),
]


class ModelSettings(Settings):
    """Encoder, prompts and mask decoder."""

    encoder: AnyEncoderSettings = EncoderSettings()
    prompt_tokens: int = Field(default=10, ge=0, description="deep visual prompts per layer")
    prompt_dropout: float = Field(default=0.1, ge=0, lt=1)
    drop_path: float = Field(
        default=0.1, ge=0, lt=1, description="rate of the deepest layer; grows linearly with depth"
    )
    decoder: Literal["pre-norm", "zegclip"] = Field(
        default="pre-norm",
        description="zegclip: the paper's release, also in its prompts' norm, and windows average probabilities",
    )
    decoder_layers: int = Field(default=3, ge=1)
    decoder_width: int = Field(default=512, ge=8, description="zegclip: as wide as the joint image-text space")
    decoder_heads: int = Field(default=8, ge=1)
    upsampling: Literal["bilinear", "guided"] = Field(
        default="bilinear",
        description="of mask logits, from patches to pixels; guided: by learned weights along the image's edges",
    )
    class_prompt: str = Field(
        default="a photo of a {}",
        description="text of a class name: a template with {}, or a shipped set: photo, ensemble",
    )

    @field_validator("class_prompt")
    @classmethod
    def _is_a_template_or_a_set(cls, text: str) -> str:
        _templates(text)
        return text

    @property
    def templates(self) -> tuple[str, ...]:
        """The texts that a class's name is inserted into; each has one ``{}``."""
        return _templates(self.class_prompt)


def _templates(class_prompt: str) -> tuple[str, ...]:
    if "{}" in class_prompt:
        return (class_prompt,)
    try:
        return load_templates(class_prompt)
    except ConfigError as error:
        raise ValueError(f"{error.message} ({error.hint}), and a template has a {{}}") from None


def encoder_weights(settings: ModelSettings, *, prefix: str = "") -> tuple[Weights, ...]:
    """Return the pretrained weights that a model begins with. Args: prefix: of the setting's name: "train."."""
    encoder = settings.encoder
    if not isinstance(encoder, OpenClipSettings) or encoder.weights is None:
        return ()
    chosen = encoder.weights
    files: tuple[str, ...] = ()
    if not chosen.is_one_file:
        required = (chosen.file,) if encoder.architecture else (chosen.file, _CONFIG)
        files = (*required, "*.json", "*.txt", "*.model")  # the configuration's and the tokenizer's
    return (Weights(setting=prefix + _SETTING, model=chosen.model, revision=chosen.revision, files=files),)


def deciding_settings(settings: ModelSettings) -> dict[str, Any]:
    """Return the settings as plain data, with pretrained weights as a content digest instead of a path.

    Raises: BackendError if the weights are missing or cannot be read.
    """
    from magicseg.weights.content import content_identity

    data = settings.model_dump(mode="json", exclude=set(settings.NEUTRAL))
    for weights in encoder_weights(settings):
        data["encoder"]["weights"] = content_identity(weights, f"train.{weights.setting}")
    return data
