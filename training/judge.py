"""Train the judge of painted scenes, a classifier of objects, colour, scene and light. Only evaluation uses it.

    python -m training.judge FOLDER --data FOLDER

Its training scenes have another seed than the scenes of the judged models.
"""

import functools
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from magicseg.stages.describe.words import COLOURS
from training import arguments, scenes
from training.loop import Plan, averaged, chosen, torch_rng, train
from training.painted import LIGHT_WORDS, SCENE_WORDS, Painted
from training.roughen import roughened

SCENES = 16_384
PLAN = Plan(
    steps=4000,
    batch_size=32,
    learning_rate=2e-3,
    cooldown=1500,
    average=0.99,
    seed=1,
)
WIDTHS = (24, 48, 96)


class Judge(nn.Module):
    """A convolutional network with four heads: objects, colour, scene, light."""

    def __init__(self, widths: tuple[int, int, int] = WIDTHS) -> None:
        super().__init__()
        a, b, c = widths
        self.body = nn.Sequential(
            *_convolution(3, a, 2), *_convolution(a, b, 2), _Residual(b), _Residual(b), *_convolution(b, c, 2),
            _Residual(c), _Residual(c),
        )  # fmt: skip
        self.heads = nn.Linear(2 * c, len(scenes.nouns()) + len(COLOURS) + len(SCENE_WORDS) + len(LIGHT_WORDS))

    def forward(self, pixels: Tensor) -> "Verdict":
        """Return the logits for images, float (B, 3, H, W), 0 to 255."""
        features = self.body(pixels / 64 - 2)
        pooled = torch.cat([features.mean((2, 3)), features.amax((2, 3))], dim=1)
        sizes = [len(scenes.nouns()), len(COLOURS), len(SCENE_WORDS), len(LIGHT_WORDS)]
        return Verdict(*torch.split(self.heads(pooled).float(), sizes, dim=1))


@dataclass(frozen=True)
class Verdict:
    """Logits: ``present`` (B, nouns), for sigmoids; ``colour``, ``scene``, ``light`` (B, choices), for softmax."""

    present: Tensor
    colour: Tensor
    scene: Tensor
    light: Tensor


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


def loss_of(judge: nn.Module, step: int, *, data: Painted, plan: Plan) -> Tensor:
    """Return the sum of the heads' losses on roughened images."""
    picked = chosen(plan, len(data), step)
    answers = data.answers.pick(picked)
    rng = torch_rng(plan, "judge noise", step)
    verdict: Verdict = judge(roughened(data.images[picked].float(), rng))
    loss = len(scenes.nouns()) * F.binary_cross_entropy_with_logits(verdict.present, answers.present)
    for name in ("colour", "scene", "light"):
        losses = F.cross_entropy(getattr(verdict, name), getattr(answers, name), reduction="none")
        loss = loss + losses.mean()  # over all samples, so that a batch without known labels gives 0
    return loss


@torch.no_grad()
def judged(judge: nn.Module, images: Tensor, batch_size: int = 64) -> Verdict:
    """Return the judge's logits for images, uint8 (N, 3, size, size)."""
    parts = [judge(part.float()) for part in torch.split(images, batch_size)]
    names = ("present", "colour", "scene", "light")
    return Verdict(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


def fit(folder: Path, data: Painted, plan: Plan = PLAN, *, widths: tuple[int, int, int] = WIDTHS) -> nn.Module:
    """Train, or resume from the folder's checkpoint. Returns: the averaged judge."""
    torch.manual_seed(plan.seed)
    return train(Judge(widths), functools.partial(loss_of, data=data.to(plan.device), plan=plan), plan, folder)


def load(folder: Path, *, widths: tuple[int, int, int] = WIDTHS) -> Judge:
    """Return the averaged judge of a folder."""
    judge = Judge(widths)
    averaged(judge, folder)
    return judge.eval().requires_grad_(False)


def main() -> None:
    """Run the training program."""
    given = arguments.parser(__doc__, PLAN, SCENES).parse_args()
    plan = arguments.plan_of(given, PLAN)
    arguments.fit_painted(given, plan, fit)


if __name__ == "__main__":
    main()
