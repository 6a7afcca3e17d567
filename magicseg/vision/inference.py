"""Loading pretrained detectors and segmenters, and running them. Imports torch."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers

from magicseg.core.devices import (
    first_line,
    is_out_of_memory,
    largest_fitting,
    refuse_device_fault,
    refuse_uncompilable,
    use_threads,
)
from magicseg.core.errors import BackendError, OutOfMemory
from magicseg.vision.batches import HasBatch
from magicseg.vision.model_options import ModelOptions
from magicseg.weights.pretrained import from_pretrained

Row = TypeVar("Row")
Result = TypeVar("Result")

_model_turn = threading.Lock()  # the device has memory for one batch
tokenizer_turn = threading.Lock()
"""Held while a thread uses a tokenizer: a call sets the padding of the next. May be taken while a model computes."""


def load_pretrained(auto: Any, options: ModelOptions, folder: Path, where: str) -> Any:
    """Load a model to its device, or a processor, by one of transformers' Auto classes.

    Only safetensors are read, and a checkpoint's code is not run. Raises BackendError if files are missing, damaged,
    or do not fit the architecture.
    """
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    is_model = "Model" in auto.__name__
    settings: dict[str, Any] = {"use_safetensors": True, "output_loading_info": True} if is_model else {}
    if is_model:
        settings["dtype"] = weights_dtype(options)
        settings["ignore_mismatched_sizes"] = True  # refused below, by name
    try:
        loaded = from_pretrained(auto, folder, **settings)
    except BackendError:
        raise
    except Exception as error:  # the library raises whatever its parsers raise
        raise BackendError(
            f"{where} cannot be loaded: {type(error).__name__}: {first_line(error)}", hint=_remedy(options)
        ) from error
    if not is_model:
        return loaded
    model, info = loaded
    lacking = [*info["missing_keys"], *(key for key, *_ in info.get("mismatched_keys", ()))]
    if lacking:
        raise BackendError(
            f"{where}: {len(lacking)} tensors of a {type(model).__name__} are missing or of another shape, "
            f"such as {min(lacking)}",
            hint=_remedy(options),
        )
    return to_device(model, options, where)


def gpu_dtype() -> torch.dtype:
    """Return the 16-bit type that suits the GPU: bfloat16 if it has it in hardware, else float16."""
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def weights_dtype(options: ModelOptions) -> torch.dtype:
    """Return the type of a model's weights and inputs."""
    if options.dtype == "auto":
        return torch.float32 if options.AUTOCAST else gpu_dtype()
    chosen: torch.dtype = getattr(torch, options.dtype)
    return chosen


def to_device(model: torch.nn.Module, options: ModelOptions, where: str) -> torch.nn.Module:
    """Prepare a model for inference on the options' device. Raises OutOfMemory."""
    try:
        return model.to(options.device).eval().requires_grad_(False)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(
            f"{where}: the weights do not fit on {options.device}: {first_line(error)}",
            hint="choose a smaller dtype or model",
        ) from error


def compile_encoder(encoder: torch.nn.Module, options: ModelOptions) -> None:
    """Have torch compile the part of a model that encodes images, if the options say so. Its first call does it.

    Every size of the input is compiled apart.
    """
    if options.compile == "encoder":
        encoder.compile(dynamic=False)


def read_checkpoint(path: Path, where: str) -> dict[str, Any]:
    """Return the tensors of a ``.pth`` file. Raises BackendError if it holds other objects or is damaged."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise BackendError(f"{where}: there is no such file", hint="mend model or file in its options") from None
    except Exception as error:  # pickles and archives fail in many ways
        raise BackendError(
            f"{where} cannot be read: {type(error).__name__}: {first_line(error)}",
            hint="fetch the checkpoint again; it must hold nothing but tensors",
        ) from error
    if not isinstance(content, dict):
        raise BackendError(f"{where} holds {type(content).__name__}, not tensors by name", hint="choose another file")
    return content


def refuse_unknown_class(
    auto_config: Any, options: ModelOptions, folder: Path, where: str, known: Sequence[str]
) -> str:
    """Return the class that a checkpoint's config.json names. Raises BackendError if it is not among ``known``."""
    config = load_pretrained(auto_config, options, folder, where)
    kind = str((config.architectures or ["?"])[0])
    if kind not in known:
        raise BackendError(
            f"{where} is a {kind}, which this back end does not drive", hint=f"it drives: {', '.join(known)}"
        )
    return kind


def _remedy(options: ModelOptions) -> str:
    if options.revision is None:
        return "the folder needs what save_pretrained writes, in safetensors; fetch the checkpoint again"
    return "where there is a network: magicseg fetch RUN --verify"


def _autocast(options: ModelOptions) -> torch.autocast:
    is_wanted = options.dtype == "auto" and options.AUTOCAST
    return torch.autocast(options.device, gpu_dtype() if is_wanted else torch.bfloat16, enabled=is_wanted)


def run_batch(
    call: Callable[[Sequence[Row]], list[Result]], rows: Sequence[Row], options: ModelOptions, batch: HasBatch
) -> list[Result]:
    """Return ``call(rows)``, computed without gradients, while no other thread uses a model.

    Preprocess the rows before: another thread's model computes meanwhile.

    Raises OutOfMemory that names the batch size that fits; BackendError if the device fails, or torch cannot compile
    the model.
    """
    with _model_turn, torch.inference_mode(), _autocast(options):
        use_threads(options.device, options.cpu_threads)
        try:
            return call(rows)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                refuse_device_fault(error, options.device)
                refuse_uncompilable(error, f"compile of {options.model}", options.compile)
                raise
            message = first_line(error)
        fitting = largest_fitting(len(rows), lambda count: call(rows[:count]))
    if fitting:
        hint = f"{fitting} fits: set {batch.setting} to {fitting} (its shards are then regenerated)"
    else:
        hint = "not even 1 fits: choose a smaller dtype or model"
    raise OutOfMemory(
        f"{batch.setting} is {batch.batch_size}: {options.device} is out of memory with {len(rows)} images at once: "
        f"{message}",
        hint=hint,
    )
