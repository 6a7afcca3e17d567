"""What tests have torchrun start in every rank: ``in_ranks.py batch-norm|train|not-finite OUT [SETTINGS]``."""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from coloured_squares import SETTINGS, VOCABULARY, Squares
from torch import distributed as dist
from torch import nn

from magicseg.errors import IncompleteError
from magicseg.model.batch_norm import BatchNorm2d
from magicseg.train.distributed import World, joined
from magicseg.train.loop import LossTerms, train


def train_squares(out, changes, world):
    """Train on 20 squares; returns what `train` does."""
    return train(
        Squares(np.delete(np.arange(24), [2, 9, 10, 23])),
        VOCABULARY,
        SETTINGS.model_copy(update=changes),
        out,
        seed=0,
        data_fingerprint="data",
        world=world,
    )


def compare_batch_norms(world):
    """Each rank's part of a batch through ours, the whole batch through torch's: the same, there and back."""
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(6, 5, 4, 3, generator=generator) * 3 + 100  # a mean that swallows digits of a square
    weights = torch.randn(whole.shape, generator=generator)
    ours, theirs = BatchNorm2d(5), nn.BatchNorm2d(5)
    ours.weight.data[:] = theirs.weight.data[:] = torch.rand(5, generator=generator)
    ours.bias.data[:] = theirs.bias.data[:] = torch.rand(5, generator=generator)
    mine = slice(world.rank, None, world.size)
    for _ in range(2):
        part = whole[mine].clone().requires_grad_()
        together = whole.clone().requires_grad_()
        output, expected = ours(part), theirs(together)
        (output * weights[mine]).sum().backward()
        (expected * weights).sum().backward()
        torch.testing.assert_close(output, expected[mine], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(part.grad, together.grad[mine], rtol=1e-4, atol=1e-5)
    for parameter in ours.parameters():
        dist.all_reduce(parameter.grad)
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(ours.get_parameter(name).grad, parameter.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=1e-5, atol=1e-6)
    assert torch.equal(ours.eval()(whole), nn.BatchNorm2d.forward(ours, whole))


def lose_a_loss(out, world):
    """Rank 1's third loss is not a number. Each rank writes down what it was told, and which weights it has."""
    forward, calls = LossTerms.forward, []

    def broken(self, batch, draws):
        calls.append(self)
        losses = forward(self, batch, draws)
        return {**losses, "loss": losses["loss"] * float("nan")} if world.rank == 1 and len(calls) == 3 else losses

    LossTerms.forward = broken
    try:
        train_squares(out, {"batch_size": 4, "checkpoint_every": 2}, world)
    except IncompleteError as error:
        told = {"message": error.message, "steps": len(calls), "weight": float(calls[0].model.prompts.tokens.sum())}
        (out / f"rank{world.rank}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    what, out = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(1)
    here = World.from_environment()
    with joined(here):
        if what == "batch-norm":
            compare_batch_norms(here)
        elif what == "train":
            train_squares(out, json.loads(sys.argv[3]), here)
        else:
            lose_a_loss(out, here)
