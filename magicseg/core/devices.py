"""A device for torch: prepared so that equal calls give equal bits, and what to say when its memory does not suffice.

Imports torch.
"""

import re
from collections.abc import Callable

import torch

from magicseg.core.errors import BackendError

_NO_MEMORY = re.compile(r"out of memory|not enough memory|can't allocate memory", re.IGNORECASE)
_DEVICE_FAULT = re.compile(r"CUDA error|CUDA driver|cuDNN error|CUDNN_STATUS|CUBLAS_STATUS|cuBLAS|NCCL|HIP error")


class OutOfMemory(BackendError):
    """The device's memory does not hold a batch."""


def use_threads(device: str, cpu_threads: int) -> None:
    """Have the next calls on the CPU use so many threads: models that share a process may want different numbers."""
    if device == "cpu":
        torch.set_num_threads(cpu_threads)


def refuse_device_fault(error: BaseException, device: str) -> None:
    """Raise BackendError if ``error`` says that the device itself failed: after that no sample can be done on it.

    Were it left to the stage, samples would be dropped that have no fault.
    """
    if isinstance(error, torch.AcceleratorError) or _DEVICE_FAULT.search(str(error)):
        raise BackendError(
            f"{device} failed: {type(error).__name__}: {first_line(error)}",
            hint="nothing committed is lost: run the same command again, on another node if it happens there again",
        ) from error


def prepare_device(device: str, cpu_threads: int, setting: str) -> None:
    """Fix, for the whole process, what else would change results.

    Args: device: "cpu" or "cuda". setting: the option that names it, for the message.
    Raises: BackendError if there is no such device.
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
    """Whether the device, or the CPU, has no memory left."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or bool(_NO_MEMORY.search(str(error)))


def first_line(error: BaseException) -> str:
    """An error's text, without what follows."""
    return (str(error) or type(error).__name__).splitlines()[0]


def free_cached_memory() -> None:
    """Give back what torch keeps for later."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def largest_fitting(count: int, attempt: Callable[[int], object]) -> int | None:
    """The greatest half, quarter ... of ``count`` with which ``attempt`` has memory enough; None if not even 1 has.

    Raises: what else ``attempt`` raises.
    """
    while count > 1:
        count //= 2
        free_cached_memory()
        try:
            attempt(count)
        except Exception as error:  # libraries have classes of their own for it
            if not is_out_of_memory(error):
                raise
        else:
            return count
    free_cached_memory()
    return None
