"""The mask decoder ``pre-norm``: class queries attend to patch tokens, and the attention is the mask.

`magicseg.model.zegclip_decoder` has the one of the paper's release.

Source: the attention-to-mask decoder of SegViT (Zhang et al. 2022, arXiv 2210.05844) with the relationship
descriptor of ZegCLIP (Zhou et al. 2023, arXiv 2212.03588) as its query. Shapes: B images, K classes,
h x w patches, D the joint image-text space, C the decoder's width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from magicseg.config.model import ModelSettings
from magicseg.core.errors import ConfigError
from magicseg.model.zegclip_decoder import ZegclipDecoder


def build_decoder(settings: ModelSettings, *, embed_dim: int) -> "MaskDecoder | ZegclipDecoder":
    """Return the decoder that the settings name, with fresh weights from torch's generator.

    Another decoder needs the methods `MaskDecoder.forward` and `MaskDecoder.every_layer`, and a branch here.

    Args: embed_dim: of the joint image-text space.
    Raises: ConfigError if the widths or the number of heads do not fit.
    """
    if settings.decoder == "zegclip":
        if settings.decoder_width != embed_dim:
            raise ConfigError(
                f"decoder_width is {settings.decoder_width}, and the encoder's embed_dim is {embed_dim}: the decoder "
                "zegclip has no projection between them",
                hint=f"set train.decoder_width={embed_dim}, or train.decoder=pre-norm",
            )
        return ZegclipDecoder(width=embed_dim, layers=settings.decoder_layers, heads=settings.decoder_heads)
    return MaskDecoder(
        embed_dim=embed_dim,
        width=settings.decoder_width,
        layers=settings.decoder_layers,
        heads=settings.decoder_heads,
    )


class MaskDecoder(nn.Module):
    """Queries Linear(2D -> C) of [cls * t ; t], then layers of cross-attention and MLP.

    The mask logits are the last layer's attention before the softmax, averaged over heads. Queries do not attend to
    each other, so a class's mask does not depend on the other queried classes. The last layer has no values and no
    MLP, because nothing would use them.

    Args: embed_dim: D, of the image's and texts' embeddings. width: C, of the decoder. layers: all of them, at least
    1. heads: of attention; ``width`` is a multiple of them.
    """

    def __init__(self, *, embed_dim: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ConfigError(f"decoder_width is {width}, not a multiple of decoder_heads ({heads})")
        self.query = nn.Linear(2 * embed_dim, width)
        self.memory = nn.Sequential(nn.Linear(embed_dim, width), nn.LayerNorm(width))
        self.layers = nn.ModuleList(_CrossLayer(width, heads) for _ in range(layers - 1))
        self.mask = _MaskAttention(width, heads)

    def forward(self, cls: Tensor, patches: Tensor, text: Tensor) -> Tensor:
        """Return mask logits on the patch grid.

        Args: cls: (B, D). patches: (B, h * w, D). text: (B, K, D). All L2-normalised.
        Returns: float (B, K, h * w).
        """
        return self.mask.logits(*self._attentions(cls, patches, text)[-1])

    def every_layer(self, cls: Tensor, patches: Tensor, text: Tensor) -> tuple[Tensor, ...]:
        """Return the mask logits of all layers in their order; the last entry is `forward`'s result.

        An earlier layer's logits are its own attention before the softmax, averaged over heads, with the last layer's
        scale and offset, so no parameter is added. Args and shapes as in `forward`.
        """
        return tuple(self.mask.logits(*each) for each in self._attentions(cls, patches, text))

    def _attentions(self, cls: Tensor, patches: Tensor, text: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return the queries (B, K, C) and keys (B, h * w, C) of all layers, before they are split into heads."""
        scale = cls.shape[-1] ** 0.5  # unit vectors of D entries, brought to unit variance
        related = torch.cat([cls[:, None] * text * scale, text], dim=-1) * scale
        queries = self.query(related)
        memory = self.memory(patches)
        found: list[tuple[Tensor, Tensor]] = []
        for layer in self.layers:
            queries, query, key = layer(queries, memory)
            found.append((query, key))
        return [*found, self.mask(queries, memory)]


class _CrossLayer(nn.Module):
    """Pre-norm cross-attention from queries to memory, then an MLP four times as wide."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.to_query = nn.Linear(width, width)
        self.to_key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))

    def forward(self, queries: Tensor, memory: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the new queries (B, K, C), and this layer's attention queries (B, K, C) and keys (B, h * w, C).

        Args: queries: (B, K, C). memory: (B, h * w, C).
        """
        query = self.to_query(self.norm1(queries))
        key, value = self.to_key_value(memory).chunk(2, dim=-1)
        heads = [_split_heads(each, self.heads) for each in (query, key, value)]
        mixed = F.scaled_dot_product_attention(heads[0], heads[1], heads[2]).transpose(1, 2).flatten(2)
        queries = queries + self.out(mixed)
        return queries + self.mlp(self.norm2(queries)), query, key


class _MaskAttention(nn.Module):
    """Attention before the softmax, averaged over heads, with a learned scale and offset.

    The plain average starts near 0, where every pixel has probability 0.5 for every class, and training leaves that
    slowly. The initial offset lowers the probability, and the initial scale is large enough to raise it again.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.to_query = nn.Linear(width, width)
        self.to_key = nn.Linear(width, width)
        self.scale = nn.Parameter(torch.tensor(4.0))
        self.offset = nn.Parameter(torch.tensor(-2.0))

    def forward(self, queries: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Return the last layer's queries and keys. Shapes: (B, K, C) and (B, h * w, C)."""
        return self.to_query(self.norm(queries)), self.to_key(memory)

    def logits(self, query: Tensor, key: Tensor) -> Tensor:
        """Return mask logits (B, K, h * w) from any layer's queries (B, K, C) and keys (B, h * w, C).

        Both come before they are split into heads: the mean over heads of q_head . k_head is q . k of the whole
        width, divided by the number of heads.
        """
        scale = (query.shape[-1] // self.heads) ** -0.5 / self.heads
        return torch.einsum("bkc,bnc->bkn", query * (scale * self.scale), key) + self.offset


def _split_heads(tokens: Tensor, heads: int) -> Tensor:
    """(B, N, C) -> (B, heads, N, C / heads)."""
    batch, count, width = tokens.shape
    return tokens.view(batch, count, heads, width // heads).transpose(1, 2)


def upsample_logits(logits_BKhw: Tensor, size: tuple[int, int]) -> Tensor:
    """Upsample mask logits bilinearly to the image's size.

    Args: logits_BKhw: float, raw scores on the patch grid. size: (height, width) in pixels.
    Returns: float (B, K, height, width); the same tensor if it has this size already.
    """
    if tuple(logits_BKhw.shape[-2:]) == tuple(size):
        return logits_BKhw
    return F.interpolate(logits_BKhw, size=size, mode="bilinear", align_corners=False)
