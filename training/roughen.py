"""Blur and noise for the training of classifiers, so that they do not depend on an image's sharpness."""

import torch
import torch.nn.functional as F
from torch import Tensor

_BLUR = torch.tensor([1.0, 2.0, 1.0]) / 4


def blurred(pixels: Tensor) -> Tensor:
    """Apply a binomial blur over 3 x 3 pixels. Args: pixels: float (B, 3, H, W)."""
    kernel = torch.outer(_BLUR, _BLUR).to(pixels).expand(3, 1, 3, 3)
    return F.conv2d(F.pad(pixels, (1, 1, 1, 1), mode="replicate"), kernel, groups=3)


def roughened(pixels: Tensor, rng: torch.Generator, *, noise: float = 6.0) -> Tensor:
    """Blur each image zero to two times, and add noise with a random standard deviation, 0 to ``noise``.

    Args: pixels: float (B, 3, H, W), 0 to 255. rng: on their device.
    """
    shape = (len(pixels), 1, 1, 1)
    times = torch.randint(0, 3, shape, generator=rng, device=pixels.device)
    once = blurred(pixels)
    soft = torch.where(times == 0, pixels, torch.where(times == 1, once, blurred(once)))
    deviation = noise * torch.rand(shape, generator=rng, device=pixels.device)
    grain = deviation * torch.randn(pixels.shape, generator=rng, device=pixels.device)
    return (soft + grain).clamp(0, 255)
