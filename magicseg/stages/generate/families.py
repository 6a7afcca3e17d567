"""The families of text-to-image pipelines that the back end ``diffusers`` drives, and how they differ."""

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import ConfigDict, Field

from magicseg.core.settings import Settings


class Family(Settings):
    """How to call the pipelines of a family.

    The defaults are those of Stable Diffusion. Sizes must be a multiple of the autoencoder's factor times ``patch``.
    """

    model_config = ConfigDict(frozen=True)
    NEUTRAL: ClassVar[frozenset[str]] = frozenset({"title"})

    title: str = Field("this family", description="its name in messages")
    negative_prompt: bool = Field(True, description="whether the call takes a negative prompt")
    blank_negative: str | None = Field(None, description="negative prompt where guidance needs one and none is set")
    guidance: str = Field("guidance_scale", pattern="^[a-z_]+$", description="the call's argument for the guidance")
    text_length: int | None = Field(
        None, ge=16, le=4096, description="tokens that its T5 encoder or language model reads; null: as the tokenizer"
    )
    language_model: bool = Field(False, description="its text encoder is a language model; `text_length` limits it")
    sequence_argument: bool = Field(False, description="whether the call takes max_sequence_length")
    step_end_callback: bool = Field(
        True, description="callback_on_step_end, or else the older callback, which may change the latents in place"
    )
    one_pair: bool = Field(
        False, description="call it with one pair at a time: pixels depend on the lengths of all texts of a call"
    )
    inpaint: bool = Field(False, description="whether counterfactual: inpaint is possible")
    patch: int | None = Field(None, ge=1, description="latent pixels per patch; null: as its denoiser says")
    steps: int | None = Field(None, ge=1, description="the only number of steps that it takes; null: any")
    arguments: Mapping[str, Any] = Field(default_factory=dict, description="further arguments of the call")


_PIXART = {"clean_caption": False, "use_resolution_binning": False}
_SANA = {**_PIXART, "complex_human_instruction": None}

# By the ``_class_name`` in a checkpoint's model_index.json.
FAMILIES: Mapping[str, Family] = {
    "StableDiffusionPipeline": Family(title="Stable Diffusion 1 and 2", inpaint=True),
    "StableDiffusionXLPipeline": Family(title="Stable Diffusion XL and Turbo", inpaint=True),
    "LatentConsistencyModelPipeline": Family(title="Latent Consistency Models", negative_prompt=False),
    "StableDiffusion3Pipeline": Family(
        title="Stable Diffusion 3", text_length=256, sequence_argument=True, inpaint=True
    ),
    "FluxPipeline": Family(
        title="Flux", text_length=512, sequence_argument=True, negative_prompt=False, inpaint=True, patch=2
    ),
    "PixArtAlphaPipeline": Family(
        title="PixArt-alpha", text_length=120, sequence_argument=True, step_end_callback=False, arguments=_PIXART
    ),
    "PixArtSigmaPipeline": Family(
        title="PixArt-Sigma", text_length=300, sequence_argument=True, step_end_callback=False, arguments=_PIXART
    ),
    "Flux2Pipeline": Family(
        title="FLUX.2 dev",
        text_length=512,
        language_model=True,
        sequence_argument=True,
        negative_prompt=False,
        patch=2,
    ),
    "Flux2KleinPipeline": Family(
        title="FLUX.2 klein",
        text_length=512,
        language_model=True,
        sequence_argument=True,
        negative_prompt=False,
        patch=2,
    ),
    "QwenImagePipeline": Family(
        title="Qwen-Image",
        text_length=512,
        language_model=True,
        sequence_argument=True,
        guidance="true_cfg_scale",
        blank_negative=" ",
        one_pair=True,
    ),
    "ZImagePipeline": Family(
        title="Z-Image and Turbo",
        text_length=512,
        language_model=True,
        sequence_argument=True,
        one_pair=True,
        patch=2,
    ),
    "ChromaPipeline": Family(title="Chroma", text_length=512, sequence_argument=True, patch=2),
    "Lumina2Pipeline": Family(
        title="Lumina Image 2", text_length=256, language_model=True, sequence_argument=True, one_pair=True
    ),
    "SanaPipeline": Family(
        title="Sana", text_length=300, language_model=True, sequence_argument=True, arguments=_SANA
    ),
    "SanaSprintPipeline": Family(
        title="Sana-Sprint",
        text_length=300,
        language_model=True,
        sequence_argument=True,
        negative_prompt=False,
        steps=2,
        arguments=_SANA,
    ),
}

# Our names of schedulers, and diffusers' classes with what their configuration gets on top.
SCHEDULERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "dpm++-2m": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "dpm++-2m-karras": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "use_karras_sigmas": True}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "lcm": ("LCMScheduler", {}),
    "flow-euler": ("FlowMatchEulerDiscreteScheduler", {}),
    "flow-heun": ("FlowMatchHeunDiscreteScheduler", {}),
}
