"""A step of the training loop takes little longer than forward, backward and the optimiser alone.

Reference: a bare loop over the same model, losses and optimiser on one fixed batch in memory with given targets: no
reading, random numbers, sampled classes, learning rate schedule, log or checks. The real loop reads a run's store
with a preset's settings. Its step time includes waiting for data. Both take turns of a few steps within one training,
because a machine's speed drifts by more than the measured difference. The first steps of a turn are not counted,
because their batches were prefetched. A turn's ratio is the ratio of its medians; the script prints the median over
the turns. On a shared machine, trust the CPU time (of the training process with all its threads, without the loader's
processes) rather than the wall time.

    python benchmarks/train_step.py
    python benchmarks/train_step.py --turns 2 --samples 256
"""

import argparse
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import torch
from measure import print_table
from scenes import commit_all, make_run, triples, write_store

from magicseg.config.loading import load_config
from magicseg.data.dataset import Batch
from magicseg.data.kept_samples import KeptSamples
from magicseg.data.loader import training_batches
from magicseg.model.segmenter import build_segmenter
from magicseg.model.targets import sample_targets
from magicseg.train.loop import TrainProgress, train
from magicseg.train.optimizer import build_optimizer
from magicseg.train.step import ModelWithLosses

Clocks = tuple[float, float]  # seconds of wall time, of CPU time

_UNCOUNTED, _COUNTED = 3, 7  # steps of a turn


def _clocks() -> Clocks:
    return time.perf_counter(), time.process_time()


def _lasted(before: Clocks, after: Clocks) -> Clocks:
    return after[0] - before[0], after[1] - before[1]


class Bare:
    """The reference, one step at a time, on the device of the module."""

    def __init__(self, samples: KeptSamples, module: ModelWithLosses) -> None:
        settings = module.settings
        device = next(module.parameters()).device
        alone = settings.model_copy(update={"loader_workers": 0})
        (batch,) = training_batches(samples, alone, batch_size=settings.batch_size, start=0, stop=1, seed=0)
        self._batch = Batch(*(values.to(device) for values in batch))
        draws = torch.rand(settings.batch_size, len(module.names), device=device)
        self._targets = sample_targets(self._batch.masks, draws, sampled_classes=settings.sampled_classes)
        self._counts = module.counts(self._batch, self._targets)
        self._module, self._optimizer = module, build_optimizer(module.model, settings)

    def step(self) -> Clocks:
        """Do one step and return its duration."""
        began = _clocks()
        self._optimizer.zero_grad(set_to_none=True)
        self._module(self._batch, self._targets, self._counts)["loss"].backward()
        self._optimizer.step()
        return _lasted(began, _clocks())


class Turns:
    """Runs a turn of the reference after each turn of the real loop. `tick` is called after every real step."""

    def __init__(self, bare: Bare) -> None:
        self._bare = bare
        self._ticks: list[Clocks] = []
        self.found: list[tuple[list[float], list[float]]] = []  # medians of a turn: real, bare; wall, CPU

    def tick(self, _state: TrainProgress) -> None:
        """Record the end of a real step."""
        self._ticks.append(_clocks())
        if len(self._ticks) <= _UNCOUNTED + _COUNTED:
            return
        real = [_lasted(*pair) for pair in pairwise(self._ticks)]
        bare = [self._bare.step() for _ in range(1 + _COUNTED)]
        self.found.append((_medians(real[_UNCOUNTED:]), _medians(bare[1:])))
        self._ticks = [_clocks()]


def _medians(steps: list[Clocks]) -> list[float]:
    return [statistics.median(step[clock] for step in steps) for clock in (0, 1)]


def main() -> None:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="painted", help="the preset of the training settings")
    parser.add_argument("--turns", type=int, default=10, help="of the real loop, and of the bare one")
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--size", type=int, default=64, help="pixels")
    parser.add_argument("--threads", type=int, default=1, help="of torch; several disturb each other on busy cores")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    # The last step writes a checkpoint, so one extra step is run that is not counted.
    steps = arguments.turns * (_UNCOUNTED + _COUNTED) + 2
    with tempfile.TemporaryDirectory() as temporary:
        scenes = list(triples(arguments.samples, arguments.size, None))
        run = make_run(Path(temporary, "run"), scenes, codec="lossless")
        write_store(run, scenes)
        commit_all(run)
        samples = KeptSamples.of(run)
        settings = load_config(preset=arguments.preset).train.model_copy(update={"steps": steps})
        model = build_segmenter(settings.model, seed=0).train()
        turns = Turns(Bare(samples, ModelWithLosses(model, run.vocabulary, settings)))
        out = Path(temporary, "out")
        train(samples, run.vocabulary, settings, out, seed=0, data_fingerprint="", progress=turns.tick)
    real, reference = (
        [1000 * statistics.median(turn[which][clock] for turn in turns.found) for clock in (0, 1)] for which in (0, 1)
    )
    wall, cpu = ([turn[0][clock] / turn[1][clock] for turn in turns.found] for clock in (0, 1))
    print_table(
        f"{arguments.preset}: one step of {settings.batch_size} at {arguments.size} px, "
        f"{settings.loader_workers} loader workers (median of {len(turns.found)} turns of {_COUNTED} steps)",
        ["", "wall ms", "ratio", "CPU ms", "ratio"],
        [
            ["training loop", real[0], statistics.median(wall), real[1], statistics.median(cpu)],
            ["bare loop", reference[0], 1.0, reference[1], 1.0],
        ],
    )
    spread = ", ".join(f"{value:.3f}" for value in sorted(wall))
    print(f"wall ratios of the turns: {spread}")


if __name__ == "__main__":
    main()
