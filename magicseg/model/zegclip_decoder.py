"""The mask decoder ``zegclip``, of the paper's release (arXiv 2603.19575), which is built on ZegCLIP's.

Source: the attention-to-mask decoder of SegViT (Zhang et al. 2022, arXiv 2210.05844) with the relationship descriptor
of ZegCLIP (Zhou et al. 2023, arXiv 2212.03588) as its query. docs/method.md compares it with
`magicseg.model.decoder.MaskDecoder`. Shapes: B images, K classes, h x w patches, D the joint image-text space, which
is also the decoder's width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from magicseg.core.errors import ConfigError

_DROPOUT = 0.1


class ZegclipDecoder(nn.Module):
    """Queries Linear(2D -> D) of [cls * t ; t], then post-norm layers of cross-attention and feed-forward.

    The memory is the patch tokens as they are. The mask logits are the last layer's attention before the softmax,
    q . k / sqrt(D / heads), averaged over heads; nothing is learned on top. Queries do not attend to each other.

    The release's last layer also has values, an output projection and a feed-forward. They have no effect on the
    result, so this one has no such parameters.

    Args: width: D. layers: all of them, at least 1. heads: of attention; ``width`` is a multiple of them.
    Raises: ConfigError if it is not.
    """

    def __init__(self, *, width: int, layers: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ConfigError(f"decoder_width is {width}, not a multiple of decoder_heads ({heads})")
        self.heads = heads
        self.query = nn.Linear(2 * width, width)
        self.layers = nn.ModuleList(_PostNormLayer(width, heads) for _ in range(layers - 1))
        self.to_query = nn.Linear(width, width)  # of the last layer
        self.to_key = nn.Linear(width, width)
        self.apply(_initialise)

    def forward(self, cls: Tensor, patches: Tensor, text: Tensor) -> Tensor:
        """Return mask logits on the patch grid.

        Args: cls: (B, D). patches: (B, h * w, D). text: (B, K, D). All L2-normalised.
        Returns: float (B, K, h * w).
        """
        return self._mean_over_heads(*self._attentions(cls, patches, text)[-1])

    def every_layer(self, cls: Tensor, patches: Tensor, text: Tensor) -> tuple[Tensor, ...]:
        """Return the mask logits of all layers in their order; the last entry is `forward`'s result.

        Args and shapes as in `forward`.
        """
        return tuple(self._mean_over_heads(*each) for each in self._attentions(cls, patches, text))

    def _attentions(self, cls: Tensor, patches: Tensor, text: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return the queries (B, K, D) and keys (B, h * w, D) of all layers, before they are split into heads."""
        queries = self.query(torch.cat([cls[:, None] * text, text], dim=-1))
        found: list[tuple[Tensor, Tensor]] = []
        for layer in self.layers:
            queries, query, key = layer(queries, patches)
            found.append((query, key))
        return [*found, (self.to_query(queries), self.to_key(patches))]

    def _mean_over_heads(self, query: Tensor, key: Tensor) -> Tensor:
        """Return mask logits (B, K, h * w) from queries (B, K, D) and keys (B, h * w, D).

        The mean over heads of q_head . k_head is q . k of the whole width, divided by the number of heads.
        """
        scale = (query.shape[-1] // self.heads) ** -0.5 / self.heads
        return torch.einsum("bkc,bnc->bkn", query * scale, key)


class _PostNormLayer(nn.Module):
    """Cross-attention from queries to memory, then a feed-forward four times as wide: a norm after each residual.

    Dropout is on the attention weights, inside the feed-forward, and on both branches before they are added.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_query = nn.Linear(width, width)
        self.to_key = nn.Linear(width, width)
        self.to_value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.norm1 = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, 4 * width), nn.ReLU(), nn.Dropout(_DROPOUT), nn.Linear(4 * width, width)
        )
        self.norm2 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(_DROPOUT)

    def forward(self, queries: Tensor, memory: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the new queries (B, K, D), and this layer's attention queries (B, K, D) and keys (B, h * w, D).

        Args: queries: (B, K, D). memory: (B, h * w, D).
        """
        query, key, value = self.to_query(queries), self.to_key(memory), self.to_value(memory)
        heads = [each.unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in (query, key, value)]
        rate = _DROPOUT if self.training else 0.0
        mixed = F.scaled_dot_product_attention(heads[0], heads[1], heads[2], dropout_p=rate)
        queries = self.norm1(queries + self.dropout(self.out(mixed.transpose(1, 2).flatten(2))))
        return self.norm2(queries + self.dropout(self.feed_forward(queries))), query, key


def _initialise(module: nn.Module) -> None:
    """Truncated normal weights with a deviation of 0.02, biases of 0. A LayerNorm begins with 1 and 0 anyway."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
