"""What each part of the method brings in the miniature: every part on and off, several seeds, held-out scenes.

    python benchmarks/ablations.py --seeds 0 1 2 3 4 --work FOLDER
    python benchmarks/ablations.py --seeds 0 1 --set train.steps=50 --work FOLDER      # quick, and says nothing

For every seed (of the data, the weights and the held-out scenes alike) one data set is made, and one model per
variant is trained on it, from the same first weights and in the same order of samples. Variants differ from ``base``
(the preset ``painted`` with masks by pair difference) in one thing:

    no mask loss        neither focal nor dice: the counterfactual loss alone
    no class sampling   all ten classes are asked of every image
    no counterfactual   without the counterfactual loss
    deep supervision    the earlier decoder layers' masks are supervised too
    wrong labels        a fifth of the samples show another object than was asked for
    wrong, filtered     the same samples, less those in which a judge misses the object (or finds it in the
                        counterfactual). The judge is the base model of the seed before: a detector with errors
    strong counterf.    the counterfactual loss with a weight of 1
    memory bank         no variant of training: prototypes of base's features instead of its decoder

Printed: mIoU by seed, the mean and its 95 % interval over seeds (Student's t), and the mean difference to base with
the interval of the paired differences and its p value, adjusted for the number of variants by Holm's procedure. A
finished training is not done again. Exits 0 whatever comes out.
"""

import argparse
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from scipy.stats import t as student
from scipy.stats import ttest_rel

from magicseg.config.loading import load_config
from magicseg.config.stage_declarations import STAGES
from magicseg.data.kept_samples import KeptSamples
from magicseg.evaluate.heads.memory_bank import MemoryBankHead, build_bank
from magicseg.evaluate.heads.segmenter_head import SegmenterHead
from magicseg.evaluate.painted import evaluate_heldout, predict, score_heldout
from magicseg.evaluate.threshold import Threshold
from magicseg.labels import BACKGROUND, IGNORE
from magicseg.model.saved_model import load_segmenter
from magicseg.model.segmenter import Segmenter
from magicseg.run.directory import Run
from magicseg.stages.pool import run_stage
from magicseg.train.loop import train

BASE = "base"
FILTERED = "wrong, filtered"
BANK = "memory bank"
CHANGES = {
    BASE: {},
    "no mask loss": {"focal_weight": 0.0, "dice_weight": 0.0},
    "no class sampling": {"sampled_classes": 10},
    "no counterfactual": {"counterfactual_weight": 0.0},
    "deep supervision": {"deep_supervision_weight": 1.0},
    "wrong labels": {},
    FILTERED: {},
    "strong counterf.": {"counterfactual_weight": 1.0},
}
VARIANTS = (*CHANGES, BANK)
_WRONG = 0.2
_SEEN = 0.01  # of the image's pixels: the judge has found a class
_BATCH = 64


@dataclass(frozen=True)
class WronglyLabelled(KeptSamples):
    """As if the generator had drawn another object in a fifth of the samples: their masks say what was asked for."""

    classes: int = 0
    seed: int = 0

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        images, counterfactuals, masks = map(np.array, super().read(indices))
        for place, index in enumerate(indices):
            asked = self.asked(int(index), masks[place])
            shown = (masks[place] != BACKGROUND) & (masks[place] != IGNORE)
            masks[place][shown] = asked
        return images, counterfactuals, masks

    def asked(self, index: int, mask: np.ndarray) -> int:
        """The id that was asked for: in a fifth of the samples not the one that is shown."""
        shown = int(mask[(mask != BACKGROUND) & (mask != IGNORE)].max(initial=1))
        rng = np.random.default_rng((self.seed, index))
        if rng.random() >= _WRONG:
            return shown
        return (shown - 1 + int(rng.integers(1, self.classes))) % self.classes + 1


def make_data(seed: int, work: Path, overrides: list[str]) -> Run:
    """The seed's run with its data; what is there already is kept."""
    path = work / f"run-{seed}"
    own = ["mask.backend=pair-difference", *overrides, f"seed={seed}"]
    run = Run.create(path, load_config(preset="painted", overrides=own))
    for stage in STAGES:
        run_stage(run, stage, workers=1)
    return run


def judged(samples: WronglyLabelled, judge: Segmenter, run: Run) -> WronglyLabelled:
    """The samples in which the judge finds what was asked for, and does not find it in the counterfactual."""
    kept = []
    head = SegmenterHead(judge, "")
    head.prepare([(name,) for name in run.vocabulary.names])
    threshold = Threshold(value=run.config.evaluate.threshold, origin="default")
    for start in range(0, len(samples.indices), _BATCH):
        indices = samples.indices[start : start + _BATCH]
        images, counterfactuals, masks = map(np.array, KeptSamples.read(samples, indices))
        found = [
            predict(head, pictures, run.vocabulary, threshold=threshold) for pictures in (images, counterfactuals)
        ]
        for place, index in enumerate(indices):
            asked = samples.asked(int(index), masks[place])
            with_it, without = (float((maps[place] == asked).mean()) >= _SEEN for maps in found)
            if with_it and not without:
                kept.append(index)
    indices = np.array(kept, dtype=np.int64)
    assert samples.planned is not None
    return replace(samples, indices=indices, planned=samples.planned[np.isin(samples.indices, indices)])


def one(seed: int, variant: str, work: Path, overrides: list[str], before: int) -> dict:
    """Train and score one variant of one seed. Args: before: the seed whose base model judges."""
    done = work / f"{seed}-{variant.replace(' ', '-').replace(',', '')}.json"
    if done.exists():
        return json.loads(done.read_text(encoding="utf-8"))
    torch.set_num_threads(1)
    run = make_data(seed, work, overrides)
    samples = KeptSamples.of(run)
    common = {"image_size": run.config.generate.size, "seed": seed}
    row = {"seed": seed, "variant": variant}
    base = work / f"model-{seed}-{BASE}"
    if variant == BANK:
        model = load_segmenter(base / "model")
        stride = model.encoder.stride
        bank = build_bank(
            samples,
            run.vocabulary,
            lambda pixels: model.encode_images(pixels)[1],
            stride=stride,
            limit=1024,
            prototypes=4,
        )
        head = MemoryBankHead(bank, lambda pixels: model.encode_images(pixels)[1], stride=stride, identity={})
        scores = score_heldout([head], run.vocabulary, run.config.evaluate, **common)[head.name]
    else:
        if variant in {"wrong labels", FILTERED}:
            samples = WronglyLabelled(
                **{each.name: getattr(samples, each.name) for each in fields(samples)},
                classes=len(run.vocabulary),
                seed=seed,
            )
        if variant == FILTERED:
            samples = judged(samples, load_segmenter(work / f"model-{before}-{BASE}" / "model"), run)
        row["samples"] = len(samples.indices)
        trained = train(
            samples,
            run.vocabulary,
            run.config.train.model_copy(update=CHANGES[variant]),
            work / f"model-{seed}-{variant}",
            seed=seed,
            data_fingerprint=f"{run.fingerprints['mask'].digest} {variant}",
        )
        scores = evaluate_heldout(
            load_segmenter(trained.model_dir),
            run.vocabulary,
            run.config.evaluate,
            **common,
            model_seed=seed,
        )
        row["seconds"] = trained.seconds
        row["background"] = scores["baselines"]["background"]["miou"]
    row["miou"] = scores["miou"]
    done.write_text(json.dumps(row), encoding="utf-8")
    print(json.dumps(row), flush=True)
    return row


def interval(values: list[float]) -> str:
    """``mean [low, high]``: Student's 95 % interval of the mean."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:+.3f}"
    half = student.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:.3f} [{mean - half:.3f}, {mean + half:.3f}]"


def holm(values: Mapping[str, float]) -> dict[str, float]:
    """Return p values adjusted for their number: Holm's step-down procedure (1979)."""
    adjusted: dict[str, float] = {}
    highest = 0.0
    for rank, name in enumerate(sorted(values, key=lambda each: values[each])):
        highest = max(highest, min(1.0, values[name] * (len(values) - rank)))
        adjusted[name] = highest
    return adjusted


def print_table(variants: Sequence[str], seeds: Sequence[int], miou: Mapping[tuple[str, int], float]) -> None:
    """A Markdown table: mIoU by seed, its mean, the difference to the first variant, seed by seed, and its p value by
    a paired t test, adjusted for the number of variants (`holm`).
    """
    titles = " | ".join(f"seed {seed}" for seed in seeds)
    print(f"\n| variant | {titles} | mean [95 %] | difference to {variants[0]} [95 %] | p, Holm |")
    print("|---|" + "---|" * (len(seeds) + 3))
    values = {variant: [miou[variant, seed] for seed in seeds] for variant in variants}
    base = values[variants[0]]
    adjusted = {}
    if len(seeds) > 1:
        adjusted = holm({name: float(ttest_rel(values[name], base).pvalue) for name in variants[1:]})
    for name, row in values.items():
        change = "" if name == variants[0] else interval([a - b for a, b in zip(row, base, strict=True)])
        p = f"{adjusted[name]:.2g}" if name in adjusted else ""
        print(f"| {name} |", " | ".join(f"{value:.3f}" for value in row), f"| {interval(row)} | {change} | {p} |")


def main() -> None:
    """Run the study and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--variants", choices=VARIANTS[1:], nargs="+", default=VARIANTS[1:], metavar="NAME")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the runs")
    parser.add_argument("--work", type=Path, required=True, help="folder for data, models and results")
    parser.add_argument("--processes", type=int, default=1)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    seeds = arguments.seeds
    rows: list[dict] = []
    with ProcessPoolExecutor(arguments.processes) as pool:
        for variants in ([BASE], arguments.variants):  # judges come first
            waiting = [
                pool.submit(one, seed, variant, arguments.work, arguments.set, seeds[place - 1])
                for variant in variants
                for place, seed in enumerate(seeds)
            ]
            rows += [each.result() for each in as_completed(waiting)]
    found = {(row["variant"], row["seed"]): row for row in rows}
    print_table((BASE, *arguments.variants), seeds, {place: row["miou"] for place, row in found.items()})
    background = [found[BASE, seed]["background"] for seed in seeds]
    print(f"\nbackground everywhere: {interval(background)}")
    if FILTERED in arguments.variants:
        print(f"samples that the judge keeps: {[found[FILTERED, seed]['samples'] for seed in seeds]}")


if __name__ == "__main__":
    main()
