"""A step of the training loop costs little more than forward, backward and the optimiser alone.

Reference: a bare loop over the same model, losses and optimiser on one fixed batch in memory whose targets are made
beforehand: no reading, no random numbers, no sampled classes, no learning rate, no log, no checks. The real loop
reads a run's store with a preset's own settings (miniature: a frozen CLIP; painted: an encoder from scratch); its
step time is from step to step, waiting for data included. Loops take turns; medians over all steps but the first of
each. Ratios are the real step over the bare one. On a machine that others use too, trust the CPU time (of the process
that trains, all its threads, without the loader's processes) before the wall time.

    python benchmarks/train_step.py
    python benchmarks/train_step.py --preset painted
    python benchmarks/train_step.py --steps 10 --repeats 1
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

from magicseg.config import load_config
from magicseg.model.losses import mean_counts
from magicseg.model.segmenter import build_segmenter
from magicseg.model.targets import sample_targets
from magicseg.store.kept import KeptSamples
from magicseg.train.data import training_batches
from magicseg.train.loop import TrainProgress, train
from magicseg.train.optim import build_optimizer
from magicseg.train.step import LossTerms

Clocks = tuple[float, float]  # seconds of wall time, of CPU time

_FIRST = 3  # steps that are not counted: threads, allocators and loader processes start


def _clocks() -> Clocks:
    return time.perf_counter(), time.process_time()


def _lasted(before: Clocks, after: Clocks) -> Clocks:
    return after[0] - before[0], after[1] - before[1]


def _bare(samples: KeptSamples, terms: LossTerms, steps: int) -> list[Clocks]:
    settings = terms.settings
    alone = settings.model_copy(update={"loader_workers": 0})
    batch = next(training_batches(samples, alone, batch_size=settings.batch_size, start=0, stop=1, seed=0))
    draws = torch.rand(settings.batch_size, len(terms.names))
    targets = sample_targets(batch.masks, draws, sampled_classes=settings.sampled_classes)
    counts = mean_counts(targets, batch.paired)
    optimizer = build_optimizer(terms.model, settings)
    seconds = []
    for _ in range(steps):
        began = _clocks()
        optimizer.zero_grad(set_to_none=True)
        terms(batch, targets, counts)["loss"].backward()
        optimizer.step()
        seconds.append(_lasted(began, _clocks()))
    return seconds[_FIRST:]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="miniature", help="whose settings of training")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--size", type=int, default=64, help="pixels")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of torch; several disturb each other on busy cores")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    steps = max(arguments.steps, _FIRST + 2)
    bare: list[Clocks] = []
    real: list[Clocks] = []
    with tempfile.TemporaryDirectory() as temporary:
        pictures = list(triples(arguments.samples, arguments.size, None))
        run = make_run(Path(temporary, "run"), pictures, codec="lossless")
        write_store(run, pictures)
        commit_all(run)
        samples = KeptSamples.of(run)
        settings = load_config(preset=arguments.preset).train.model_copy(update={"steps": steps})
        for repeat in range(arguments.repeats):
            model = build_segmenter(settings.model, seed=0).train()
            bare += _bare(samples, LossTerms(model, run.vocabulary, settings), steps)
            ticks: list[Clocks] = []

            def tick(state: TrainProgress, ticks: list[Clocks] = ticks) -> None:
                ticks.append(_clocks())

            out = Path(temporary, f"out{repeat}")
            train(samples, run.vocabulary, settings, out, seed=0, data_fingerprint="", progress=tick)
            # The last step ends with a checkpoint, which is once per run here.
            real += [_lasted(before, after) for before, after in pairwise(ticks)][_FIRST - 1 : -1]
    ours, reference = (
        [statistics.median(step[clock] for step in found) for clock in (0, 1)] for found in (real, bare)
    )
    print_table(
        f"{arguments.preset}: one step of {settings.batch_size} at {arguments.size} px, "
        f"{settings.loader_workers} loader workers "
        f"(median of {len(real)} steps in {arguments.repeats} turns)",
        ["", "wall ms", "ratio", "CPU ms", "ratio"],
        [
            ["training loop", 1000 * ours[0], ours[0] / reference[0], 1000 * ours[1], ours[1] / reference[1]],
            ["bare loop", 1000 * reference[0], 1.0, 1000 * reference[1], 1.0],
        ],
    )


if __name__ == "__main__":
    main()
