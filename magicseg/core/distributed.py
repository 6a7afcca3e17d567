"""The process group of distributed training under torchrun, and its collective operations.

    world = World.from_environment()     # one of many ranks under torchrun, else a single process
    with process_group(world):
        ...

A single process is a world of size 1: it runs the same code without a process group or communication. torch is
imported inside the functions, because the command line needs the rank before it imports heavy libraries.
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

# The death of a peer is noticed at once. This timeout is for peers whose machine is gone; no step takes longer.
TIMEOUT = timedelta(minutes=5)
# Timeout while other ranks evaluate their shards.
EVALUATION = timedelta(hours=2)


@dataclass(frozen=True, kw_only=True)
class World:
    """The rank of this process, the number of processes (``size``), and the rank on this machine (``local_rank``).

    ``launched``: whether torchrun started it; torchrun restarts all processes if one fails.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    launched: bool = False

    @classmethod
    def from_environment(cls) -> "World":
        """Read torchrun's environment variables. Slurm's ranks are ignored: Slurm starts one torchrun per node."""
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            return ALONE
        rank, size, local_rank = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        return cls(rank=rank, size=size, local_rank=local_rank, launched=True)

    @property
    def is_rank_0(self) -> bool:
        """Whether this is rank 0, which logs, saves and prints."""
        return self.rank == 0

    @property
    def device(self) -> str:
        """``cuda:LOCAL_RANK``, or ``cpu`` without a GPU."""
        import torch

        return f"cuda:{self.local_rank}" if torch.cuda.is_available() else "cpu"


ALONE = World()


@contextlib.contextmanager
def process_group(world: World, *, patience: timedelta = TIMEOUT) -> Iterator[None]:
    """Join the process group for the block: NCCL for GPUs, Gloo for CPUs.

    After an error, an NCCL group is not destroyed, because that would wait for peers that wait for this process. The
    end of the process frees everything and notifies the peers.

    Raises: ConfigError if there are more processes than GPUs; IncompleteError if a peer is gone.
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
            dist.destroy_process_group()  # otherwise its threads abort the process at exit
        # Gloo raises plain RuntimeErrors.
        if isinstance(error, RuntimeError) and (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise IncompleteError(
                f"rank {world.rank} of {world.size} lost another rank: {str(error).split('. ', 1)[0]}",
                hint="find the process that ended first; the same command resumes from the newest checkpoint",
            ) from error
        raise
    dist.destroy_process_group()


def broadcast_from_rank_0(world: World, value: float) -> float:
    """Broadcast ``value`` from rank 0 and return it on all ranks. Integers below 2^53 are exact."""
    if world.size == 1:
        return value
    import torch
    from torch import distributed as dist

    shared = torch.tensor(value, device=world.device, dtype=torch.float64)
    dist.broadcast(shared, src=0)
    return float(shared)


def all_reduce_sum(world: World, values: "Tensor") -> "Tensor":
    """All-reduce (sum) ``values`` in place and return them. On a GPU this does not block the host.

    A value that is not finite on one rank is not finite in the sum, so all ranks notice it.
    """
    if world.size > 1:
        from torch import distributed as dist

        dist.all_reduce(values)
    return values
