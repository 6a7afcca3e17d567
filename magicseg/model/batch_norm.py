"""Batch norm whose batch is that of all processes which train together.

In one process, and in inference, it is `torch.nn.BatchNorm2d` to the bit; parameters and buffers have the same
names, so weights go from one to the other. torch's own ``SyncBatchNorm`` refuses tensors on the CPU.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist


class BatchNorm2d(nn.BatchNorm2d):
    """``nn.BatchNorm2d`` with affine and running statistics; all ranks hold batches of one size."""

    def forward(self, input: Tensor) -> Tensor:
        """Float (B, C, H, W) -> the same shape, as if the ranks' batches were one."""
        if not (self.training and dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(input)
        with torch.no_grad():
            mean, variance = _statistics(input.detach())
            count = input.numel() // input.shape[1] * dist.get_world_size()
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            assert self.momentum is not None
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        scale = torch.rsqrt(variance + self.eps)
        normal: Tensor = _Normalize.apply(input, mean[:, None, None], scale[:, None, None])
        return normal * self.weight[:, None, None] + self.bias[:, None, None]


def _statistics(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance, (C,) each, over the batches of all ranks.

    Every rank's own variance and the variance between the ranks' means: no difference of large squares.
    """
    variance, mean = torch.var_mean(values, (0, 2, 3), correction=0)
    own = torch.stack([mean, variance])
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, own)
    means, variances = torch.stack(parts, dim=1)
    return means.mean(0), variances.mean(0) + means.var(0, correction=0)


class _Normalize(torch.autograd.Function):
    """(x - mean) * scale, with the gradient that goes through the mean and the scale of all ranks."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
        normal = (values - mean) * scale
        ctx.save_for_backward(normal, scale)
        return normal

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        normal, scale = ctx.saved_tensors
        means = torch.stack([gradient.mean((0, 2, 3)), (gradient * normal).mean((0, 2, 3))])
        dist.all_reduce(means)
        of_gradient, of_product = (means / dist.get_world_size())[..., None, None]
        return (gradient - of_gradient - normal * of_product) * scale, None, None
