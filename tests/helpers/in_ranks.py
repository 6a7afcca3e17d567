"""Programs that tests start in every rank with torchrun: ``in_ranks.py WHAT OUT [JSON]``."""

import dataclasses
import itertools
import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from torch import distributed as dist
from torch import nn

from helpers.coloured_squares import SETTINGS, VOCABULARY, Squares
from magicseg.core.distributed import World, process_group
from magicseg.core.errors import IncompleteError, RunError
from magicseg.core.garbage_collection import collect_less_often
from magicseg.data.dataset import SampleDataset
from magicseg.labels import IGNORE
from magicseg.model.batch_norm import BatchNorm2d
from magicseg.train.loop import train
from magicseg.train.step import ModelWithLosses


@dataclasses.dataclass(frozen=True)
class UnevenSquares(Squares):
    """Squares with images without objects and unlabelled pixels, so that ranks have different amounts of labels."""

    def read(self, indices):
        images, counterfactuals, masks = super().read(indices)
        for position, index in enumerate(indices):
            if index % 4 == 1:
                images[position], masks[position] = counterfactuals[position], 0
            masks[position, : int(index) % 6] = IGNORE
        return images, counterfactuals, masks


def train_squares(out, changes, world, **arguments):
    """Train on 20 uneven squares; return the result of `train`."""
    return train(
        UnevenSquares(np.delete(np.arange(24), [2, 9, 10, 23])),
        VOCABULARY,
        SETTINGS.model_copy(update=changes),
        out,
        seed=0,
        data_fingerprint="data",
        world=world,
        **arguments,
    )


def train_until_killed(out, plan, world):
    """Train, and record the samples read in ``seen/CALL-RANK.jsonl``. Kill a rank at a given step."""
    read, path = SampleDataset.__getitems__, out / "seen" / f"{plan['call']}-{world.rank}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)

    def recorded(self, picks):
        with path.open("a") as file:
            file.write(json.dumps([(pick.epoch, pick.sample) for pick in picks]) + "\n")
        return read(self, picks)

    def heard(state):
        if state.step == plan.get("step") and world.rank == plan["rank"]:
            os.kill(os.getpid(), signal.SIGKILL)

    SampleDataset.__getitems__ = recorded
    train_squares(out, plan["settings"], world, progress=heard)


def compare_strategies(out, changes, world):
    """Train with replicated and with sharded models; resume a stopped training with the other strategy."""

    def half():
        asked = itertools.count()
        return lambda: next(asked) >= 3

    fsdp = {**changes, "strategy": "fsdp", "ema_decay": 0.9, "gradient_clip": 1.0}
    ddp = {**fsdp, "strategy": "ddp"}
    scores = []

    def evaluate(model, step):
        scores.append((step, float(sum(value.double().sum() for value in model.state_dict().values()))))
        return {"miou": scores[-1][1]}

    train_squares(out / "ddp", ddp, world)
    train_squares(out / "fsdp", {**fsdp, "evaluate_every": 4}, world, evaluate=evaluate)
    assert [step for step, _ in scores] == [4, 8]
    first = train_squares(out / "fsdp-ddp", fsdp, world, stop=half())
    assert first.status == "interrupted"
    train_squares(out / "fsdp-ddp", ddp, world)
    train_squares(out / "ddp-fsdp", ddp, world, stop=half())
    train_squares(out / "ddp-fsdp", fsdp, world)


def compare_batch_norms(world):
    """Compare magicseg's batch norm on shards of a batch with torch's on the whole batch, forward and backward."""
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(6, 5, 4, 3, generator=generator) * 3 + 100  # a large mean, which loses digits in squares
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
    ours.train()
    part = (whole[mine] - 100).bfloat16().requires_grad_()  # as autocast gives it
    output = ours(part)
    output.sum().backward()
    assert output.dtype == part.grad.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), theirs(whole - 100)[mine], rtol=0.02, atol=0.02)


def train_twice(out, world):
    """Start a second training in the folder of an active training. All ranks must refuse it."""

    def second(state):
        if state.step == 2:
            try:
                train_squares(out, {"batch_size": 4}, world)
            except RunError as error:
                (out / f"refused-{world.rank}").write_text(error.message)

    train_squares(out, {"batch_size": 4}, world, progress=second)


def lose_a_loss(out, world):
    """Make rank 1's third loss NaN. Each rank records its messages and its weights."""
    forward, calls = ModelWithLosses.forward, []

    def broken(self, *arguments):
        calls.append(self)
        losses = forward(self, *arguments)
        return {**losses, "loss": losses["loss"] * float("nan")} if world.rank == 1 and len(calls) == 3 else losses

    ModelWithLosses.forward = broken
    try:
        train_squares(out, {"batch_size": 4, "checkpoint_every": 2}, world)
    except IncompleteError as error:
        told = {"message": error.message, "steps": len(calls), "weight": float(calls[0].model.prompts.tokens.sum())}
        (out / f"rank{world.rank}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    what, out = sys.argv[1], Path(sys.argv[2])
    collect_less_often()  # like the command
    torch.set_num_threads(1)
    here = World.from_environment()
    with process_group(here):
        if what == "train-until-killed":
            train_until_killed(out, json.loads(sys.argv[3]), here)
        else:  # all in one process, because starting takes longer than the checks
            compare_batch_norms(here)
            (out / f"batch-norms-agree-{here.rank}").touch()
            train_squares(out / "train", json.loads(sys.argv[3]), here)
            train_squares(out / "class-chunks", {**json.loads(sys.argv[3]), "class_chunk": 1}, here)
            compare_strategies(out / "strategies", json.loads(sys.argv[4]), here)
            train_twice(out / "twice", here)
            lose_a_loss(out / "not-finite", here)
