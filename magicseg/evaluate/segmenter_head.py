"""The trained segmenter as something that benchmarks score."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from magicseg.model.segmenter import Segmenter, SegmenterOutput


class SegmenterHead:
    """Every class is a question of its own, yes or no: scores are sigmoids. A `magicseg.evaluate.heads.Head`.

    Args: weights_digest: of the model, as its ``model.json`` says. name: of the results.
    """

    def __init__(self, model: Segmenter, weights_digest: str, name: str = "model") -> None:
        self.name = name
        self.stride = model.stride
        self.identity: Mapping[str, Any] = {"weights": weights_digest}
        self._model = model.eval()
        self._text: Tensor | None = None

    @torch.inference_mode()
    def prepare(self, classes: Sequence[Sequence[str]]) -> None:
        self._text = self._model.encode_classes(classes)

    @torch.inference_mode()
    def logits(self, crops: Tensor) -> Tensor:
        assert self._text is not None
        output: SegmenterOutput = self._model(crops.to(self._text.device), self._text)
        return output.logits

    def scores(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()
