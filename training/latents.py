"""The latent space: the leading principal components of patches of 4 x 4 pixels, each with mean 0 and deviation 1.

It is fixed before any training, so that denoiser and autoencoder learn independently of each other; a network that
had to find four channels of its own had few of the colours after a thousand steps.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

CHANNELS = 8
PATCH = 4
SAMPLE = 1024  # images of the training set that decide the components


@dataclass(frozen=True)
class Components:
    """A convolution with stride `PATCH`: ``weight`` float (channels, 3, PATCH, PATCH), ``bias`` float (channels)."""

    weight: Tensor
    bias: Tensor

    @property
    def deviations(self) -> Tensor:
        """What a component's unit is in pixels (as a vector's length, 0 to 1): float (channels), falling."""
        lengths: Tensor = torch.linalg.vector_norm(self.weight.flatten(1), dim=1)
        return 1 / lengths

    def of(self, images: Tensor) -> Tensor:
        """Latents of images uint8 (N, 3, H, W): float (N, channels, H / PATCH, W / PATCH)."""
        weight, bias = (each.to(images.device) for each in (self.weight, self.bias))
        return F.conv2d(images.float() / 255, weight, bias, stride=PATCH)


def components(images: Tensor) -> Components:
    """The components of these images, uint8 (N, 3, H, W). Each points to where its largest entry is positive."""
    patches = F.unfold(images.double() / 255, PATCH, stride=PATCH).permute(0, 2, 1).reshape(-1, 3 * PATCH**2)
    mean = patches.mean(0)
    centred = patches - mean
    variances, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
    leading = vectors.flip(1)[:, :CHANNELS].T
    largest = leading.gather(1, leading.abs().argmax(1, keepdim=True))
    leading = leading * largest.sign() / variances.flip(0)[:CHANNELS, None].sqrt()
    return Components(weight=leading.reshape(CHANNELS, 3, PATCH, PATCH).float(), bias=-(leading @ mean).float())
