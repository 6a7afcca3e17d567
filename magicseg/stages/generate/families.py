"""The families of text-to-image pipelines that the back end ``diffusers`` drives, and how they differ."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Family:
    """The arguments that a pipeline's class takes. ``text_length``: tokens of its T5 encoder; None without one."""

    title: str
    negative_prompt: bool = True
    text_length: int | None = None
    sequence_argument: bool = False  # whether the call takes ``max_sequence_length``
    step_end_callback: bool = True  # else the older ``callback``, which may change the latents in place
    arguments: Mapping[str, Any] = field(default_factory=dict)


_PIXART = {"clean_caption": False, "use_resolution_binning": False}

# By the ``_class_name`` in a checkpoint's model_index.json.
FAMILIES: Mapping[str, Family] = {
    "StableDiffusionPipeline": Family(title="Stable Diffusion 1 and 2"),
    "StableDiffusionXLPipeline": Family(title="Stable Diffusion XL and Turbo"),
    "LatentConsistencyModelPipeline": Family(title="Latent Consistency Models", negative_prompt=False),
    "StableDiffusion3Pipeline": Family(title="Stable Diffusion 3", text_length=256, sequence_argument=True),
    "FluxPipeline": Family(title="Flux", text_length=512, sequence_argument=True, negative_prompt=False),
    "PixArtAlphaPipeline": Family(
        title="PixArt-alpha", text_length=120, sequence_argument=True, step_end_callback=False, arguments=_PIXART
    ),
    "PixArtSigmaPipeline": Family(
        title="PixArt-Sigma", text_length=300, sequence_argument=True, step_end_callback=False, arguments=_PIXART
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
