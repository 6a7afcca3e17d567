"""Size of the shared memory for batches from reader processes. Imports no torch.

If a batch does not fit in shared memory, the reader process sends it through a pipe, which is slower.
"""

import os
from pathlib import Path

from magicseg.config.training import TrainSettings
from magicseg.core.checks import Check, Status
from magicseg.core.text import size_text

FOLDER = Path("/dev/shm")  # where torch and the C library make shared memory
PREFETCHED = 2  # batches per reader process
_HELD = 2  # batches that training itself holds: the present one and the one before
_PIXEL_BYTES = 3 + 3 + 4  # image, counterfactual, mask
_COMMON_SIDE = 512  # pixels, where images differ and no crop is set


def needed_bytes(*, batch_size: int, side: int | None, readers: int) -> int:
    """Return the bytes of shared memory that one training process fills with batches.

    Args: batch_size: images per step of this process. side: of the square images, pixels; None: not known.
    """
    if readers == 0:
        return 0
    batch = batch_size * (side or _COMMON_SIDE) ** 2 * _PIXEL_BYTES
    return batch * (readers * PREFETCHED + _HELD)


def free_bytes() -> int | None:
    """Return the free bytes of shared memory, or None if the machine has no shared memory."""
    try:
        state = os.statvfs(FOLDER)
    except OSError:
        return None
    return state.f_bavail * state.f_frsize


def enlarge_hint(needed: int) -> str:
    """Return a hint on how to enlarge shared memory."""
    size = -(-needed // 2**30)
    return (
        f"docker run --shm-size={size}g, or mount -o remount,size={size}G {FOLDER}; "
        "apptainer shares the host's unless it is started with --contain; or lower train.loader_workers"
    )


def default_need() -> int:
    """Return the bytes of shared memory that one training process needs with the default settings."""
    train = TrainSettings()
    return needed_bytes(batch_size=train.batch_size, side=train.crop, readers=train.loader_workers)


def check_shared_memory(needed: int, free: int | None = None) -> Check:
    """Compare the free shared memory with what the batches of one training process need.

    Args: needed: bytes. free: bytes; None: this machine's.
    """
    free = free_bytes() if free is None else free
    seen = f"there is no {FOLDER}" if free is None else f"{FOLDER}, {size_text(free, binary=True)} free"
    seen += f"; batches of one training process need {size_text(needed, binary=True)}"
    if needed > (free or 0):
        return Check(
            "shared memory",
            Status.WARNING,
            f"{seen}: batches that do not fit go through pipes, which is slower",
            enlarge_hint(needed),
        )
    return Check("shared memory", Status.OK, seen)
