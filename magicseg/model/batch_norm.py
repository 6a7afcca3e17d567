"""Batch norm whose statistics are those of all ranks' batches together.

In one process, and in inference, it is `torch.nn.BatchNorm2d` to the bit. Parameters and buffers have the same names,
so either loads the other's weights. torch's own ``SyncBatchNorm`` refuses tensors on the CPU.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist


class BatchNorm2d(nn.BatchNorm2d):
    """``nn.BatchNorm2d`` with affine and running statistics. All ranks must have batches of the same size."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalize float (B, C, H, W), as if the ranks' batches were one batch."""
        if not (self.training and dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(input)
        with torch.no_grad():
            mean, variance = _statistics(input.detach().float())  # half precision under autocast
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
        return (normal * self.weight[:, None, None] + self.bias[:, None, None]).to(input.dtype)


def _statistics(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance, (C,) each, over the batches of all ranks.

    The variance is the mean of the ranks' variances plus the variance of their means. That avoids the difference of
    large squares.
    """
    variance, mean = torch.var_mean(values, (0, 2, 3), correction=0)
    own = torch.stack([mean, variance])
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, own)
    means, variances = torch.stack(parts, dim=1)
    return means.mean(0), variances.mean(0) + means.var(0, correction=0)


class _Normalize(torch.autograd.Function):
    """Compute (x - mean) * scale. The gradient also flows through mean and scale, which depend on all ranks."""

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
