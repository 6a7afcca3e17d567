"""What parts of the pipeline bring in the miniature with learned models: several seeds, held-out scenes, exact truth.

    python benchmarks/miniature_study.py --processes 2 --work FOLDER
    python benchmarks/miniature_study.py --seeds 0 1 --variants exact --set plan.samples=32 --set train.steps=20 \
        --work FOLDER      # quick, and says nothing

For every seed (of the captions, the images, the weights and the held-out scenes alike) data sets are made with the
preset ``miniature``, and models are trained on them; ``base`` is the preset. Variants differ from it in one thing:

    exact               painted images with their exact masks: what the generator and its masks cost
    no validity         no judge looks at the pairs
    guidance N, steps N the generator's
    N samples           the amount of data; the number of training steps is the same
    no counterfactual   without the counterfactual loss
    strong counterf.    the counterfactual loss with the paper's weight, 1
    no class sampling   all ten classes are asked of every image
    no prompts          the frozen CLIP is read as it is
    zero-shot           no variant of training: dense CLIP without a decoder, the best of its readings

Printed: mIoU by seed, the mean and its 95 % interval over seeds (Student's t), and the mean difference to base with
the interval of the paired differences; then what the generator made. What is done is not done again.
"""

import argparse
import hashlib
import json
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from ablations import interval

from magicseg.config import load_config
from magicseg.evaluate.heldout import evaluate_heldout
from magicseg.execute.pool import run_stage
from magicseg.model.segmenter import load_segmenter
from magicseg.run.directory import Run
from magicseg.run.fingerprint import STAGES
from magicseg.store.kept import KeptSamples
from magicseg.train.loop import train

BASE, ZERO_SHOT = "base", "zero-shot"
EXACT = (
    *("generate.backend=painter", "generate.options={}", "generate.validity=null"),
    *("mask.backend=painter", "mask.options={}"),
)


@dataclass(frozen=True)
class Variant:
    """``data``: settings of the data set. ``training``: changes of the settings of training. ``samples``: of the
    data set, from its first; None: as many as the preset has.
    """

    data: tuple[str, ...] = ()
    training: tuple[str, ...] = ()
    samples: int | None = None


VARIANTS = {
    BASE: Variant(),
    "exact": Variant(data=EXACT),
    "no validity": Variant(data=("generate.validity=null",)),
    **{f"guidance {value:g}": Variant(data=(f"generate.options.guidance={value}",)) for value in (1.0, 6.0)},
    **{f"steps {value}": Variant(data=(f"generate.options.steps={value}",)) for value in (5, 20)},
    **{f"{count} samples": Variant(samples=count) for count in (64, 128, 256, 1024, 4096)},
    "no counterfactual": Variant(training=("train.counterfactual_weight=0",)),
    "strong counterf.": Variant(training=("train.counterfactual_weight=1",)),
    "no class sampling": Variant(training=("train.sampled_classes=10",)),
    "no prompts": Variant(training=("train.prompt_tokens=0",)),
}


@dataclass(frozen=True)
class Study:
    """``overrides``: settings of all runs. ``most``: samples of the largest data set with the preset's settings."""

    work: Path
    overrides: tuple[str, ...]
    most: int

    def make_data(self, seed: int, data: tuple[str, ...]) -> Path:
        """Where the run with its data set is; what is there already is kept."""
        own = (*self.overrides, *data, f"seed={seed}")
        if not data:
            own = (*own, f"plan.samples={self.most}")
        path = self.work / f"run-{seed}-{hashlib.sha256(repr(data).encode()).hexdigest()[:8]}"
        run = Run.create(path, load_config(preset="miniature", overrides=own))
        for stage in STAGES:
            run_stage(run, stage, workers=1)
        return path

    def one(self, seed: int, name: str) -> dict:
        """Train and score one variant of one seed."""
        done = self.work / f"{seed}-{name.replace(' ', '-')}.json"
        if done.exists():
            return dict(json.loads(done.read_text(encoding="utf-8")))
        torch.set_num_threads(1)
        variant = VARIANTS[name]
        run = Run.open(self.make_data(seed, variant.data))
        config = load_config(preset="miniature", overrides=[*self.overrides, *variant.training])
        samples = first(KeptSamples.of(run), variant.samples or config.plan.samples)
        trained = train(
            samples,
            run.vocabulary,
            config.train,
            self.work / f"model-{seed}-{name}",
            seed=seed,
            data_fingerprint=f"{run.fingerprints['mask'].digest} {len(samples.indices)}",
        )
        scores = evaluate_heldout(
            load_segmenter(trained.model_dir),
            run.vocabulary,
            config.evaluate,
            image_size=run.config.generate.size,
            seed=seed,
            model_seed=seed,
            baselines=zero_shot_heads(trained.model_dir) if name == BASE else (),
        )
        row = {"seed": seed, "variant": name, "miou": scores["miou"], "kept": len(samples.indices)}
        row["seconds"] = round(trained.seconds, 1)
        row["baselines"] = {each: values["miou"] for each, values in scores["baselines"].items()}
        done.write_text(json.dumps(row), encoding="utf-8")
        print(json.dumps(row), flush=True)
        return row


def zero_shot_heads(folder: Path) -> list:
    """Dense CLIP in all its readings."""
    from magicseg.evaluate.dense_clip import DenseClipHead
    from magicseg.model.dense import DENSE_VARIANTS

    model = load_segmenter(folder)
    return [DenseClipHead(model, "", variant) for variant in DENSE_VARIANTS]


def first(samples: KeptSamples, count: int) -> KeptSamples:
    """The kept samples among the first so many."""
    chosen = samples.indices < count
    planned = None if samples.planned is None else samples.planned[chosen]
    return replace(samples, indices=samples.indices[chosen], planned=planned)


def main() -> None:
    """Run the study and print Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    names = [name for name in VARIANTS if name != BASE]
    parser.add_argument("--variants", choices=names, nargs="+", default=names, metavar="NAME")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of all runs")
    parser.add_argument("--work", type=Path, required=True, help="folder for data, models and results")
    parser.add_argument("--processes", type=int, default=1)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    overrides = ("train.cpu_threads=1", "train.loader_workers=0", *arguments.set)
    preset = load_config(preset="miniature", overrides=overrides).plan.samples
    chosen = {name: VARIANTS[name] for name in (BASE, *arguments.variants)}
    study = Study(arguments.work, overrides, max(preset, *(each.samples or 0 for each in chosen.values())))
    began = time.monotonic()
    seeds = arguments.seeds
    with ProcessPoolExecutor(arguments.processes) as pool:
        asked = [(seed, each) for each in dict.fromkeys(v.data for v in chosen.values()) for seed in seeds]
        runs = list(pool.map(study.make_data, *zip(*asked, strict=True)))
        waiting = [pool.submit(study.one, seed, name) for name in chosen for seed in seeds]
        found = {(row["variant"], row["seed"]): row for row in (each.result() for each in waiting)}
    report(found, list(chosen), seeds)
    print("\n| data set | planned | kept, by seed |\n|---|---|---|")
    for each in dict.fromkeys(variant.data for variant in chosen.values()):
        made = [Run.open(run) for run, (_, settings) in zip(runs, asked, strict=True) if settings == each]
        kept = [sum(record.kept_count for record in run.ledger("mask").commits().values()) for run in made]
        print(f"| {' '.join(each) or 'the preset'} | {made[0].plan.samples} | {', '.join(map(str, kept))} |")
    print(f"all of it: {(time.monotonic() - began) / 60:.0f} minutes with {arguments.processes} processes")


def report(found: dict, names: list[str], seeds: list[int]) -> None:
    """Print the table."""
    base = [found[BASE, seed]["miou"] for seed in seeds]
    print(
        "\n| variant |", " | ".join(f"seed {seed}" for seed in seeds), "| mean [95 %] | difference to base [95 %] |"
    )
    print("|---|" + "---|" * (len(seeds) + 2))
    rows = {name: [found[name, seed]["miou"] for seed in seeds] for name in names}
    baselines = found[BASE, seeds[0]]["baselines"]
    rows |= {name: [found[BASE, seed]["baselines"][name] for seed in seeds] for name in baselines}
    for name, values in rows.items():
        change = "" if name == BASE else interval(list(np.subtract(values, base)))
        print(f"| {name} |", " | ".join(f"{value:.3f}" for value in values), f"| {interval(values)} | {change} |")


if __name__ == "__main__":
    main()
