"""The settings of detectors and segmenters."""

import re
from typing import ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from magicseg.config.model import ClipWeights, ModelSettings, OpenClipSettings
from magicseg.core.paths import absolute
from magicseg.weights import PinnedSettings

_FILE = re.compile(r"[\w.-]+(?:/[\w.-]+)*\.pth", re.ASCII)


class ModelOptions(PinnedSettings):
    """The weights, and the device that computes.

    ``AUTOCAST``: whether ``dtype: auto`` keeps the weights in float32 on a GPU, and torch's autocast chooses the
    operations that run in 16 bits.
    """

    LATER: ClassVar[frozenset[str]] = frozenset({"compile"})
    AUTOCAST: ClassVar[bool] = False

    device: Literal["cuda", "cpu"] = "cuda"
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        "auto",
        description="auto: float32 on the CPU; on a GPU bfloat16 if it has it in hardware, else float16 (detectors: "
        "by autocast)",
    )
    cpu_threads: int = Field(1, ge=1, le=1024, description="on the CPU; results differ with it in the last bits")
    compile: Literal["off", "encoder"] = Field("off", description="torch.compile of the part that encodes images")

    @model_validator(mode="before")
    @classmethod
    def _float_on_cpu(cls, values: object) -> object:
        if isinstance(values, dict) and values.get("device") == "cpu" and values.get("dtype", "auto") == "auto":
            return values | {"dtype": "float32"}
        return values

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.device == "cpu" and self.dtype == "float16":
            raise ValueError("float16 is for cuda; on the cpu use float32 or bfloat16")
        return self


class DetectorOptions(ModelOptions):
    """A detector of the transformers library."""

    AUTOCAST: ClassVar[bool] = True  # bfloat16 has 8 bits for a coordinate between 0 and 1

    text_length: int = Field(
        64, ge=8, le=256, description="tokens of a caption, padded to it; more labels are split over several captions"
    )


class Sam3Options(ModelOptions):
    """SAM 3, which finds and outlines all instances of a label."""

    AUTOCAST: ClassVar[bool] = True

    candidates: int = Field(32, ge=1, le=200, description="the most candidates of a label, the best ones")


class ClipOptions(ModelOptions):
    """An open_clip model, which scores whole images. See `magicseg.config.model.OpenClipSettings`."""

    file: str = Field("open_clip_model.safetensors", description="of a folder or a repository: the weights' file")
    architecture: str | None = Field(
        None, description="an open_clip model such as ViT-B-16-quickgelu; null: what open_clip_config.json says"
    )
    against: tuple[str, ...] = Field(
        min_length=1, description='what a label competes with: other labels, and names of "nothing"'
    )
    class_prompt: str = Field(default="a photo of a {}", description="a template, or a shipped set: photo, ensemble")
    dtype: Literal["float32"] = "float32"
    compile: Literal["off"] = "off"

    @model_validator(mode="after")
    def _has_an_architecture_and_templates(self) -> Self:
        _ = self.settings
        return self

    @property
    def settings(self) -> ModelSettings:
        """The model, with the settings of training."""
        weights = ClipWeights(model=self.model, revision=self.revision, file=self.file)
        encoder = OpenClipSettings(name="open-clip", architecture=self.architecture, weights=weights)
        return ModelSettings(encoder=encoder, class_prompt=self.class_prompt)


class SegmenterOptions(ModelOptions):
    """A promptable segmenter of the transformers library."""


class OriginalDetectorOptions(DetectorOptions):
    """groundingdino-py: its checkpoint, its configuration, and the folder of its text encoder."""

    NEUTRAL: ClassVar[frozenset[str]] = frozenset({"config"})  # see `identity`

    file: str = Field("groundingdino_swint_ogc.pth", description="the checkpoint's name inside the folder or the hub")
    config: str = Field("swin-t", description="swin-t, swin-b, or the path of a configuration like the library's")
    text_encoder: PinnedSettings = Field(
        description="bert-base-uncased: a folder, or its name on the hub; only its tokenizer and config.json are read"
    )
    dtype: Literal["float32"] = "float32"
    compile: Literal["off"] = "off"
    shortest_edge: int = Field(800, ge=32, le=4096, description="the image's shorter side, in pixels")
    longest_edge: int = Field(1333, ge=32, le=8192, description="its longer side at most, in pixels")

    @field_validator("file")
    @classmethod
    def _is_a_name(cls, value: str) -> str:
        return checkpoint_name(value)

    @field_validator("config")
    @classmethod
    def _absolute(cls, value: str) -> str:
        return value if value in ("swin-t", "swin-b") else absolute(value)


class OriginalSegmenterOptions(ModelOptions):
    """segment-anything: its checkpoint and the checkpoint's architecture."""

    file: str = Field("sam_vit_h_4b8939.pth", description="the checkpoint's name inside the folder or the hub")
    architecture: str = Field("vit_h", pattern=r"^\w+$", description="vit_h, vit_l or vit_b")
    dtype: Literal["float32"] = "float32"

    @field_validator("file")
    @classmethod
    def _is_a_name(cls, value: str) -> str:
        return checkpoint_name(value)


def checkpoint_name(value: str) -> str:
    """Return ``value`` if it is a file name inside the model's folder, or raise ValueError."""
    if not _FILE.fullmatch(value) or ".." in value.split("/"):
        raise ValueError(f"is the name of a .pth file inside the model's folder, not {value!r}")
    return value
