"""Prepare a torch device for reproducible results, and recognise its faults and lack of memory.

Imports torch.
"""

import re
from collections.abc import Callable

import torch

from magicseg.core.errors import BackendError

_NO_MEMORY = re.compile(r"out of memory|not enough memory|can't allocate memory", re.IGNORECASE)
_DEVICE_FAULT = re.compile(r"CUDA error|CUDA driver|cuDNN error|CUDNN_STATUS|CUBLAS_STATUS|cuBLAS|NCCL|HIP error")


def use_threads(device: str, cpu_threads: int) -> None:
    """Set the number of CPU threads for the next calls. Models that share a process may need different numbers."""
    if device == "cpu":
        torch.set_num_threads(cpu_threads)


def refuse_device_fault(error: BaseException, device: str) -> None:
    """Raise BackendError if ``error`` is a fault of the device, after which it cannot process any sample.

    Without this check, the stage would drop samples that are not at fault.
    """
    if isinstance(error, torch.AcceleratorError) or _DEVICE_FAULT.search(str(error)):
        raise BackendError(
            f"{device} failed: {type(error).__name__}: {first_line(error)}",
            hint="nothing committed is lost: run the same command again, on another node if it happens there again",
        ) from error


def refuse_uncompilable(error: BaseException, setting: str, value: str) -> None:
    """Raise BackendError if ``error`` says that torch cannot compile the model here.

    Args: setting, value: which setting asks for it, and what it is, for the message.
    """
    if isinstance(error, torch._dynamo.exc.TorchDynamoException):
        raise BackendError(
            f"{setting} is {value}: torch cannot compile the model here: {first_line(error).strip()}",
            hint=f"it needs a C++ compiler (CPU) or Triton (GPU); or set {setting} to off",
        ) from error


def prepare_device(device: str, cpu_threads: int, setting: str) -> None:
    """Set the process-wide options of torch that affect results: CPU threads, or deterministic cuDNN algorithms.

    Args: device: "cpu" or "cuda". setting: the name of the setting that selects the device, for the message.
    Raises: BackendError if the device does not exist.
    """
    if device == "cpu":
        use_threads(device, cpu_threads)
        return
    if not torch.cuda.is_available():
        raise BackendError(
            f"{setting} is cuda, but torch finds no CUDA device here",
            hint=f"submit to a node with a GPU, or set {setting} to cpu and dtype to float32",
        )
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that the device, or the CPU, is out of memory."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or bool(_NO_MEMORY.search(str(error)))


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message."""
    return (str(error) or type(error).__name__).splitlines()[0]


def free_cached_memory() -> None:
    """Release the memory that torch caches on the device."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def largest_fitting(count: int, attempt: Callable[[int], object]) -> int | None:
    """Return the largest of ``count`` / 2, ``count`` / 4, ... with which ``attempt`` fits into memory, or None.

    Raises: any error of ``attempt`` other than out of memory.
    """
    while count > 1:
        count //= 2
        free_cached_memory()
        try:
            attempt(count)
        except Exception as error:  # libraries raise different classes for it
            if not is_out_of_memory(error):
                raise
        else:
            return count
    free_cached_memory()
    return None
