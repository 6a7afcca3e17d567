"""Recognise that a device ran out of memory, whichever back end met it. Does not import torch."""

import sys

from magicseg.core.errors import OutOfMemory


def is_shortage(error: BaseException | None) -> bool:
    """Return whether an error, or one of its causes, is torch's error for a lack of memory, or `OutOfMemory`."""
    torch = sys.modules.get("torch")
    kinds = (OutOfMemory,) if torch is None else (OutOfMemory, torch.OutOfMemoryError)
    while error is not None:
        if isinstance(error, kinds):
            return True
        error = error.__cause__
    return False


def explained_shortage(stage: str, batch_size: int, error: Exception) -> OutOfMemory:
    """Return the error for a batch that did not fit, with the setting to change."""
    if batch_size > 1:
        hint = f"set {stage}.batch_size to {batch_size // 2} (its shards are then made again), or free memory there"
    else:
        hint = "use a smaller model or dtype, one worker per GPU, or a device with more memory"
    line = (str(error) or type(error).__name__).splitlines()[0]
    return OutOfMemory(f"{stage}.batch_size is {batch_size}: the device is out of memory: {line}", hint=hint)
