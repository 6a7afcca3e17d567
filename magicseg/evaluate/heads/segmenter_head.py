"""The trained segmenter as something that benchmarks score, and what it shares with other heads."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from magicseg.evaluate.heads.head import ScoreKind
from magicseg.model.segmenter import Segmenter
from magicseg.model.sliding_window import WindowAverage


def at_class(values: Tensor, chosen: Tensor) -> Tensor:
    """Return the value of one class at every pixel: (..., K, H, W) and its index (..., H, W) -> (..., H, W)."""
    return values.gather(-3, chosen.unsqueeze(-3)).squeeze(-3)


class TextHead:
    """What heads that are asked by class texts share. ``text``: (K, D), once it is prepared."""

    window_average: WindowAverage = "logits"

    def __init__(self, model: Segmenter) -> None:
        self.stride = model.stride
        self._model = model.eval()
        self._text: Tensor | None = None

    @torch.inference_mode()
    def prepare(self, classes: Sequence[Sequence[str]]) -> None:
        """Encode the classes, each an ensemble of its names. Raises: BackendError if two are indistinguishable."""
        self._model.check_classes(classes)
        self._text = self._model.encode_classes(classes)

    @property
    def text(self) -> Tensor:
        """The classes' embeddings."""
        assert self._text is not None
        return self._text


class SegmenterHead(TextHead):
    """A segmenter as a `magicseg.evaluate.heads.head.Head`. Logits are log-odds: each class has its own sigmoid.

    Args: weights_digest: of the model, from its ``model.json``. name: of the results. identity: instead of the
    weights' digest, for a model without one.
    """

    score_kinds: tuple[ScoreKind, ...] = ("log-odds",)

    def __init__(
        self,
        model: Segmenter,
        weights_digest: str,
        name: str = "model",
        identity: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(model)
        self.name = name
        self.window_average = model.window_average
        own = {"weights": weights_digest} if identity is None else identity
        # Results from before there was a choice name none; their windows averaged logits.
        choice = {} if self.window_average == "logits" else {"window_average": self.window_average}
        self.identity: Mapping[str, Any] = {**own, **choice}

    @torch.inference_mode()
    def logits(self, crops: Tensor) -> Tensor:
        return self._model.native_logits(crops.to(self.text.device), self.text)

    def score(self, logits: Tensor, chosen: Tensor, kind: ScoreKind) -> Tensor:
        return at_class(logits, chosen)
