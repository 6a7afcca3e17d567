"""The moving average of the weights, which becomes the saved model if ``ema_decay`` is set."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from magicseg.train.optimizer import trained_parameters


class Ema:
    """The exponential moving average of the trained parameters.

    After step s (from 1): average = average + (1 - d) (weights - average), d = min(decay, (1 + s) / (10 + s)). The
    smaller d of the first steps forgets the initial weights, as TensorFlow's ``ExponentialMovingAverage`` does with
    ``num_updates``. It depends on the step alone. Buffers are not averaged: the model keeps the latest.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self._weights = dict(trained_parameters(model))
        self.averages: dict[str, Tensor] = {name: value.detach().clone() for name, value in self._weights.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the averages with the weights after ``step`` steps."""
        weight = 1 - min(self._decay, (1 + step) / (10 + step))
        for name, average in self.averages.items():
            average.lerp_(self._weights[name], weight)

    def over(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the model's ``state`` with each averaged parameter replaced by its average."""
        return {**state, **self.averages}
