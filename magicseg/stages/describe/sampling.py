"""Sampling of words that is seeded per row: what a row says does not hang on the draws of the others."""

import numpy as np
import torch
from numpy.random import Generator, Philox

RECIPE = 1  # goes up whenever the same scores and seed give another word


class SeededSampling:
    """A logits processor that leaves one word of each row: the one drawn for it. To be used with greedy search.

    Each row has one uniform number per step, from its own seed, and takes the word at that quantile of its
    distribution after temperature and top-p.

    Args: seeds: one per row, 0 to 2**64 - 1. prompt_length: tokens in front of the first drawn one.
    """

    def __init__(
        self, seeds: list[int], *, prompt_length: int, max_new_tokens: int, temperature: float, top_p: float
    ) -> None:
        uniforms = np.stack([Generator(Philox(key=[seed, 3])).random(max_new_tokens) for seed in seeds])
        self._uniforms_BT = torch.from_numpy(uniforms)
        self._prompt_length = prompt_length
        self._temperature = temperature
        self._top_p = top_p

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores of one step, float (batch, words), to minus infinity but for the drawn word's."""
        if self._temperature == 0:
            chosen_B1 = scores.argmax(-1, keepdim=True)
        else:
            uniform_B = self._uniforms_BT[:, input_ids.shape[1] - self._prompt_length].to(scores.device)
            chosen_B1 = choose(scores, uniform_B, temperature=self._temperature, top_p=self._top_p)
        return torch.full_like(scores, -torch.inf).scatter_(-1, chosen_B1, 0.0)


def choose(scores_BV: torch.Tensor, uniform_B: torch.Tensor, *, temperature: float, top_p: float) -> torch.Tensor:
    """The word at a quantile of each row's distribution, likeliest words first.

    Args: scores_BV: float (batch, words). uniform_B: float64 (batch,), in [0, 1).
    Returns: int64 (batch, 1).
    """
    sorted_BV, order_BV = (scores_BV.float() / temperature).sort(stable=True, dim=-1, descending=True)
    below_BV = sorted_BV.softmax(-1).double().cumsum(-1)
    # Words are kept until their sum reaches top_p; the quantile is taken of what is kept.
    kept_B1 = (below_BV < top_p).sum(-1, keepdim=True).clamp(max=scores_BV.shape[-1] - 1)
    target_B1 = uniform_B[:, None] * below_BV.gather(-1, kept_B1)
    place_B1 = torch.minimum((below_BV <= target_B1).sum(-1, keepdim=True), kept_B1)
    return order_BV.gather(-1, place_B1)
