"""Vectorized sampling of classes and targets, compared with a Python loop over images and classes.

The reference searches each image for each class of the vocabulary, draws random other classes, and builds the masks
one after another. A second table includes the losses and their gradients; there the reference loops over an image's
sampled classes. Both sides then do the same arithmetic on (images, classes, pixels), which dominates on a CPU for
large images. The results are compared. The table shows medians. On a shared machine, trust the CPU time (all threads
of the process) rather than the wall time.

    python benchmarks/targets.py
    python benchmarks/targets.py --classes 171 --size 64
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from measure import print_table
from torch import Tensor

from magicseg.labels import IGNORE
from magicseg.model.losses.masks import dice_loss, focal_loss
from magicseg.model.targets import Targets, sample_targets

_ALPHA, _GAMMA = 0.25, 2.0

Found = list[tuple[list[int], list[Tensor], set[int]]]  # per image: sampled classes, their masks, visible classes


def _vectorized(class_map: Tensor, draws: Tensor, sampled: int) -> tuple[Targets, Tensor]:
    targets = sample_targets(class_map, draws, sampled_classes=sampled)
    return targets, targets.masks


def _loop(class_map: Tensor, draws: Tensor, sampled: int) -> Found:
    found = []
    for ids, chance in zip(class_map, draws.tolist(), strict=True):
        own = {position for position in range(len(chance)) if bool((ids == position + 1).any())}
        order = sorted(range(len(chance)), key=lambda position: (position in own, chance[position]), reverse=True)
        found.append((order[:sampled], [ids == position + 1 for position in order[:sampled]], own))
    return found


def _vectorized_losses(targets: Targets, masks: Tensor, logits: Tensor) -> Tensor:
    focal = focal_loss(logits, masks, targets.valid, alpha=_ALPHA, gamma=_GAMMA, asked=targets.asked)
    return focal + dice_loss(logits, masks, targets.valid, targets.present)


def _loop_losses(class_map: Tensor, found: Found, logits: Tensor) -> Tensor:
    focal, pixels, dices = [], 0, []
    for ids, (classes, masks, own), scores in zip(class_map, found, logits, strict=True):
        valid = ids != IGNORE
        for position, mask, score in zip(classes, masks, scores, strict=True):
            truth, z = mask[valid].float(), score[valid]
            p = torch.sigmoid(z)
            p_t = p * truth + (1 - p) * (1 - truth)
            alpha = _ALPHA * truth + (1 - _ALPHA) * (1 - truth)
            loss = F.binary_cross_entropy_with_logits(z, truth, reduction="none")
            focal.append((alpha * (1 - p_t) ** _GAMMA * loss).sum())
            pixels += len(z)
            if position in own:
                dices.append(1 - (2 * (p * truth).sum() + 1) / (p.sum() + truth.sum() + 1))
    return torch.stack(focal).sum() / pixels + torch.stack(dices).mean()


def _there_and_back(loss: Callable[[], Tensor], logits: Tensor) -> float:
    logits.grad = None
    value = loss()
    value.backward()  # type: ignore[no-untyped-call]
    return float(value.detach())


def _time(functions: dict[str, Callable[[], object]], repeats: int) -> list[float]:
    """Return milliseconds of magicseg and of the loop, wall time and CPU time. They take turns."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            wall, cpu = time.perf_counter(), time.process_time()
            function()
            times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return [1000 * statistics.median(run[clock] for run in runs) for runs in times.values() for clock in (0, 1)]


def _measure(size: int, arguments: argparse.Namespace, generator: torch.Generator) -> tuple[list[float], list[float]]:
    """Return one row of each table."""
    sampled = min(arguments.sampled, arguments.classes)
    class_map = torch.zeros((arguments.batch, size, size), dtype=torch.int32)
    for image in class_map:  # two objects, and an unlabelled border
        first, second = torch.randint(1, arguments.classes + 1, (2,), generator=generator).tolist()
        image[: size // 2, : size // 2], image[size // 2 :, : size // 2] = first, second
        image[:, -1] = IGNORE
    draws = torch.rand(arguments.batch, arguments.classes, generator=generator)
    (targets, masks), found = _vectorized(class_map, draws, sampled), _loop(class_map, draws, sampled)
    for image, (classes, own_masks, _) in enumerate(found):
        slots = [targets.classes[image].tolist().index(position) for position in classes]
        assert torch.equal(masks[image, slots], torch.stack(own_masks))
    fast_wall, fast_cpu, loop_wall, loop_cpu = _time(
        {
            "vectorized": lambda: _vectorized(class_map, draws, sampled),
            "loop": lambda: _loop(class_map, draws, sampled),
        },
        arguments.repeats,
    )
    ratios = loop_wall / fast_wall, loop_cpu / fast_cpu
    row = [size, fast_wall, fast_cpu, loop_wall, loop_cpu, *ratios]
    logits = torch.randn(arguments.batch, sampled, size, size, generator=generator)
    theirs = torch.stack(
        [logits[b, [targets.classes[b].tolist().index(c) for c in found[b][0]]] for b in range(len(logits))]
    )
    logits.requires_grad_(), theirs.requires_grad_()
    functions: dict[str, Callable[[], float]] = {
        "vectorized": lambda: _there_and_back(
            lambda: _vectorized_losses(*_vectorized(class_map, draws, sampled), logits), logits
        ),
        "loop": lambda: _there_and_back(
            lambda: _loop_losses(class_map, _loop(class_map, draws, sampled), theirs),
            theirs,
        ),
    }
    one, other = (function() for function in functions.values())
    assert abs(one - other) < 1e-4 * other, (one, other)
    fast_wall, fast_cpu, loop_wall, loop_cpu = _time(dict(functions), max(arguments.repeats // 2, 1))
    ratios = loop_wall / fast_wall, loop_cpu / fast_cpu
    return row, [size, fast_wall, fast_cpu, loop_wall, loop_cpu, *ratios]


def main() -> None:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--classes", type=int, default=1203, help="of the vocabulary")
    parser.add_argument("--sampled", type=int, default=100)
    parser.add_argument("--size", type=int, nargs="+", default=[32, 64, 128, 256], help="pixels")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    generator = torch.Generator().manual_seed(0)
    sampled = min(arguments.sampled, arguments.classes)
    rows = [_measure(size, arguments, generator) for size in arguments.size]
    head = ["pixels", "magicseg ms", "CPU ms", "loop ms", "CPU ms", "wall ratio", "CPU ratio"]
    what = f"of {arguments.batch} images, {sampled} of {arguments.classes} classes"
    print_table(f"sampling and targets {what}", head, [row for row, _ in rows])
    print_table(f"the same with losses and gradients {what}", head, [row for _, row in rows])


if __name__ == "__main__":
    main()
