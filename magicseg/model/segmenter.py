"""The segmenter: encoder with prompts, class texts, mask decoder; saved as safetensors beside a JSON file.

    model = Segmenter(ModelSettings())
    text = model.encode_classes(["car", "house"])           # (K, D)
    output = model(images, text)                            # uint8 (B, 3, H, W) -> logits (B, K, H, W)
    save_segmenter(model, folder); model = load_segmenter(folder)

A folder holds ``model.json`` (format version, settings, digest of the weights, free provenance) and
``model.safetensors``. Nothing is ever pickled.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

import safetensors
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from magicseg.errors import DataError
from magicseg.model.decoder import MaskDecoder, upsample_logits
from magicseg.model.encoder import build_encoder
from magicseg.model.prompts import DeepPrompts, encode_with_prompts
from magicseg.model.settings import ModelSettings
from magicseg.run.files import write_atomic

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class SegmenterOutput:
    """``logits``: float (B, K, H, W), one yes-or-no score per class and pixel (sigmoid, not softmax).
    ``cls``: float (B, D), the images' L2-normalised embeddings.
    """

    logits: Tensor
    cls: Tensor


class Segmenter(nn.Module):
    """Images and class texts to one mask per class."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.settings = settings
        self.checkpoint_activations = False  # a matter of memory in training, no part of the model
        self.encoder = build_encoder(settings.encoder)
        if settings.encoder.freeze:
            self.encoder.requires_grad_(False)
        self.prompts = (
            DeepPrompts(
                tokens=settings.prompt_tokens,
                layers=self.encoder.layers,
                width=self.encoder.width,
                stride=self.encoder.stride,
                dropout=settings.prompt_dropout,
            )
            if settings.prompt_tokens
            else None
        )
        self.decoder = MaskDecoder(
            embed_dim=self.encoder.embed_dim,
            width=settings.decoder_width,
            layers=settings.decoder_layers,
            heads=settings.decoder_heads,
        )

    def train(self, mode: bool = True) -> "Segmenter":
        """As in torch, but a frozen encoder stays in inference mode (its batch statistics do not move)."""
        super().train(mode)
        if self.settings.encoder.freeze:
            self.encoder.eval()
        return self

    def encode_classes(self, names: Sequence[str]) -> Tensor:
        """Class names -> L2-normalised text embeddings, float (K, D)."""
        texts = [self.settings.class_prompt.replace("{}", name) for name in names]
        return F.normalize(self.encoder.encode_text(texts), dim=-1)

    def encode_images(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 (B, 3, H, W) -> class tokens (B, D) and patch tokens (B, h * w, D), L2-normalised."""
        drop_path = self.settings.drop_path if self.training else 0.0
        tokens = encode_with_prompts(
            self.encoder,
            images,
            self.prompts,
            drop_path=drop_path,
            checkpoint_activations=self.checkpoint_activations and torch.is_grad_enabled(),
        )
        tokens = F.normalize(tokens, dim=-1)
        return tokens[:, 0], tokens[:, 1:]

    @overload
    def decode(
        self, cls: Tensor, patches: Tensor, text: Tensor, size: tuple[int, int], *, every_layer: Literal[False] = ...
    ) -> Tensor: ...

    @overload
    def decode(
        self, cls: Tensor, patches: Tensor, text: Tensor, size: tuple[int, int], *, every_layer: Literal[True]
    ) -> tuple[Tensor, ...]: ...

    def decode(
        self, cls: Tensor, patches: Tensor, text: Tensor, size: tuple[int, int], *, every_layer: bool = False
    ) -> Tensor | tuple[Tensor, ...]:
        """Mask logits at the image's size.

        Args: cls, patches: as `encode_images` returns them. text: (K, D), or (B, K, D) for classes of each
            image's own. size: (height, width) of the images.
        Returns: float32 (B, K, height, width).
        """
        if text.dim() == 2:
            text = text.expand(len(cls), -1, -1)
        grid = (size[0] // self.encoder.stride, size[1] // self.encoder.stride)
        layers = self.decoder(cls, patches, text, every_layer=every_layer)
        logits = tuple(upsample_logits(layer.float().unflatten(-1, grid), size) for layer in layers)
        return logits if every_layer else logits[-1]

    def forward(self, images: Tensor, text: Tensor) -> SegmenterOutput:
        """Args: images: uint8 (B, 3, H, W), RGB, sides multiples of the stride. text: (K, D) or (B, K, D)."""
        cls, patches = self.encode_images(images)
        height, width = images.shape[-2:]
        return SegmenterOutput(logits=self.decode(cls, patches, text, (height, width)), cls=cls)


def build_segmenter(settings: ModelSettings, *, seed: int) -> Segmenter:
    """A segmenter with fresh weights that depend on the seed alone; torch's global generator stays."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Segmenter(settings)


def weights_digest(model: nn.Module) -> str:
    """SHA-256 of the names, shapes, types and bytes of all parameters and buffers: ``sha256:...``."""
    return _digest(save(_tensors(model)))


def save_segmenter(model: Segmenter, folder: Path, *, provenance: Mapping[str, Any] | None = None) -> str:
    """Write ``model.safetensors``, then ``model.json`` which names its digest, each whole or not at all.

    Args: provenance: what the caller wants to remember of where the weights come from; plain JSON.
    Returns: the weights' digest.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = save(_tensors(model))
    digest = _digest(weights)
    card = {
        "format": FORMAT,
        "settings": model.settings.model_dump(mode="json"),
        "weights": "model.safetensors",
        "weights_digest": digest,
        "provenance": dict(provenance or {}),
    }
    write_atomic(folder / "model.safetensors", weights)
    write_atomic(folder / "model.json", (json.dumps(card, indent=2) + "\n").encode())
    return digest


def load_segmenter(folder: Path) -> Segmenter:
    """Read what `save_segmenter` wrote, on the CPU, in inference mode.

    Raises: DataError when a file is missing, of another format, or does not match its digest.
    """
    card = read_card(folder)
    path = folder / str(card["weights"])
    try:
        model = Segmenter(ModelSettings.model_validate(card["settings"]))
        model.load_state_dict(load_file(path))
    except (OSError, ValidationError, RuntimeError, safetensors.SafetensorError) as error:
        raise DataError(f"{path}: cannot be loaded: {error}") from error
    if weights_digest(model) != card["weights_digest"]:
        raise DataError(
            f"{path}: the weights are not those that model.json names",
            hint="train again, or restore both files from the same save",
        )
    return model.eval()


def read_card(folder: Path) -> dict[str, Any]:
    """The content of ``model.json``, its format checked. No torch tensors are read.

    Raises: DataError.
    """
    path = folder / "model.json"
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; {folder} holds no trained model") from error
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        found = card.get("format") if isinstance(card, dict) else None
        raise DataError(f"{path}: format {found!r}; this version reads format {FORMAT}")
    return card


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}


def _digest(weights: bytes) -> str:
    return "sha256:" + hashlib.sha256(weights).hexdigest()
