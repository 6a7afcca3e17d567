"""How the model lies in the processes: whole in each (DDP) or in parts (FSDP2), and how parts become whole."""

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from magicseg.config.training import TrainSettings
from magicseg.core.distributed import World


def is_sharded(settings: TrainSettings, world: World) -> bool:
    """Whether the model lies in parts. A process that was not started by torchrun has no group to part it in."""
    return settings.strategy == "fsdp" and world.launched


def shard(terms: nn.Module, encoder: nn.Module, world: World) -> None:
    """Part the parameters among all processes, in place: each layer of the encoder on its own, the rest together.

    The decoder, the prompts and what surrounds the layers are small and used in one go; a group of their own would
    only make more messages. Gradients are averaged and parted on their way back. A single number has no dimension to
    part it by: it becomes a list of one, which computes the same.
    """
    for module in list(terms.modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.dim() == 0:
                listed = nn.Parameter(parameter.detach()[None], requires_grad=parameter.requires_grad)
                setattr(module, name, listed)
    mesh = init_device_mesh(torch.device(world.device).type, (dist.get_world_size(),))
    for layers in encoder.modules():
        if isinstance(layers, nn.ModuleList):
            for layer in layers:
                fully_shard(layer, mesh=mesh)
    fully_shard(terms, mesh=mesh)


def replicate(terms: nn.Module) -> DistributedDataParallel:
    """``terms`` with its gradients averaged over all ranks, in the same order of addition in every step.

    DDP would lay its buckets out anew after the first step, and so also after a resume, whose curve would then
    differ in the last bits; looking for unused parameters, of which there are none, keeps it from that.
    """
    return DistributedDataParallel(terms, find_unused_parameters=True)


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, put together from all processes (which all call this) where it lies in parts."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(value: Tensor, pattern: Tensor) -> Tensor:
    """A whole ``value`` on the pattern's device, and parted as the pattern is; nothing is sent."""
    value = value.to(pattern.device).reshape(pattern.shape)
    if isinstance(pattern, DTensor):
        return distribute_tensor(value, pattern.device_mesh, pattern.placements, src_data_rank=None)
    return value
