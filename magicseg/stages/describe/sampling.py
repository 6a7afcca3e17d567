"""Token sampling with a seed per row: a row's text is independent of the other rows' draws."""

import numpy as np
import torch
from numpy.random import Generator, Philox

RECIPE = 1  # incremented whenever the same scores and seed give another token


class SeededSampling:
    """A logits processor that samples one token per row and masks all others. Use it with greedy search.

    Each row draws one uniform number per step, from its own seed, and takes the token at that quantile of its
    distribution after temperature and top-p.

    Args: seeds: one per row, 0 to 2**64 - 1. prompt_length: tokens before the first sampled token.
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
        """Return one step's scores, float (batch, tokens): 0 for the sampled token, minus infinity for others."""
        if self._temperature == 0:
            chosen_B1 = scores.argmax(-1, keepdim=True)
        else:
            uniform_B = self._uniforms_BT[:, input_ids.shape[1] - self._prompt_length].to(scores.device)
            chosen_B1 = choose(scores, uniform_B, temperature=self._temperature, top_p=self._top_p)
        return torch.full_like(scores, -torch.inf).scatter_(-1, chosen_B1, 0.0)


def choose(scores_BV: torch.Tensor, uniform_B: torch.Tensor, *, temperature: float, top_p: float) -> torch.Tensor:
    """Return the token at a quantile of each row's distribution, with the most likely tokens first.

    Args: scores_BV: float (batch, tokens). uniform_B: float64 (batch,), in [0, 1).
    Returns: int64 (batch, 1).
    """
    sorted_BV, order_BV = (scores_BV.float() / temperature).sort(stable=True, dim=-1, descending=True)
    below_BV = sorted_BV.softmax(-1).double().cumsum(-1)
    # Tokens are kept until their sum reaches top_p; the quantile is taken of the kept tokens.
    kept_B1 = (below_BV < top_p).sum(-1, keepdim=True).clamp(max=scores_BV.shape[-1] - 1)
    target_B1 = uniform_B[:, None] * below_BV.gather(-1, kept_B1)
    index_B1 = torch.minimum((below_BV <= target_B1).sum(-1, keepdim=True), kept_B1)
    return order_BV.gather(-1, index_B1)
