"""Trains the judge of painted scenes: which classes, colour, scene and light. Only measures use it.

python -m training.judge FOLDER --steps 3000
"""

import argparse
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from magicseg.describe.words import COLOURS, LIGHTS, SCENES
from magicseg.miniature.caption import SceneSpec
from training import scenes
from training.loop import Plan, averaged, steps_of, torch_rng, train
from training.roughen import roughened

PLAN = Plan(steps=3000, batch_size=32, learning_rate=2e-3, cooldown=1000, average=0.99, precision="bfloat16")
OBJECTS = (0.25, 0.6, 0.15)
WIDTHS = (24, 48, 96)

SCENE_WORDS = tuple(scene.word for scene in SCENES)
LIGHT_WORDS = tuple(light.word for light in LIGHTS)
UNKNOWN = -100  # which cross-entropy leaves out


class Judge(nn.Module):
    """A convolutional network with one head per question."""

    def __init__(self, widths: tuple[int, int, int] = WIDTHS) -> None:
        super().__init__()
        a, b, c = widths
        self.body = nn.Sequential(
            *_convolution(3, a, 2), *_convolution(a, b, 2), _Residual(b), _Residual(b), *_convolution(b, c, 2),
            _Residual(c), _Residual(c),
        )  # fmt: skip
        self.heads = nn.Linear(2 * c, len(scenes.nouns()) + len(COLOURS) + len(SCENE_WORDS) + len(LIGHT_WORDS))

    def forward(self, pixels: Tensor) -> "Verdict":
        """Float (B, 3, H, W), 0 to 255 -> logits."""
        features = self.body(pixels / 64 - 2)
        pooled = torch.cat([features.mean((2, 3)), features.amax((2, 3))], dim=1)
        sizes = [len(scenes.nouns()), len(COLOURS), len(SCENE_WORDS), len(LIGHT_WORDS)]
        return Verdict(*self.heads(pooled).float().split(sizes, dim=1))


@dataclass(frozen=True)
class Verdict:
    """Logits: ``present`` (B, nouns), each for itself; ``colour``, ``scene``, ``light`` (B, choices), one of them."""

    present: Tensor
    colour: Tensor
    scene: Tensor
    light: Tensor


@dataclass(frozen=True)
class Answers:
    """What is true of a batch: ``present`` float32 (B, nouns); the others int64 (B)."""

    present: NDArray[np.float32]
    colour: NDArray[np.int64]
    scene: NDArray[np.int64]
    light: NDArray[np.int64]


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(*_convolution(width, width, 1), *_convolution(width, width, 1)[:2])

    def forward(self, features: Tensor) -> Tensor:
        return F.relu(features + self.inner(features))


def _convolution(before: int, after: int, stride: int) -> list[nn.Module]:
    return [
        nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(),
    ]


def truth(specs: Sequence[SceneSpec]) -> Answers:
    """What captions tell. The colour is asked of scenes with one object alone."""
    present = np.zeros((len(specs), len(scenes.nouns())), dtype=np.float32)
    for row, spec in enumerate(specs):
        for item in spec.objects:
            present[row, scenes.nouns().index(item.noun)] = 1
    colours = [COLOURS.index(spec.objects[0].colour or "") if len(spec.objects) == 1 else UNKNOWN for spec in specs]
    return Answers(
        present=present,
        colour=np.array(colours),
        scene=np.array([SCENE_WORDS.index(spec.scene) for spec in specs]),
        light=np.array([LIGHT_WORDS.index(spec.light or "") for spec in specs]),
    )


def batch(step: int, *, plan: Plan) -> tuple[NDArray[np.uint8], Answers]:
    """Images uint8 (B, size, size, 3) of a step, and what is true of them."""
    numbers = range(step * plan.batch_size, (step + 1) * plan.batch_size)
    made = [scenes.scene(number, seed=plan.seed, stream="judge", objects=OBJECTS) for number in numbers]
    return np.stack([one.image for one in made]), truth([one.spec for one in made])


def to_pixels(images: NDArray[np.uint8], device: str) -> Tensor:
    """uint8 (B, H, W, 3) to float (B, 3, H, W), 0 to 255."""
    return torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float()


def loss_of(judge: nn.Module, given: tuple[NDArray[np.uint8], Answers], step: int, *, plan: Plan) -> Tensor:
    """The sum of the questions' losses, on roughened images."""
    images, answers = given
    pixels = roughened(to_pixels(images, plan.device), torch_rng(plan.seed, "judge noise", step))
    verdict: Verdict = judge(pixels)
    loss = len(scenes.nouns()) * F.binary_cross_entropy_with_logits(
        verdict.present, torch.from_numpy(answers.present).to(plan.device)
    )
    for name in ("colour", "scene", "light"):
        wanted = getattr(answers, name)
        if (wanted != UNKNOWN).any():
            loss = loss + F.cross_entropy(getattr(verdict, name), torch.from_numpy(wanted).to(plan.device))
    return loss


@torch.no_grad()
def judged(judge: nn.Module, images: NDArray[np.uint8], batch_size: int = 64) -> Verdict:
    """The verdict on images, uint8 (N, size, size, 3), on the CPU."""
    parts = [judge(to_pixels(images[at : at + batch_size], "cpu")) for at in range(0, len(images), batch_size)]
    names = ("present", "colour", "scene", "light")
    return Verdict(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


def fit(folder: Path, plan: Plan = PLAN, *, widths: tuple[int, int, int] = WIDTHS, workers: int = 0) -> nn.Module:
    """Train, from the folder's checkpoint if there is one. Returns: the averaged judge."""
    torch.manual_seed(plan.seed)
    make = functools.partial(batch, plan=plan)

    def batches(start: int, end: int) -> Iterator[tuple[NDArray[np.uint8], Answers]]:
        return scenes.ahead(make, start, end, workers)

    return train(Judge(widths), batches, functools.partial(loss_of, plan=plan), plan, folder)


def load(folder: Path, *, widths: tuple[int, int, int] = WIDTHS) -> Judge:
    """The averaged judge of a folder."""
    judge = Judge(widths)
    averaged(judge, folder)
    return cast("Judge", judge.eval().requires_grad_(False))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=PLAN.steps)
    parser.add_argument("--device", default=PLAN.device)
    parser.add_argument("--workers", type=int, default=0, help="processes that paint; change no bit")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    chosen = Plan(**{**PLAN.__dict__, "steps": arguments.steps, "device": arguments.device})
    print(f"from step {steps_of(arguments.folder)}")
    fit(arguments.folder, chosen, workers=arguments.workers)
