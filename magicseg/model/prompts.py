"""Deep visual prompts: learned tokens that join an encoder's tokens and are replaced at each layer.

Source: VPT-deep (Jia et al. 2022, arXiv 2203.12119). The encoder is not changed: prompts are inserted between its
layers from outside. Shapes as in `magicseg.model.encoder`, P prompts per layer.
"""

import math
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from magicseg.model.encoder import Encoder


class DeepPrompts(nn.Module):
    """P prompt tokens for each layer: parameters -> projection -> LayerNorm (eps 1e-6) -> dropout.

    Args: norm_of: "output": as in the paper's release. There the LayerNorm that is named for the prompts is applied
    to all tokens after the last layer, before the encoder's own norm. The prompts have none, and the projection's
    weights are normal with a variance of 2 / width (He et al. 2015, arXiv 1502.01852).
    """

    def __init__(
        self,
        *,
        tokens: int,
        layers: int,
        width: int,
        stride: int,
        dropout: float,
        norm_of: Literal["prompts", "output"] = "prompts",
    ) -> None:
        super().__init__()
        self.count = tokens
        self.norm_of = norm_of
        bound = math.sqrt(6 / (3 * stride**2 + width))  # as for a patch embedding
        self.tokens = nn.Parameter(torch.empty(layers, tokens, width).uniform_(-bound, bound))
        self.projection = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.dropout = nn.Dropout(dropout)
        if norm_of == "output":
            nn.init.kaiming_normal_(self.projection.weight, mode="fan_out")

    def forward(self, layer: int, batch: int) -> Tensor:
        """Return the prompts of one layer for each image, float (batch, P, C)."""
        prompts = self.projection(self.tokens[layer])
        if self.norm_of == "prompts":
            prompts = self.norm(prompts)
        return cast("Tensor", self.dropout(prompts.expand(batch, -1, -1)))

    def finish(self, tokens: Tensor) -> Tensor:
        """Return the tokens for the encoder's head, float (B, N, C): through the LayerNorm with "output"."""
        return cast("Tensor", self.norm(tokens)) if self.norm_of == "output" else tokens


def encode_with_prompts(
    encoder: Encoder,
    images: Tensor,
    prompts: DeepPrompts | None,
    *,
    drop_path: float = 0.0,
    checkpoint_activations: bool = False,
) -> Tensor:
    """Encode images, with prompts between the class token and the patches.

    Without prompts this is the plain forward pass. The prompts' own outputs are discarded after every layer.

    Args:
        images: uint8 (B, 3, H, W).
        drop_path: probability of skipping the deepest layer for an image (stochastic depth). It grows linearly from 0
            at the first layer. 0 for inference.
        checkpoint_activations: keep only each layer's input, and recompute the layer in the backward pass: less
            memory, more time, the same values.

    Returns: float (B, 1 + h * w, D), class token first, not normalised.
    """
    tokens = encoder.embed(images)
    for layer in range(encoder.layers):
        if prompts is not None:
            tokens = torch.cat([tokens[:, :1], prompts(layer, len(tokens)).to(tokens.dtype), tokens[:, 1:]], 1)
        rate = drop_path * layer / max(encoder.layers - 1, 1)
        after = (
            checkpoint(encoder.block, layer, tokens, use_reentrant=False)
            if checkpoint_activations
            else encoder.block(layer, tokens)
        )
        tokens = _skip_for_some(tokens, after, rate)
        if prompts is not None:
            tokens = torch.cat([tokens[:, :1], tokens[:, 1 + prompts.count :]], 1)
    return encoder.head(tokens if prompts is None else prompts.finish(tokens))


def _skip_for_some(before: Tensor, after: Tensor, rate: float) -> Tensor:
    """Keep a layer's change for a random 1 - rate of the images, scaled to the same mean."""
    if rate == 0:
        return after
    kept = torch.rand(len(before), 1, 1, device=before.device) >= rate
    return before + (after - before) * (kept.to(before.dtype) / (1 - rate))
