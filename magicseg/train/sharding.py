"""Replicate the model on every rank (DDP) or shard it across ranks (FSDP2), and gather sharded tensors."""

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
    """Return whether the parameters are sharded. Without torchrun there is no process group, and they are not."""
    return settings.strategy == "fsdp" and world.launched


def shard(module: nn.Module, encoder: nn.Module, world: World) -> None:
    """Shard the parameters across ranks, in place: one FSDP unit per encoder layer, and one for all the rest.

    The decoder, the prompts and the encoder's other parameters are small and used together; separate units would only
    add messages. The backward pass averages and shards the gradients. FSDP cannot shard a scalar parameter, so it
    becomes a tensor of one entry, which computes the same.
    """
    for part in list(module.modules()):
        for name, parameter in list(part.named_parameters(recurse=False)):
            if parameter.dim() == 0:
                listed = nn.Parameter(parameter.detach()[None], requires_grad=parameter.requires_grad)
                setattr(part, name, listed)
    mesh = init_device_mesh(torch.device(world.device).type, (dist.get_world_size(),))
    for layers in encoder.modules():
        if isinstance(layers, nn.ModuleList):
            for layer in layers:
                fully_shard(layer, mesh=mesh)
    fully_shard(module, mesh=mesh)


def replicate(module: nn.Module) -> DistributedDataParallel:
    """Wrap ``module`` in DDP: gradients are averaged over ranks, in the same order of addition in every step.

    By default DDP rebuilds its buckets after the first step, also after a resume, whose curve would then differ in
    the last bits. ``find_unused_parameters=True`` turns that off.
    """
    return DistributedDataParallel(module, find_unused_parameters=True)


def whole(tensor: Tensor) -> Tensor:
    """Return the unsharded tensor: gathered from all ranks, which all call this, or the tensor itself."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(value: Tensor, pattern: Tensor) -> Tensor:
    """Return an unsharded ``value`` on the pattern's device, sharded like the pattern, without communication."""
    value = value.to(pattern.device).reshape(pattern.shape)
    if isinstance(pattern, DTensor):
        return distribute_tensor(value, pattern.device_mesh, pattern.placements, src_data_rank=None)
    return value
