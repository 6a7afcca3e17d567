"""The latent space: the leading principal components of 4 x 4 pixel patches, with mean 0 and standard deviation 1.

It is fixed before any training, so that denoiser and autoencoder can be trained independently. A network that had to
learn four channels itself reproduced few of the colours after a thousand steps.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

CHANNELS = 8
PATCH = 4
SAMPLE = 1024  # training images for the principal component analysis


@dataclass(frozen=True)
class Components:
    """A convolution with stride `PATCH`: ``weight`` float (channels, 3, PATCH, PATCH), ``bias`` float (channels)."""

    weight: Tensor
    bias: Tensor

    @property
    def deviations(self) -> Tensor:
        """Return the length in pixel space (0 to 1) of each component's unit: float (channels), descending."""
        lengths: Tensor = torch.linalg.vector_norm(self.weight.flatten(1), dim=1)
        return 1 / lengths

    def of(self, images: Tensor) -> Tensor:
        """Return latents, float (N, channels, H / PATCH, W / PATCH), of images, uint8 (N, 3, H, W)."""
        weight, bias = (each.to(images.device) for each in (self.weight, self.bias))
        return F.conv2d(images.float() / 255, weight, bias, stride=PATCH)


def components(images: Tensor) -> Components:
    """Return the components of images, uint8 (N, 3, H, W). The sign makes each component's largest entry positive."""
    patches = F.unfold(images.double() / 255, PATCH, stride=PATCH).permute(0, 2, 1).reshape(-1, 3 * PATCH**2)
    mean = patches.mean(0)
    centred = patches - mean
    variances, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
    leading = vectors.flip(1)[:, :CHANNELS].T
    largest = leading.gather(1, leading.abs().argmax(1, keepdim=True))
    leading = leading * largest.sign() / variances.flip(0)[:CHANNELS, None].sqrt()
    return Components(weight=leading.reshape(CHANNELS, 3, PATCH, PATCH).float(), bias=-(leading @ mean).float())
