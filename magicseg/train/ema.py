"""The moving average of the weights: what is kept as the model where ``ema_decay`` is set."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from magicseg.train.optim import trained_parameters


class Ema:
    """After step s (from 1): average = average + (1 - d) (weights - average), d = min(decay, (1 + s) / (10 + s)).

    The smaller d of the first steps lets the fresh weights go (as TensorFlow's ``ExponentialMovingAverage`` does
    with ``num_updates``); it depends on the step alone. Buffers are not averaged: the model has the latest.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self._weights = dict(trained_parameters(model))
        self.averages: dict[str, Tensor] = {name: value.detach().clone() for name, value in self._weights.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take the weights after ``step`` steps in."""
        weight = 1 - min(self._decay, (1 + step) / (10 + step))
        for name, average in self.averages.items():
            average.lerp_(self._weights[name], weight)

    def over(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``state`` of the model with the averages in place of what is averaged."""
        return {**state, **self.averages}
