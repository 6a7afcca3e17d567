"""The settings of the back end ``diffusers``. All of them affect pixels, except the path of the weights."""

from typing import ClassVar, Literal, Self

from pydantic import Field, field_serializer, field_validator, model_validator

from magicseg.config.finding import OutlineOptions
from magicseg.stages.generate.cache_options import StepCache
from magicseg.stages.generate.families import Family
from magicseg.weights import PinnedSettings

SchedulerName = Literal[
    "default",
    "ddim",
    "ddpm",
    "pndm",
    "euler",
    "euler-ancestral",
    "heun",
    "dpm++-2m",
    "dpm++-2m-karras",
    "unipc",
    "lcm",
    "flow-euler",
    "flow-heun",
]

AttentionName = Literal["default", "native", "math", "native-flash", "cudnn", "flash", "flash-3", "sage"]
_GPU_ATTENTION = ("native-flash", "cudnn", "flash", "flash-3", "sage")


class InpaintOptions(OutlineOptions):
    """How the objects to remove are found, and how their pixels are filled."""

    batch_size: int = Field(16, ge=1, description="images in one call of detector and segmenter")
    grow: float = Field(0.03, ge=0, le=0.5, description="margin around an object, as a share of the image's side")
    strength: float = Field(1.0, gt=0, le=1, description="how much of the noise the filled pixels start from")
    max_area: float = Field(0.6, gt=0, le=1, description="share of the image to fill; more is no counterfactual")


class DiffusersOptions(PinnedSettings):
    """The weights, sampling, counterfactuals, and memory savings."""

    NEUTRAL: ClassVar[frozenset[str]] = frozenset({"drop_t5"})  # see `identity`
    LATER: ClassVar[frozenset[str]] = frozenset(
        {"attention", "fuse_qkv", "channels_last", "cache", "quantization", "family"}
    )

    model: str = Field(description="a name on the hub, or the path of a folder with model_index.json")
    variant: str | None = Field(None, pattern=r"^\w+$", description="weight files with this infix, such as fp16")
    family: Family | None = Field(
        None, description="how to call a pipeline of diffusers whose family this back end does not know"
    )
    drop_t5: bool = Field(False, description="Stable Diffusion 3 without its T5 text encoder, for less memory")
    safety_checker: bool = Field(True, description="use the checkpoint's own, if it has one")

    scheduler: SchedulerName = Field("default", description="default: the checkpoint's own")
    steps: int = Field(20, ge=1, le=1000)
    guidance: float = Field(7.5, ge=0, le=50, description="1 or less: no guidance (Flux: embedded guidance)")
    negative_prompt: str = Field("", description="the same for both images of all pairs")
    text_length: int | None = Field(
        None, ge=16, le=512, description="tokens of the T5 encoder or language model; None: the family's usual number"
    )

    counterfactual: Literal["replace", "rewrite", "inpaint"] = Field(
        "replace",
        description="replace: class words by 'nothing'; rewrite: the captioner's scene without objects; inpaint: the "
        "image itself, with the objects' pixels filled",
    )
    inpaint: InpaintOptions | None = Field(None, description="for counterfactual: inpaint")
    noise: Literal["independent", "shared"] = Field("independent", description="initial noise of a pair's images")
    shared_steps: int = Field(0, ge=0, description="first steps after which the counterfactual takes on the latents")

    retries: int = Field(3, ge=0, le=20, description="new tries of a pair with a black, flat or unsafe image")
    min_contrast: float = Field(2.0, ge=0, le=100, description="standard deviation below which an image is flat")

    device: Literal["cuda", "cpu"] = "cuda"
    dtype: Literal["float32", "float16", "bfloat16"] = "float16"
    cpu_threads: int = Field(1, ge=1, le=1024, description="on the CPU; results differ with it in the last bits")
    attention: AttentionName = Field("default", description="diffusers' attention back end; default: the library's")
    compile: Literal["off", "denoiser", "regional"] = Field(
        "off", description="torch.compile of the denoiser, or of its repeated blocks only"
    )
    fuse_qkv: bool = Field(False, description="one matrix for the projections to queries, keys and values")
    channels_last: bool = Field(False, description="memory layout of convolutions in denoiser and VAE")
    cache: StepCache | None = Field(None, description="reuse what changes little from step to step")
    quantization: Literal["int8-weights", "int8", "fp8-weights", "fp8"] | None = Field(
        None, description="8-bit linear layers of the denoiser: weights alone, or activations too; needs torchao"
    )
    offload: Literal["none", "model", "group", "sequential"] = Field(
        "none", description="weights wait in the CPU's memory"
    )
    attention_slicing: bool = Field(False, description="less memory, slower")
    vae_slicing: bool = Field(False, description="decode image by image: less memory")

    @field_validator("compile", mode="before")
    @classmethod
    def _named(cls, value: object) -> object:
        """Accept true and false, which older runs have."""
        return {True: "denoiser", False: "off"}[value] if isinstance(value, bool) else value

    @field_serializer("compile", when_used="json")
    def _as_before(self, value: str) -> bool | str:
        """Write true and false, so that older runs keep their fingerprints."""
        return {"denoiser": True, "off": False}.get(value, value)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.negative_prompt and self.guidance <= 1:
            raise ValueError(f"negative_prompt has no effect with guidance {self.guidance:g}; it needs more than 1")
        if self.shared_steps >= self.steps:
            raise ValueError(f"shared_steps is {self.shared_steps}: it must be below steps, which is {self.steps}")
        if self.shared_steps and self.noise != "shared":
            raise ValueError("shared_steps needs noise: shared")
        if (self.counterfactual == "inpaint") != (self.inpaint is not None):
            raise ValueError("counterfactual: inpaint and the group inpaint, which names the detector, go together")
        if self.inpaint and self.noise != "independent":
            raise ValueError("noise: shared has no effect with counterfactual: inpaint")
        if self.inpaint and int(self.steps * self.inpaint.strength) < 1:
            raise ValueError(f"inpaint.strength {self.inpaint.strength:g} of {self.steps} steps leaves none")
        if self.device == "cpu" and self.dtype == "float16":
            raise ValueError("float16 is for cuda; on the cpu use float32 or bfloat16")
        if self.device == "cpu" and self.offload != "none":
            raise ValueError("offload is for cuda")
        return self

    @model_validator(mode="after")
    def _speed_settings_fit(self) -> Self:
        if self.attention in _GPU_ATTENTION and self.device == "cpu":
            raise ValueError(f"attention: {self.attention} is for cuda")
        if self.attention in _GPU_ATTENTION and self.dtype == "float32":
            raise ValueError(f"attention: {self.attention} needs dtype float16 or bfloat16")
        if self.attention_slicing and (self.fuse_qkv or self.attention != "default"):
            raise ValueError("attention_slicing replaces the attention that fuse_qkv and attention set; use one")
        if self.cache is not None and self.inpaint:
            raise ValueError("cache does not work with counterfactual: inpaint")
        if self.quantization is not None:
            self._check_quantization()
        return self

    def _check_quantization(self) -> None:
        if self.dtype != "bfloat16":
            raise ValueError("quantization needs dtype bfloat16")
        if self.quantization == "fp8" and self.device == "cpu":
            raise ValueError("quantization: fp8 is for cuda; on the cpu use int8, int8-weights or fp8-weights")
        if self.fuse_qkv:
            raise ValueError("fuse_qkv cannot join quantized weights; use one of the two")
        if self.offload in ("group", "sequential"):
            raise ValueError(f"offload: {self.offload} cannot move quantized weights; use model or none")
