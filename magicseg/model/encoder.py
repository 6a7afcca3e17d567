"""Image and text encoders: the `Encoder` protocol, and the small encoder `miniature`, trained from scratch.

Pretrained encoders are in `magicseg.model.open_clip_encoder`.

An image encoder runs in three steps, so that prompts can be inserted between its layers
(`magicseg.model.prompts`): ``embed`` -> ``block`` for each layer -> ``head``. Shapes: B images, H x W pixels,
h x w patches, N = 1 + h * w tokens with the class token first, C the token width, D the joint space.
"""

import hashlib
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from magicseg.config.model import EncoderSettings, OpenClipSettings
from magicseg.core.errors import BackendError, ConfigError, DataError
from magicseg.model.batch_norm import BatchNorm2d

if TYPE_CHECKING:
    from magicseg.model.open_clip_encoder import OpenClipEncoder


@runtime_checkable
class Encoder(Protocol):
    """The methods of an encoder that the segmenter calls. An encoder is also a ``torch.nn.Module``."""

    stride: int
    width: int
    layers: int
    embed_dim: int

    def embed(self, images: Tensor) -> Tensor:
        """Embed pixels uint8 (B, 3, H, W), RGB, H and W multiples of ``stride`` -> tokens float (B, N, C)."""

    def block(self, layer: int, tokens: Tensor) -> Tensor:
        """Apply one layer: float (B, any number of tokens, C) -> same shape."""

    def head(self, tokens: Tensor) -> Tensor:
        """Apply the final norm and projection to tokens without prompts: (B, N, C) -> (B, N, D), not normalised."""

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Embed K texts: float (K, D), not normalised."""

    def text_tokens(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Return the tokens of each text. Texts with the same tokens have the same embedding."""

    def text_parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        """Return names (in this module) and parameters that `encode_text` uses."""

    def text_identity(self) -> Mapping[str, str] | None:
        """Return everything that decides `encode_text`'s values, as a cache's key. None: too cheap to cache."""


class MiniatureEncoder(nn.Module):
    """A convolutional stem in front of attention layers, and bags of character n-grams for text."""

    def __init__(self, settings: EncoderSettings) -> None:
        super().__init__()
        if settings.image_size % settings.stride:
            raise ConfigError(
                f"encoder.image_size is {settings.image_size}, not a multiple of encoder.stride ({settings.stride})"
            )
        if settings.width % settings.heads:
            raise ConfigError(
                f"encoder.width is {settings.width}, not a multiple of encoder.heads ({settings.heads})"
            )
        self.stride: int = settings.stride
        self.width = settings.width
        self.layers = settings.layers
        self.embed_dim = settings.embed_dim
        grid = settings.image_size // settings.stride
        self.stem = _stem(settings.width, settings.stride)
        self.class_token = nn.Parameter(torch.randn(settings.width) * 0.02)
        self.positions = nn.Parameter(torch.randn(1, settings.width, grid, grid) * 0.02)
        self.blocks = nn.ModuleList(_Block(settings.width, settings.heads) for _ in range(settings.layers))
        self.norm = nn.LayerNorm(settings.width)
        self.projection = nn.Linear(settings.width, settings.embed_dim, bias=False)
        self.text = TextEncoder(settings.embed_dim)

    def embed(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        if height % self.stride or width % self.stride:
            raise DataError(f"an image of {height} x {width} pixels does not fit the stride {self.stride}")
        pixels = images.contiguous(memory_format=torch.channels_last).to(self.class_token.dtype)
        features = self.stem(pixels / 127.5 - 1)
        positions: Tensor = self.positions
        if features.shape[-2:] != positions.shape[-2:]:
            positions = F.interpolate(positions, features.shape[-2:], mode="bicubic", align_corners=False)
        patches = (features + positions).flatten(2).transpose(1, 2)
        return torch.cat([self.class_token.expand(len(patches), 1, -1).to(patches.dtype), patches], dim=1)

    def block(self, layer: int, tokens: Tensor) -> Tensor:
        return cast("Tensor", self.blocks[layer](tokens))

    def head(self, tokens: Tensor) -> Tensor:
        return cast("Tensor", self.projection(self.norm(tokens)))

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        return cast("Tensor", self.text(texts))

    def text_tokens(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        return [
            tuple(sorted(ngram_buckets(text, buckets=self.text.buckets, sizes=self.text.sizes))) for text in texts
        ]

    def text_parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        return self.text.named_parameters(prefix="text")

    def text_identity(self) -> None:
        return None


def _stem(width: int, stride: int) -> nn.Sequential:
    """Strided 3 x 3 convolutions with batch norm: (B, 3, H, W) -> (B, width, H / stride, W / stride).

    Trained from scratch on a few thousand images, a stem learns in minutes and a patch embedding does not.
    """
    halvings = int(math.log2(stride))
    channels = [3, *(max(width >> (halvings - 1 - step), 8) for step in range(halvings))]
    steps = [
        layer
        for before, after in itertools.pairwise(channels)
        for layer in (*_convolution(before, after, stride=2), *_convolution(after, after, stride=1))
    ]
    return nn.Sequential(*steps, _Surroundings(width))


class _Surroundings(nn.Module):
    """Add each patch's surroundings, by three convolutions at half the resolution: (B, C, h, w) -> same shape."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.far = nn.Sequential(
            *_convolution(width, width, stride=2),
            *_convolution(width, width, stride=1),
            *_convolution(width, width, stride=1),
        )
        self.join = nn.Sequential(*_convolution(2 * width, width, stride=1))

    def forward(self, near: Tensor) -> Tensor:
        far = F.interpolate(self.far(near), size=near.shape[-2:], mode="bilinear", align_corners=False)
        return cast("Tensor", self.join(torch.cat([near, far], dim=1)))


def _convolution(before: int, after: int, *, stride: int) -> list[nn.Module]:
    return [
        nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False),
        BatchNorm2d(after),
        nn.ReLU(),
    ]


class _Block(nn.Module):
    """A pre-norm transformer layer with an MLP four times as wide."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        batch, count, width = tokens.shape
        qkv = self.qkv(self.norm1(tokens)).view(batch, count, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(batch, count, width)
        tokens = tokens + self.out(mixed)
        return cast("Tensor", tokens + self.mlp(self.norm2(tokens)))


class TextEncoder(nn.Module):
    """A bag of hashed character n-grams, then an MLP. It has no vocabulary: any text has an embedding.

    The hash is fixed (BLAKE2), so that the same text gives the same buckets in every process and release.
    """

    def __init__(self, embed_dim: int, *, buckets: int = 1024, sizes: tuple[int, ...] = (2, 3, 4)) -> None:
        super().__init__()
        self.buckets = buckets
        self.sizes = sizes
        self.bag = nn.Linear(buckets, embed_dim)
        self.mlp = nn.Sequential(nn.LayerNorm(embed_dim), nn.GELU(), nn.Linear(embed_dim, embed_dim))

    def forward(self, texts: Sequence[str]) -> Tensor:
        """Embed K texts: float (K, embed_dim)."""
        counts = torch.zeros(len(texts), self.buckets)
        for row, text in enumerate(texts):
            buckets = ngram_buckets(text, buckets=self.buckets, sizes=self.sizes)
            counts[row] = torch.bincount(torch.tensor(buckets, dtype=torch.int64), minlength=self.buckets)
        counts = F.normalize(counts, dim=1) * math.sqrt(self.buckets)
        return cast("Tensor", self.mlp(self.bag(counts.to(self.bag.weight))))


@lru_cache(maxsize=4096)
def ngram_buckets(text: str, *, buckets: int, sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Return the hash bucket of every character n-gram of every word (case folded, with word ends marked)."""
    words = [f" {word} " for word in text.casefold().split()]
    grams = [word[at : at + n] for word in words for n in sizes for at in range(len(word) - n + 1)]
    digests = (hashlib.blake2b(gram.encode(), digest_size=8).digest() for gram in grams)
    return tuple(int.from_bytes(digest, "little") % buckets for digest in digests)


def build_encoder(settings: EncoderSettings | OpenClipSettings) -> "MiniatureEncoder | OpenClipEncoder":
    """Return the encoder that the settings name: pretrained, or with weights from torch's global generator.

    Raises: ConfigError for settings that do not fit; BackendError if weights or open_clip are missing.
    """
    if isinstance(settings, EncoderSettings):
        return MiniatureEncoder(settings)
    made: OpenClipEncoder = open_clip_encoders().open_clip_encoder(settings)
    return made


def open_clip_encoders() -> Any:
    """Import `magicseg.model.open_clip_encoder`, which takes seconds. Raises BackendError without open_clip."""
    try:
        return import_module("magicseg.model.open_clip_encoder")
    except ImportError as error:
        raise BackendError(
            f"the encoder open-clip needs open_clip: {error}",
            hint="install the model libraries: pip install 'magicseg[models]'",
        ) from error
