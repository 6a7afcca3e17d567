"""The segmenter: encoder with prompts, class texts, mask decoder.

    model = build_segmenter(ModelSettings(), seed=0)
    text = model.encode_classes(["car", "house"])           # (K, D)
    output = model(images, text)                            # uint8 (B, 3, H, W) -> logits (B, K, H, W)

`magicseg.model.saved_model` saves and loads it.
"""

import copy
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from magicseg.config.model import ModelSettings
from magicseg.core.errors import DataError
from magicseg.labels.distinct import refuse_alike
from magicseg.model.decoder import build_decoder, upsample_logits
from magicseg.model.encoder import Encoder, MiniatureEncoder, build_encoder
from magicseg.model.guided_upsampling import GuidedUpsampling
from magicseg.model.prompts import DeepPrompts, encode_with_prompts
from magicseg.model.sliding_window import WindowAverage
from magicseg.model.text_cache import cached_texts, text_key

ClassNames = Sequence[str] | Sequence[Sequence[str]]
Upsampler = Callable[[Tensor], Tensor]
"""From float32 (B, K, h, w) on the patch grid to float32 (B, K, H, W), for any K."""


@dataclass(frozen=True, kw_only=True)
class SegmenterOutput:
    """The result of a forward pass.

    ``logits``: float (B, K, H, W), one independent score per class and pixel (sigmoid, not softmax). ``cls``: float
    (B, D), the images' L2-normalised embeddings.
    """

    logits: Tensor
    cls: Tensor


class Segmenter(nn.Module):
    """The model: from images and class texts to one mask per class.

    ``checkpoint_activations``: recompute the encoder's layers in the backward pass instead of keeping their
    activations; changes no value.
    """

    encoder: Encoder

    def __init__(self, settings: ModelSettings, *, encoder: nn.Module | None = None) -> None:
        """Args: encoder: replaces the encoder that the settings name; it keeps its weights."""
        super().__init__()
        self.settings = settings
        self.checkpoint_activations = False
        self.encoder = cast("Encoder", build_encoder(settings.encoder) if encoder is None else encoder)
        if settings.encoder.freeze is True:
            self._encoder.requires_grad_(False)
        elif settings.encoder.freeze == "text":
            for _, parameter in self.encoder.text_parameters():
                parameter.requires_grad_(False)
        self.prompts = (
            DeepPrompts(
                tokens=settings.prompt_tokens,
                layers=self.encoder.layers,
                width=self.encoder.width,
                stride=self.encoder.stride,
                dropout=settings.prompt_dropout,
                norm_of="output" if settings.decoder == "zegclip" else "prompts",
            )
            if settings.prompt_tokens
            else None
        )
        self.decoder = build_decoder(settings, embed_dim=self.encoder.embed_dim)
        self.upsampling = (
            GuidedUpsampling(embed_dim=self.encoder.embed_dim, stride=self.encoder.stride)
            if settings.upsampling == "guided"
            else None
        )
        self._constant_texts: dict[tuple[tuple[str, ...], ...], Tensor] = {}
        self.register_load_state_dict_post_hook(_forget_texts)  # type: ignore[no-untyped-call]

    @property
    def _encoder(self) -> nn.Module:
        return cast("nn.Module", self.encoder)

    @property
    def stride(self) -> int:
        """Side of a patch, pixels; images' sides are multiples of it."""
        return self.encoder.stride

    @property
    def window_average(self) -> WindowAverage:
        """What sliding windows average: see `magicseg.model.sliding_window.WindowAverage`."""
        return "probabilities" if self.settings.decoder == "zegclip" else "logits"

    @property
    def text_is_frozen(self) -> bool:
        """Whether the text tower is frozen, so that class texts are constants."""
        return self.settings.encoder.freeze is not False

    def train(self, mode: bool = True) -> "Segmenter":
        """Set the mode as torch does, but keep a frozen encoder in inference mode: its batch statistics stay."""
        super().train(mode)
        if self.settings.encoder.freeze is True:
            self._encoder.eval()
        return self

    def encode_classes(self, names: ClassNames) -> Tensor:
        """Return L2-normalised text embeddings of class names, float (K, D).

        Each name is put into each template (``settings.templates``); the embeddings are normalised, averaged over a
        class's names and templates, and normalised again (the ensemble of Radford et al. 2021, arXiv 2103.00020).

        Args: names: one name per class, or several.
        Raises: ValueError for a class without a name.
        """
        classes = _as_lists(names)
        templates = self.settings.templates
        texts = [template.replace("{}", name) for each in classes for name in each for template in templates]
        unit = F.normalize(self.encoder.encode_text(texts), dim=-1)
        counts = [len(each) * len(templates) for each in classes]
        if all(count == 1 for count in counts):
            return unit
        return F.normalize(torch.stack([part.mean(0) for part in torch.split(unit, counts)]), dim=-1)

    def check_classes(self, names: ClassNames) -> None:
        """Raise BackendError if the text encoder cannot tell two classes apart. Args: as `encode_classes`."""
        classes = _as_lists(names)
        meanings: list[tuple[object, ...]] = [() for _ in classes]
        for template in self.settings.templates:
            tokens = iter(
                self.encoder.text_tokens([template.replace("{}", name) for each in classes for name in each])
            )
            meanings = [
                (*meaning, tuple(sorted(itertools.islice(tokens, len(each)))))
                for meaning, each in zip(meanings, classes, strict=True)
            ]
            if len(set(meanings)) == len(meanings):  # one template tells them apart
                return
        refuse_alike([each[0] for each in classes], meanings, "the model's text encoder")

    def class_texts(self, names: ClassNames) -> Tensor:
        """Return `encode_classes`, for every step of training. With a frozen text tower it is computed once.

        The constant is read from the user's cache if it is there (`magicseg.model.text_cache`).
        """
        if not self.text_is_frozen:
            return self.encode_classes(names)
        classes = _as_lists(names)
        device = next(self.parameters()).device
        if classes not in self._constant_texts:
            identity = self.encoder.text_identity()

            def compute() -> Tensor:
                with torch.no_grad(), torch.autocast(device.type, enabled=False):
                    return self.encode_classes(classes).float()

            self._constant_texts[classes] = (
                compute()
                if identity is None
                else cached_texts(
                    text_key(identity, templates=self.settings.templates, names=classes, device=device), compute
                )
            )
        self._constant_texts[classes] = self._constant_texts[classes].to(device)
        return self._constant_texts[classes]

    def encode_images(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Encode uint8 (B, 3, H, W): class tokens (B, D) and patch tokens (B, h * w, D), L2-normalised."""
        tokens = encode_with_prompts(
            self.encoder,
            images,
            self.prompts,
            drop_path=self.settings.drop_path if self.training else 0.0,
            checkpoint_activations=self.checkpoint_activations and torch.is_grad_enabled(),
        )
        tokens = F.normalize(tokens, dim=-1)
        return tokens[:, 0], tokens[:, 1:]

    def decode_on_grid(
        self, cls: Tensor, patches: Tensor, text: Tensor, size: tuple[int, int], *, every_layer: bool = False
    ) -> tuple[Tensor, ...]:
        """Return the mask logits before they are upsampled, float32 (B, K, h, w).

        They are a tuple of the prediction alone, or with ``every_layer`` those of every layer of the decoder, the
        prediction last.

        Args: cls, patches: as `encode_images` returns them. text: (K, D), or (B, K, D) for different classes in each
        image. size: (height, width) of the images, pixels.
        """
        if text.dim() == 2:
            text = text.expand(len(cls), -1, -1)
        layers = self.decoder.every_layer(cls, patches, text) if every_layer else (self.decoder(cls, patches, text),)
        return tuple(self._on_grid(each, size) for each in layers)

    def upsampler(self, patches: Tensor, images: Tensor) -> Upsampler:
        """Return the function that brings the results of `decode_on_grid`, or some of their classes, to pixels.

        Args: patches: as `encode_images` returns them. images: uint8 (B, 3, H, W).
        """
        if self.upsampling is None:
            return functools.partial(upsample_logits, size=(images.shape[-2], images.shape[-1]))
        return functools.partial(self.upsampling.upsample, weights=self.upsampling(images, patches))

    def native_logits(self, images: Tensor, text: Tensor) -> Tensor:
        """Return the mask logits at the resolution that the model computes them at, float32.

        That is the patch grid, (B, K, h, w), before bilinear upsampling; with guided upsampling the pixels,
        (B, K, H, W).

        Args: images: uint8 (B, 3, H, W). text: (K, D).
        """
        cls, patches = self.encode_images(images)
        (grid,) = self.decode_on_grid(cls, patches, text, (images.shape[-2], images.shape[-1]))
        return grid if self.upsampling is None else self.upsampler(patches, images)(grid)

    def _on_grid(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Reshape (B, K, h * w) to float32 (B, K, h, w). Args: size: of the images, pixels."""
        stride = self.encoder.stride
        return logits.float().reshape(*logits.shape[:2], size[0] // stride, size[1] // stride)

    def forward(self, images: Tensor, text: Tensor) -> SegmenterOutput:
        """Segment images.

        Args: images: uint8 (B, 3, H, W), RGB, sides multiples of the stride. text: (K, D) or (B, K, D).
        """
        cls, patches = self.encode_images(images)
        (grid,) = self.decode_on_grid(cls, patches, text, (images.shape[-2], images.shape[-1]))
        return SegmenterOutput(logits=self.upsampler(patches, images)(grid), cls=cls)


def _forget_texts(module: Segmenter, _keys: object) -> None:
    """Forget constant class texts: the previous weights computed them."""
    module._constant_texts.clear()


def _as_lists(names: ClassNames) -> tuple[tuple[str, ...], ...]:
    classes = tuple((each,) if isinstance(each, str) else tuple(each) for each in names)
    if not all(classes):
        raise ValueError(f"class {classes.index(())} has no name")
    return classes


def build_segmenter(settings: ModelSettings, *, seed: int) -> Segmenter:
    """Build a segmenter whose new weights depend on the seed alone; the encoder's are pretrained if settings say so.

    torch's global generator is not changed.

    Raises: ConfigError, BackendError if pretrained weights are missing or do not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = build_encoder(settings.encoder)
        if not isinstance(encoder, MiniatureEncoder):
            torch.manual_seed(seed)  # so that all else has the weights of `untrained_like`
        return Segmenter(settings, encoder=encoder)


def untrained_like(model: Segmenter, *, seed: int) -> Segmenter:
    """Return the model that training with this seed began with, on the CPU.

    A frozen encoder is copied from ``model``, so its pretrained weights are not needed. Any other encoder is built as
    `build_segmenter` builds it.
    """
    if model.settings.encoder.freeze is not True or isinstance(model.encoder, MiniatureEncoder):
        return build_segmenter(model.settings, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Segmenter(model.settings, encoder=copy.deepcopy(model._encoder).cpu())


def frozen_names(model: Segmenter) -> frozenset[str]:
    """Return the names in ``model.state_dict()`` that training does not change: of a frozen encoder or text tower."""
    if model.settings.encoder.freeze is True:
        return frozenset(name for name in model.state_dict() if name.startswith("encoder."))
    return frozenset(name for name, parameter in model.named_parameters() if not parameter.requires_grad)


def trained_state(model: Segmenter) -> dict[str, Tensor]:
    """Return the entries of ``model.state_dict()`` that training changes, for `load_trained_state`."""
    frozen = frozen_names(model)
    return {name: value for name, value in model.state_dict().items() if name not in frozen}


def load_trained_state(model: Segmenter, state: Mapping[str, Tensor]) -> None:
    """Load the result of `trained_state` into a model that was built with the same settings and weights.

    Raises: DataError if a tensor is missing or unknown.
    """
    expected = model.state_dict().keys() - frozen_names(model)
    if expected != state.keys():
        raise DataError(f"not the tensors of this model: {', '.join(sorted(expected ^ state.keys())[:5])}")
    model.load_state_dict(state, strict=False)
