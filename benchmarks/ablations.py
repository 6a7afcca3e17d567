"""Effect of each part of the method in the miniature: switch each part on or off, with several seeds.

    python benchmarks/ablations.py --seeds 0 1 2 3 4 --work FOLDER
    python benchmarks/ablations.py --seeds 0 1 --set train.steps=50 --work FOLDER      # quick test, not meaningful

A seed determines the data, the weights and the held-out scenes. For every seed the script creates one data set and
trains one model per variant on it, from the same initial weights and in the same sampling order. Each variant differs
from ``base`` (the preset ``painted`` with masks by pair difference) in one setting:

    no mask loss        neither focal nor dice loss, only the counterfactual loss
    no class sampling   all ten classes are queried for every image
    no counterfactual   without the counterfactual loss
    deep supervision    the masks of earlier decoder layers are also supervised
    wrong labels        a fifth of the samples show another object than their label
    wrong, filtered     the same samples, without those in which a judge misses the object (or finds it in the
                        counterfactual). The judge is the base model of the previous seed: a detector with errors
    strong counterf.    the counterfactual loss with a weight of 1
    memory bank         not a variant of training: prototypes of base's features instead of its decoder

The table shows the mIoU of each seed, the mean with its 95 % interval over seeds (Student's t), and the mean
difference to base with the interval of the paired differences and the p value, adjusted for the number of variants by
Holm's procedure. Finished trainings are not repeated. The exit code is 0 for any result.
"""

import argparse
import json
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from study_rows import interval, print_table

from magicseg.config.loading import load_config
from magicseg.config.stage_declarations import STAGES
from magicseg.data.kept_samples import KeptSamples
from magicseg.evaluate.decoding import label_batch, threshold_of
from magicseg.evaluate.heads.memory_bank import MemoryBankHead, build_bank
from magicseg.evaluate.heads.segmenter_head import SegmenterHead
from magicseg.evaluate.painted_benchmark import evaluate_heldout, score_heldout
from magicseg.labels import BACKGROUND, IGNORE
from magicseg.miniature.held_out_scenes import PaintedScenes
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
_FOUND = 0.01  # fraction of the image's pixels from which on the judge has found a class
_BATCH = 64


@dataclass(frozen=True)
class WronglyLabelled(KeptSamples):
    """Samples of which a fifth have a wrong label, as if the generator had drawn another object."""

    classes: int = 0
    seed: int = 0

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        images, counterfactuals, masks = map(np.array, super().read(indices))
        for position, index in enumerate(indices):
            asked = self.asked(int(index), masks[position])
            shown = (masks[position] != BACKGROUND) & (masks[position] != IGNORE)
            masks[position][shown] = asked
        return images, counterfactuals, masks

    def asked(self, index: int, mask: np.ndarray) -> int:
        """Return the sample's label id. In a fifth of the samples it differs from the visible object."""
        shown = int(mask[(mask != BACKGROUND) & (mask != IGNORE)].max(initial=1))
        rng = np.random.default_rng((self.seed, index))
        if rng.random() >= _WRONG:
            return shown
        return (shown - 1 + int(rng.integers(1, self.classes))) % self.classes + 1


def make_data(seed: int, work: Path, overrides: list[str]) -> Run:
    """Create or resume the seed's run and generate its data."""
    path = work / f"run-{seed}"
    own = ["mask.backend=pair-difference", *overrides, f"seed={seed}"]
    run = Run.create(path, load_config(preset="painted", overrides=own))
    for stage in STAGES:
        run_stage(run, stage, workers=1)
    return run


def judged(samples: WronglyLabelled, judge: Segmenter, run: Run) -> WronglyLabelled:
    """Return the samples whose label the judge finds in the image and not in the counterfactual."""
    kept = []
    head = SegmenterHead(judge, "")
    scenes = PaintedScenes.of(run.vocabulary, run.config.evaluate, seed=0, size=run.config.generate.size)
    head.prepare(scenes.protocol.queries)
    threshold = threshold_of(scenes.protocol, None)
    for start in range(0, len(samples.indices), _BATCH):
        indices = samples.indices[start : start + _BATCH]
        images, counterfactuals, masks = map(np.array, KeptSamples.read(samples, indices))
        with torch.inference_mode():
            found = [
                label_batch(head, list(pixels), scenes, threshold, f"samples from {indices[0]}")
                for pixels in (images, counterfactuals)
            ]
        for position, index in enumerate(indices):
            asked = samples.asked(int(index), masks[position])
            with_it, without = (float((maps[position] == asked).mean()) >= _FOUND for maps in found)
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
        for variants in ([BASE], arguments.variants):  # base models first, because they are the judges
            waiting = [
                pool.submit(one, seed, variant, arguments.work, arguments.set, seeds[number - 1])
                for variant in variants
                for number, seed in enumerate(seeds)
            ]
            rows += [each.result() for each in as_completed(waiting)]
    found = {(row["variant"], row["seed"]): row for row in rows}
    print_table((BASE, *arguments.variants), seeds, {key: row["miou"] for key, row in found.items()})
    background = [found[BASE, seed]["background"] for seed in seeds]
    print(f"\nbackground everywhere: {interval(background)}")
    if FILTERED in arguments.variants:
        print(f"samples that the judge keeps: {[found[FILTERED, seed]['samples'] for seed in seeds]}")


if __name__ == "__main__":
    main()
