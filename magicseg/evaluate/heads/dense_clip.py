"""Dense zero-shot CLIP: the baselines that need no training, and features for a memory bank.

A pixel gets the class whose text embedding is most similar to its patch. `magicseg.model.dense_features` replaces the
image tower's last layer. Prompts and decoder are left out: this is the frozen CLIP that training started from.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor

from magicseg.core.errors import ConfigError
from magicseg.evaluate.heads.head import ScoreKind
from magicseg.evaluate.heads.segmenter_head import TextHead, at_class
from magicseg.model.dense_features import DenseVariant, dense_last_block
from magicseg.model.open_clip_encoder import OpenClipEncoder
from magicseg.model.segmenter import Segmenter

RECIPE = 1  # goes up whenever the same image gives other scores
_MEMORY_BANK_VARIANT: DenseVariant = "clearclip"


class DenseClipHead(TextHead):
    """Cosines of patches and class texts, times CLIP's own temperature.

    A pixel is scored by the cosine itself, or by the log-odds of a softmax over the classes.

    Raises: ConfigError if the model's encoder is no CLIP, or one that training has changed.
    """

    def __init__(self, model: Segmenter, weights_digest: str, variant: DenseVariant) -> None:
        super().__init__(model)
        encoder = _clip_of(model, variant)
        self._features = _dense_features(encoder, variant)
        self.name: str = variant
        self.identity: Mapping[str, Any] = {"weights": weights_digest, "variant": variant, "recipe": RECIPE}
        self._scale = float(encoder.clip.get_parameter("logit_scale").detach().exp())

    @torch.inference_mode()
    def logits(self, crops: Tensor) -> Tensor:
        height, width = crops.shape[-2:]
        similar = self._scale * self._features(crops.to(self.text.device)) @ self.text.T
        shape = (len(crops), len(self.text), height // self.stride, width // self.stride)
        return similar.float().transpose(1, 2).reshape(shape)

    @property
    def score_kinds(self) -> tuple[ScoreKind, ...]:
        """Of a single class the softmax is 1 everywhere: the cosine alone."""
        return ("cosine",) if len(self.text) == 1 else ("log-odds", "cosine")

    def score(self, logits: Tensor, chosen: Tensor, kind: ScoreKind) -> Tensor:
        best = at_class(logits, chosen)
        if kind == "cosine":
            return best / self._scale
        others = logits.scatter(-3, chosen.unsqueeze(-3), -torch.inf)
        return best - others.logsumexp(dim=-3)


def bank_features(model: Segmenter) -> tuple[Callable[[Tensor], Tensor], Mapping[str, Any]]:
    """What a memory bank is made of, uint8 (B, 3, H, W) -> unit patch features (B, h * w, D), and its name.

    A frozen CLIP is read densely and without prompts, so that nothing trained takes part; another encoder as the
    model itself reads it.
    """
    model.eval()
    device = next(model.parameters()).device
    if isinstance(model.encoder, OpenClipEncoder) and model.settings.encoder.freeze is True:
        dense = _dense_features(_clip_of(model, _MEMORY_BANK_VARIANT), _MEMORY_BANK_VARIANT)
        return lambda pixels: dense(pixels.to(device)), {"features": _MEMORY_BANK_VARIANT, "dense_recipe": RECIPE}
    return lambda pixels: model.encode_images(pixels.to(device))[1], {"features": "trained"}


def _clip_of(model: Segmenter, variant: str) -> OpenClipEncoder:
    if not isinstance(model.encoder, OpenClipEncoder):
        raise ConfigError(
            f"the baseline {variant} needs a CLIP, and this model's encoder is {model.settings.encoder.name!r}",
            hint="leave it out, or train with train.encoder.name=open-clip",
        )
    if model.settings.encoder.freeze is not True:
        raise ConfigError(
            f"the baseline {variant} is of a CLIP as it was, and training has changed this one's image tower",
            hint="leave it out, or evaluate a model with train.encoder.freeze=true",
        )
    if not isinstance(model.encoder.blocks[-1], ResidualAttentionBlock):
        raise ConfigError(f"the baseline {variant} does not know this CLIP's kind of attention", hint="leave it out")
    return model.encoder


def _dense_features(encoder: OpenClipEncoder, variant: DenseVariant) -> Callable[[Tensor], Tensor]:
    def features(images: Tensor) -> Tensor:
        tokens = encoder.embed(images)
        for layer in range(encoder.layers - 1):
            tokens = encoder.block(layer, tokens)
        tokens = encoder.head(dense_last_block(encoder.blocks[-1], tokens, variant))
        return F.normalize(tokens[:, 1:], dim=-1)

    return features
