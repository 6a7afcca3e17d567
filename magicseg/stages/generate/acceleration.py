"""Place a pipeline on its device, with the settings that make it faster or smaller. Imports torch and diffusers.

A setting that the family or an installed library lacks raises BackendError: nothing is left out silently.
"""

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Mapping
from typing import Any

import diffusers
import torch
from diffusers.hooks import mag_cache
from diffusers.models.attention_dispatch import attention_backend

from magicseg.core.devices import first_line, is_out_of_memory
from magicseg.core.errors import BackendError, OutOfMemory
from magicseg.stages.generate.cache_options import (
    FasterCache,
    FirstBlockCache,
    MagCache,
    PyramidCache,
    StepCache,
    TaylorSeerCache,
)
from magicseg.stages.generate.diffusers_options import DiffusersOptions

# diffusers' names, and the packages to install.
_ATTENTION: Mapping[str, tuple[str, str | None]] = {
    "native": ("native", None),
    "math": ("_native_math", None),
    "native-flash": ("_native_flash", None),
    "cudnn": ("_native_cudnn", None),
    "flash": ("flash", "flash-attn"),
    "flash-3": ("_flash_3", "flash-attn-3"),
    "sage": ("sage", "sageattention"),
}
_QUANTIZATION: Mapping[str, str] = {  # classes of torchao.quantization
    "int8-weights": "Int8WeightOnlyConfig",
    "int8": "Int8DynamicActivationInt8WeightConfig",
    "fp8-weights": "Float8WeightOnlyConfig",
    "fp8": "Float8DynamicActivationFloat8WeightConfig",
}
_TORCHAO = (0, 15)
_FP8_CAPABILITY = (8, 9)


def denoiser_of(pipe: Any) -> Any:
    """Return the pipeline's UNet or transformer."""
    return getattr(pipe, "unet", None) or pipe.transformer


def place(pipe: Any, options: DiffusersOptions, title: str) -> None:
    """Apply the options' speed and memory settings and move the weights to the device.

    Args: title: the family's name, for messages. Raises BackendError, OutOfMemory.
    """
    denoiser = denoiser_of(pipe)
    if options.attention_slicing:
        pipe.enable_attention_slicing()
    if options.vae_slicing:
        pipe.vae.enable_slicing()
    if options.fuse_qkv:
        _fuse(denoiser, title)
    if options.channels_last:
        _channels_last(pipe, title)
    if options.attention != "default":
        _set_attention(denoiser, options.attention, title)
    if options.cache is not None:
        _enable_cache(pipe, denoiser, options, title)
    _move(pipe, options)
    if options.compile == "denoiser":
        denoiser.compile(dynamic=False)
    elif options.compile == "regional":
        _compile_blocks(denoiser, title)


def _channels_last(pipe: Any, title: str) -> None:
    try:
        for part in (denoiser_of(pipe), pipe.vae):
            part.to(memory_format=torch.channels_last)
    except RuntimeError as error:  # convolutions over time have five dimensions
        raise BackendError(
            f"generate.options.channels_last: {title} has other convolutions: {first_line(error)}",
            hint="set it to false",
        ) from error


def _fuse(denoiser: Any, title: str) -> None:
    if hasattr(denoiser, "fuse_qkv_projections"):
        denoiser.fuse_qkv_projections()
    if not any(getattr(module, "fused_projections", False) for module in denoiser.modules()):
        raise BackendError(
            f"generate.options.fuse_qkv: diffusers cannot fuse the projections of {title}", hint="set it to false"
        )


def _set_attention(denoiser: Any, name: str, title: str) -> None:
    """Set the back end of every attention of the denoiser, and leave the default of the process as it is.

    Only some models call diffusers' dispatcher. On the others the library's call has no effect.
    """
    processors = [getattr(module, "processor", None) for module in denoiser.modules()]
    if not any(hasattr(processor, "_attention_backend") for processor in processors):
        raise BackendError(
            f"generate.options.attention is {name}: diffusers' attention back ends have no effect on {title}",
            hint="set it to default: torch's scaled_dot_product_attention chooses the kernel",
        )
    library_name, package = _ATTENTION[name]
    try:
        with attention_backend("native"):  # the call below also changes the process's default
            denoiser.set_attention_backend(library_name)
    except (RuntimeError, ValueError, ImportError) as error:
        install = f"pip install {package}; or " if package else ""
        raise BackendError(
            f"generate.options.attention is {name}: {first_line(error)}",
            hint=f"{install}set generate.options.attention to default",
        ) from error


def _enable_cache(pipe: Any, denoiser: Any, options: DiffusersOptions, title: str) -> None:
    # Others make a second call per step for guidance, which most of the caches would mix up with the first.
    if not isinstance(pipe, diffusers.FluxPipeline):
        raise BackendError(
            f"generate.options.cache: caches across steps are for Flux, not for {title}",
            hint="set generate.options.cache to null",
        )
    assert options.cache is not None
    denoiser.enable_cache(_cache_config(pipe, options.cache, options))


def _cache_config(pipe: Any, cache: StepCache, options: DiffusersOptions) -> Any:
    """Return diffusers' configuration of a cache."""
    match cache:
        case FirstBlockCache():
            return diffusers.FirstBlockCacheConfig(threshold=cache.threshold)
        case MagCache():
            return diffusers.MagCacheConfig(
                threshold=cache.threshold,
                max_skip_steps=cache.max_skip_steps,
                retention_ratio=cache.retention,
                num_inference_steps=options.steps,
                mag_ratios=mag_cache.FLUX_MAG_RATIOS if cache.ratios is None else list(cache.ratios),
            )
        case PyramidCache():
            return diffusers.PyramidAttentionBroadcastConfig(
                spatial_attention_block_skip_range=cache.every,
                spatial_attention_timestep_skip_range=cache.timesteps,
                current_timestep_callback=lambda: pipe.current_timestep,
            )
        case FasterCache():
            return diffusers.FasterCacheConfig(
                spatial_attention_block_skip_range=cache.every,
                spatial_attention_timestep_skip_range=cache.timesteps,
                attention_weight_callback=lambda _module: cache.weight,
                is_guidance_distilled=True,  # Flux has no unconditional branch
                current_timestep_callback=lambda: pipe.current_timestep,
            )
        case TaylorSeerCache():
            return diffusers.TaylorSeerCacheConfig(
                cache_interval=cache.interval,
                disable_cache_before_step=cache.first_step,
                disable_cache_after_step=cache.last_step,
                max_order=cache.order,
                taylor_factors_dtype=torch.float32 if options.dtype == "float32" else torch.bfloat16,
            )


def _move(pipe: Any, options: DiffusersOptions) -> None:
    """Move the weights to the device, or have them wait in the CPU's memory. Raises OutOfMemory."""
    try:
        if options.offload == "model":
            pipe.enable_model_cpu_offload(device=options.device)
        elif options.offload == "sequential":
            pipe.enable_sequential_cpu_offload(device=options.device)
        elif options.offload == "group":
            offload_groups(pipe, options.device)
        else:
            pipe.to(options.device)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(
            f"generate.options.offload is {options.offload}: the weights in {options.dtype} do not fit on "
            f"{options.device}: {first_line(error)}",
            hint="set generate.options.offload to model (or group, or sequential), or dtype to bfloat16",
        ) from error


def offload_groups(pipe: Any, device: str) -> None:
    """Have each layer's weights copied to the device before the layer runs; on a GPU in a stream of their own."""
    pipe.enable_group_offload(
        onload_device=torch.device(device), offload_type="leaf_level", use_stream=device != "cpu"
    )


def _compile_blocks(denoiser: Any, title: str) -> None:
    try:
        denoiser.compile_repeated_blocks(dynamic=False)
    except ValueError as error:
        raise BackendError(
            f"generate.options.compile is regional: diffusers names no repeated blocks of {title}",
            hint="set generate.options.compile to denoiser",
        ) from error


def quantization_arguments(options: DiffusersOptions, denoiser: str) -> dict[str, Any]:
    """Return the arguments of ``from_pretrained`` that quantize the denoiser's linear layers.

    Args: denoiser: the component's name. Raises BackendError if torchao is missing or the GPU lacks the type.
    """
    name = options.quantization
    if name is None:
        return {}
    _refuse_without_torchao(name)
    if name == "fp8" and torch.cuda.is_available() and torch.cuda.get_device_capability() < _FP8_CAPABILITY:
        raise BackendError(
            "generate.options.quantization is fp8: this GPU lacks 8-bit floats (compute capability below 8.9)",
            hint="set it to int8 or fp8-weights",
        )
    types = importlib.import_module("torchao.quantization")  # an optional library
    config = diffusers.TorchAoConfig(getattr(types, _QUANTIZATION[name])())
    return {"quantization_config": diffusers.PipelineQuantizationConfig(quant_mapping={denoiser: config})}


def _refuse_without_torchao(name: str) -> None:
    hint = "pip install 'magicseg[quantization]', or set generate.options.quantization to null"
    if importlib.util.find_spec("torchao") is None:
        raise BackendError(f"generate.options.quantization is {name}: torchao is not installed", hint=hint)
    version = importlib.metadata.version("torchao")
    if tuple(map(int, version.split(".")[:2])) < _TORCHAO:
        raise BackendError(f"generate.options.quantization is {name}: torchao {version} is too old", hint=hint)
