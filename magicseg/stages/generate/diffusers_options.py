"""The settings of the back end ``diffusers``. All of them affect pixels, except the path of the weights."""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from magicseg.config.finding import OutlineOptions
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


class InpaintOptions(OutlineOptions):
    """How the objects to remove are found, and how their pixels are filled."""

    batch_size: int = Field(16, ge=1, description="images in one call of detector and segmenter")
    grow: float = Field(0.03, ge=0, le=0.5, description="margin around an object, as a share of the image's side")
    strength: float = Field(1.0, gt=0, le=1, description="how much of the noise the filled pixels start from")
    max_area: float = Field(0.6, gt=0, le=1, description="share of the image to fill; more is no counterfactual")


class DiffusersOptions(PinnedSettings):
    """The weights, sampling, counterfactuals, and memory savings."""

    NEUTRAL: ClassVar[frozenset[str]] = frozenset({"drop_t5"})  # see `identity`

    model: str = Field(description="a name on the hub, or the path of a folder with model_index.json")
    variant: str | None = Field(None, pattern=r"^\w+$", description="weight files with this infix, such as fp16")
    drop_t5: bool = Field(False, description="Stable Diffusion 3 without its T5 text encoder, for less memory")
    safety_checker: bool = Field(True, description="use the checkpoint's own, if it has one")

    scheduler: SchedulerName = Field("default", description="default: the checkpoint's own")
    steps: int = Field(20, ge=1, le=1000)
    guidance: float = Field(7.5, ge=0, le=50, description="1 or less: no guidance (Flux: embedded guidance)")
    negative_prompt: str = Field("", description="the same for both images of all pairs")
    text_length: int | None = Field(
        None, ge=16, le=512, description="tokens of a T5 text encoder; None: the family's usual number"
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
    compile: bool = Field(False, description="torch.compile of the denoiser")
    offload: Literal["none", "model", "sequential"] = Field("none", description="weights wait in the CPU's memory")
    attention_slicing: bool = Field(False, description="less memory, slower")
    vae_slicing: bool = Field(False, description="decode image by image: less memory")

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
