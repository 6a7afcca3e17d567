"""The processes that train together: torchrun's group, and what they tell each other.

    world = World.from_environment()     # under torchrun one of many, else alone
    with joined(world):
        ...

A process alone is a world of one: no group, no communication, and the same code. torch is imported inside the
functions, because the command line asks for the rank before anything heavy.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from magicseg.core.errors import ConfigError, IncompleteError

if TYPE_CHECKING:
    from torch import Tensor

# A peer that dies is noticed at once; this is for one whose machine is gone, and longer than any step or file.
TIMEOUT = timedelta(minutes=5)
# Where processes wait for one that evaluates a share of its own.
EVALUATION = timedelta(hours=2)


@dataclass(frozen=True, kw_only=True)
class World:
    """This process is ``rank`` of ``size``, and ``local_rank`` of those on its machine.

    ``launched``: by torchrun, which restarts all processes when one of them fails.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    launched: bool = False

    @classmethod
    def from_environment(cls) -> "World":
        """As torchrun says. Slurm's own ranks are not read: they count torchrun's, one per node."""
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            return ALONE
        rank, size, local_rank = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        return cls(rank=rank, size=size, local_rank=local_rank, launched=True)

    @property
    def leads(self) -> bool:
        """Whether this is the process that logs, saves and talks."""
        return self.rank == 0

    @property
    def device(self) -> str:
        """``cuda:LOCAL_RANK``, or ``cpu`` where there is no GPU."""
        import torch

        return f"cuda:{self.local_rank}" if torch.cuda.is_available() else "cpu"


ALONE = World()


@contextlib.contextmanager
def joined(world: World, *, patience: timedelta = TIMEOUT) -> Iterator[None]:
    """Be in the process group: NCCL between GPUs, Gloo between CPUs.

    After an error NCCL's group is left as it is. Its orderly end would wait for peers that wait for this process;
    the end of the process frees everything, and tells them.

    Raises: ConfigError when there are more processes than GPUs; IncompleteError when a peer is gone.
    """
    if not world.launched:
        yield
        return
    import torch
    from torch import distributed as dist

    device = torch.device(world.device)
    if device.type == "cuda":
        if world.local_rank >= torch.cuda.device_count():
            raise ConfigError(
                f"torchrun started a process for GPU {world.local_rank} on a machine with "
                f"{torch.cuda.device_count()} GPUs, which are counted from 0",
                hint=f"torchrun --nproc-per-node={torch.cuda.device_count()} ...",
            )
        torch.cuda.set_device(device)
    try:
        if device.type == "cuda":
            dist.init_process_group("nccl", timeout=patience, device_id=device)
        else:
            dist.init_process_group("gloo", timeout=patience)
        yield
        dist.barrier()
    except BaseException as error:
        if device.type == "cpu" and dist.is_initialized():
            dist.destroy_process_group()  # else its threads abort the process as it ends
        # Gloo's errors have no class of their own.
        if isinstance(error, RuntimeError) and (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise IncompleteError(
                f"process {world.rank} of {world.size} lost another one: {str(error).split('. ', 1)[0]}",
                hint="look for what ended first; the same command goes on from the newest checkpoint",
            ) from error
        raise
    dist.destroy_process_group()


def from_first(world: World, value: float) -> float:
    """The first process's ``value``, on all of them. Whole numbers are exact below 2^53."""
    if world.size == 1:
        return value
    import torch
    from torch import distributed as dist

    shared = torch.tensor(value, device=world.device, dtype=torch.float64)
    dist.broadcast(shared, src=0)
    return float(shared)


def added_up(world: World, values: "Tensor") -> "Tensor":
    """The sum of every process's ``values``, which are changed; a GPU goes on without waiting for it.

    What is not finite in one process is not finite in the sum, so all see it.
    """
    if world.size > 1:
        from torch import distributed as dist

        dist.all_reduce(values)
    return values
