"""Effect of masks, losses, data size and sampling on the held-out mIoU of the miniature with its learned models.

    python benchmarks/miniature_study.py --work FOLDER --processes 2                      # hours of two cores
    python benchmarks/miniature_study.py --work FOLDER --processes 14 --device cuda
    python benchmarks/miniature_study.py --work FOLDER --seeds 0 --variants exact --set train.steps=5  # quick test

A seed determines the data, the weights and the held-out scenes. For every seed the preset ``miniature`` generates
data, and one model per variant is trained. All are scored on exact masks. Each variant differs from ``base`` in one
setting:

    exact               painted scenes with exact masks: no errors of the generator or of the masks
    painted pairs       painted scenes with masks by pair difference: only errors of the masks
    raw masks           the same generated pairs; the pair difference is not cleaned
    no validity         the pairs are not checked by the judge
    guidance 1, 4       guidance of the diffusion model, instead of 2
    steps 4, 16         steps of the diffusion model, instead of 6
    32 ... 2048 samples instead of 384 (a sample has two images: 64 to 4096), with the same number of training steps
    384, 3x steps       three times the training steps
    2048, 3x steps      both
    no counterfactual   without the counterfactual loss
    strong counterf.    the counterfactual loss with a weight of 1
    no class sampling   all ten classes are queried for every image
    no prompts          the frozen CLIP without visual prompts

The table shows the mIoU of each seed, the mean with its 95 % interval over seeds (Student's t), and the mean
difference to base with the interval of the paired differences and the p value, adjusted for the number of variants by
Holm's procedure. Every row is appended to a JSON-lines file (``--rows``). Rows that the file already has for the same
settings are not computed again. ``benchmarks/miniature_study.jsonl`` has the rows measured so far. The exit code is 0
for any result.
"""

import argparse
import hashlib
import json
import multiprocessing
from collections.abc import Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from ablations import BASE
from study_rows import append_row, print_table, read_rows

from magicseg.config.loading import load_config
from magicseg.config.stage_declarations import STAGES
from magicseg.data.kept_samples import KeptSamples
from magicseg.evaluate.painted_benchmark import evaluate_heldout
from magicseg.model.saved_model import load_segmenter
from magicseg.run.directory import Run
from magicseg.run.fingerprint import stage_weights
from magicseg.stages.worker import ShardEvent, run_shards
from magicseg.train.loop import train
from magicseg.weights.hashing import path_identity

MOST = "generated"  # the kind of data of base, and of all variants that change the number of samples
_PAINTER = ("generate.backend=painter", "generate.options={}", "generate.validity=null")
_RAW = "mask.options={}"


@dataclass(frozen=True)
class Variant:
    """``data``: a kind of `KINDS`. ``samples``: None for base's number. ``longer``: factor on base's steps."""

    data: str = MOST
    samples: int | None = None
    longer: int = 1
    train: Mapping[str, Any] = field(default_factory=dict)


KINDS: Mapping[str, tuple[str, ...]] = {
    MOST: (),
    "exact": (*_PAINTER, "mask.backend=painter", _RAW),
    "painted pairs": _PAINTER,
    "raw masks": (_RAW,),
    "no validity": ("generate.validity=null",),
    "guidance 1": ("generate.options.guidance=1",),
    "guidance 4": ("generate.options.guidance=4",),
    "steps 4": ("generate.options.steps=4",),
    "steps 16": ("generate.options.steps=16",),
}
VARIANTS: Mapping[str, Variant] = {
    BASE: Variant(),
    **{kind: Variant(data=kind) for kind in KINDS if kind != MOST},
    **{f"{count} samples": Variant(samples=count) for count in (32, 128, 1024, 2048)},
    "384, 3x steps": Variant(longer=3),
    "2048, 3x steps": Variant(samples=2048, longer=3),
    "no counterfactual": Variant(train={"counterfactual_weight": 0.0}),
    "strong counterf.": Variant(train={"counterfactual_weight": 1.0}),
    "no class sampling": Variant(train={"sampled_classes": 10}),
    "no prompts": Variant(train={"prompt_tokens": 0}),
}


@dataclass(frozen=True)
class Task:
    """The arguments of the worker processes."""

    work: Path
    overrides: tuple[str, ...]
    samples: int  # of the kind `MOST`: the largest number that a chosen variant needs
    device: str

    @property
    def base_samples(self) -> int:
        """Return the number of samples of variants that do not set it."""
        return load_config(preset="miniature", overrides=self.overrides).plan.samples

    @property
    def settings(self) -> str:
        """Return the key that every row contains. It changes with the settings and with the weights' contents.

        Settings that have their default are left out, so that a new setting makes no row stale, and so are the
        baselines, which no row has.
        """
        config = load_config(preset="miniature", overrides=self.overrides)
        needed = [each for stage in (*STAGES, "train") for each in stage_weights(config, stage)]
        weights = sorted({path_identity(each, each.setting) for each in needed})
        chosen = config.model_dump(mode="json", exclude_defaults=True, exclude={"evaluate": {"baselines"}})
        return hashlib.sha256(" ".join([self.device, *weights, json.dumps(chosen)]).encode()).hexdigest()[:12]


def make_data(kind: str, seed: int, task: Task) -> Run:
    """Create or resume the seed's run of this kind and generate its data."""
    folder = f"run-{seed}-{kind.replace(' ', '-')}"
    own = []
    if kind == MOST:
        folder += f"-{task.samples}"
        own.append(f"plan.samples={task.samples}")
    if task.device == "cuda" and _PAINTER[0] not in KINDS[kind]:
        own += ["generate.options.device=cuda"]
        own += ["generate.validity.detector.options.device=cuda"] if kind != "no validity" else []
    overrides = [*task.overrides, *own, *KINDS[kind], f"seed={seed}"]
    run = Run.create(task.work / folder, load_config(preset="miniature", overrides=overrides))
    for stage in STAGES:  # in this process, so that the libraries are imported once
        run_shards(run, stage, range(run.plan.shards), report=_refuse_failures)
    return run


def _refuse_failures(event: ShardEvent) -> None:
    if event.outcome in {"failed", "blocked"}:
        raise RuntimeError(f"shard {event.shard}: {event.detail}")


def one(seed: int, name: str, task: Task) -> dict[str, Any]:
    """Train and score one variant of one seed, whose data exist."""
    torch.set_num_threads(1)
    variant = VARIANTS[name]
    run = make_data(variant.data, seed, task)
    samples = KeptSamples.of(run)
    if variant.data == MOST:
        first = samples.indices < (variant.samples or task.base_samples)
        assert samples.planned is not None
        samples = replace(samples, indices=samples.indices[first], planned=samples.planned[first])
    settings = run.config.train
    trained = train(
        samples,
        run.vocabulary,
        settings.model_copy(update={**variant.train, "steps": settings.steps * variant.longer}),
        task.work / f"model-{seed}-{name.replace(' ', '-')}",
        seed=seed,
        data_fingerprint=f"{run.fingerprints['mask'].digest} {name}",
        device=torch.device(task.device),
    )
    scores = evaluate_heldout(
        load_segmenter(trained.model_dir).to(task.device),
        run.vocabulary,
        run.config.evaluate,
        image_size=run.config.generate.size,
        seed=seed,
        model_seed=seed,
    )
    return {
        "variant": name,
        "seed": seed,
        "miou": round(scores["miou"], 5),
        "pixel_accuracy": round(scores["pixel_accuracy"], 5),
        "samples": len(samples.indices),
        "seconds": round(trained.seconds, 1),
        "device": task.device,
        "settings": task.settings,
    }


def known(rows: Path, settings: str) -> dict[tuple[str, int], dict[str, Any]]:
    """Return the rows of these settings, by variant and seed."""
    return {(row["variant"], row["seed"]): row for row in read_rows(rows) if row["settings"] == settings}


def main() -> None:
    """Run the study and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = tuple(VARIANTS)[1:]
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--variants", choices=names, nargs="+", default=names, metavar="NAME")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of all runs")
    parser.add_argument("--work", type=Path, required=True, help="folder for data, models and results")
    parser.add_argument("--rows", type=Path, default=None, help="results  (WORK/rows.jsonl)")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    arguments.rows = arguments.rows or arguments.work / "rows.jsonl"
    chosen = {name: VARIANTS[name] for name in (BASE, *arguments.variants)}
    task = Task(arguments.work.resolve(), tuple(arguments.set), 0, arguments.device)
    task = replace(task, samples=max(each.samples or task.base_samples for each in chosen.values()))
    rows = known(arguments.rows, task.settings)
    lacking = {name: [seed for seed in arguments.seeds if (name, seed) not in rows] for name in chosen}
    wanted = dict.fromkeys((chosen[name].data, seed) for name, seeds in lacking.items() for seed in seeds)
    # Processes are spawned, because a process that has used CUDA cannot be forked.
    with ProcessPoolExecutor(arguments.processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        made = {pool.submit(make_data, kind, seed, task): (kind, seed) for kind, seed in wanted}
        waiting: set[Future[Any]] = set(made)
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for each in done:
                if each in made:  # a model is trained as soon as its data exist
                    each.result()
                    kind, seed = made[each]
                    names = [name for name in chosen if chosen[name].data == kind and seed in lacking[name]]
                    waiting |= {pool.submit(one, seed, name, task) for name in names}
                    continue
                row = each.result()
                rows[row["variant"], row["seed"]] = row
                append_row(arguments.rows, row)
    print_table(tuple(chosen), arguments.seeds, {key: row["miou"] for key, row in rows.items()})


if __name__ == "__main__":
    main()
