"""Guided upsampling: mask logits are brought from the patch grid to pixels along the edges of the image.

A pixel's logit is a weighted mean of the logits of the 3 x 3 patches around it, with the same weights for all
classes. The weights are a local attention from pixels to patches: joint bilateral upsampling (Kopf et al. 2007,
10.1145/1276377.1276497) with learned features, and convex combinations as in RAFT (Teed and Deng 2020, arXiv
2003.12039). Shapes: B images, K classes, H x W pixels, h x w patches of r x r pixels, N = h * w, D the joint
image-text space, C channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_STEM_CHANNELS = 16
_CHANNELS = 32
_SHARPNESS = 2.0
"""Of the prior, per squared patch: a Gaussian with a standard deviation of half a patch."""


class GuidedUpsampling(nn.Module):
    """The weights of a pixel x in patch p, over the patches n in the 3 x 3 neighbourhood of p:

        w(x, n) = softmax_n( q(x) . k(n) / sqrt(C) - 2 |x - centre(n)|^2 )

    q: a linear map of f, two 3 x 3 convolutions of the image. k: a linear map of f's mean over the patch, plus one
    of the patch token. Distances are in patches. At the image's border, the neighbours that are missing are copies
    of the outermost patches.

    Args: embed_dim: D. stride: r.
    """

    prior: Tensor

    def __init__(self, *, embed_dim: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.stem = nn.Sequential(
            _convolution(3, _STEM_CHANNELS), nn.GELU("tanh"), _convolution(_STEM_CHANNELS, _CHANNELS)
        )
        self.to_query = nn.Conv2d(_CHANNELS, _CHANNELS, 1)
        # Keys need no bias: it would add the same to the scores of all neighbours.
        self.to_key = nn.Conv2d(_CHANNELS, _CHANNELS, 1, bias=False)
        self.from_token = nn.Linear(embed_dim, _CHANNELS, bias=False)
        self.register_buffer("prior", _prior(stride), persistent=False)

    def forward(self, images: Tensor, patches: Tensor) -> Tensor:
        """Return the weights, float32 (B, 9, r * r, N); they sum to 1 over the 9 neighbours.

        Args: images: uint8 (B, 3, H, W). patches: (B, N, D), L2-normalised.
        """
        features = self.stem(images / 127.5 - 1)
        means = F.avg_pool2d(features, self.stride)
        # Unit vectors of D entries, brought to unit variance.
        tokens = self.from_token(patches * patches.shape[-1] ** 0.5).transpose(1, 2)
        keys = _neighbours(self.to_key(means) + tokens.reshape_as(means))
        queries = _by_patch(self.to_query(features), self.stride)
        scores = torch.einsum("bcpn,bcjn->bjpn", queries, keys) * _CHANNELS**-0.5
        return torch.softmax(scores.float() + self.prior, dim=1)

    def upsample(self, logits_BKhw: Tensor, weights: Tensor) -> Tensor:
        """Return mask logits by pixel, float32 (B, K, H, W).

        Args: logits_BKhw: float32, on the patch grid. weights: from `forward`.
        """
        rows, columns = logits_BKhw.shape[-2:]
        with torch.autocast(logits_BKhw.device.type, enabled=False):
            mixed = torch.einsum("bjpn,bkjn->bkpn", weights, _neighbours(logits_BKhw))
        grid = mixed.reshape(*mixed.shape[:2], self.stride, self.stride, rows, columns).permute(0, 1, 4, 2, 5, 3)
        return grid.reshape(*mixed.shape[:2], rows * self.stride, columns * self.stride)


def _convolution(channels: int, out: int) -> nn.Conv2d:
    return nn.Conv2d(channels, out, 3, padding=1, padding_mode="replicate")


def _prior(stride: int) -> Tensor:
    """Return the log-prior of every neighbour at every pixel of a patch, float (9, r * r, 1)."""
    within = (torch.arange(stride) + 0.5) / stride - 0.5
    pixels = torch.cartesian_prod(within, within)
    centres = torch.cartesian_prod(torch.arange(-1.0, 2), torch.arange(-1.0, 2))
    return -_SHARPNESS * (pixels - centres[:, None]).square().sum(-1)[..., None]


def _neighbours(grid: Tensor) -> Tensor:
    """Return every patch's 3 x 3 neighbourhood, row by row: (B, C, h, w) -> (B, C, 9, N)."""
    windows = F.unfold(F.pad(grid, (1, 1, 1, 1), mode="replicate"), 3)
    return windows.reshape(*grid.shape[:2], 9, -1)


def _by_patch(pixels: Tensor, stride: int) -> Tensor:
    """Return the pixels of every patch, row by row: (B, C, H, W) -> (B, C, r * r, N)."""
    batch, channels, height, width = pixels.shape
    parts = pixels.reshape(batch, channels, height // stride, stride, width // stride, stride)
    return parts.permute(0, 1, 3, 5, 2, 4).reshape(batch, channels, stride**2, -1)
