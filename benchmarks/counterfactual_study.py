"""Effect of the losses on counterfactual images, on painted sets where they could help: mIoU and false positives.

    python benchmarks/counterfactual_study.py                                  # print the table of the kept rows
    python benchmarks/counterfactual_study.py --work FOLDER --processes 2      # train what is missing: hours
    python benchmarks/counterfactual_study.py --work FOLDER --seeds 0 --sets plain --terms silence

A seed determines the data, the first weights, the sampling order and the held-out scenes. Each term differs from
``base`` of the same set and seed in one thing. ``base`` has the losses on masks only. The sets (`SETS`):

    plain               384 painted pairs of one object, exact masks; training as in the preset ``miniature``
    context bias        each class appears in one scene only. Without copy-paste, which would show it in others
    context, pasted     the same with the preset's copy-paste
    64, 128 samples     instead of 384, with the same number of training steps
    wrong pairs         a fifth of the counterfactuals belong to other samples: half of them show another scene, half
                        show another object. The pairs of this set count as not validated
    fifty classes       ten nouns in five colours: "red car"
    unaligned pairs     counterfactuals with the same scene and light, but backdrop and noise of their own
    generated           the preset ``miniature`` as it is: generated, validated pairs with masks by pair difference
    from scratch        4096 pairs, and the small encoder of the preset ``painted``, trained from random weights

The pairs of all sets but ``generated`` are painted, with exact masks, so that sets differ in what they are named for.
Held-out scenes are the miniature's: one or two objects in any scene, all classes queried. False positives are the
share of pixels that get any class in the same scenes painted without their objects.

The terms (`TERMS`) with their weights:

    counterfactual      the paper's loss on class tokens, at the preset's weight of 0.1; x10: at 1
    silence             the focal loss on counterfactuals, at the weight of the focal loss
    aligned pair        at 0.1: on ``context bias`` with seed 101 it scored 0.665, and 0.647 at 1 (base: 0.673)
    text direction      at 0.1 (there 0.647, and 0.625 at 1), with a margin of 1. Before training, the cosines of
                        every painted pair differ by 0.4 to 1: the default margin of 0.2 would change nothing
    hard negatives      four of the eight queried classes, see ``train.hard_negatives``
    release losses      the release's focal loss, with its weights of 100 (focal) and 1 (dice)
    release             the same with the decoder ``zegclip``, the release's weight decay and schedule
    ..., c.             with the counterfactual loss at the release's weight of 1, compared with the same without it

The table shows the mean differences with their 95 % intervals (Student's t, paired by seed), and the p values of
paired t tests, adjusted by Holm's procedure for the number of differences in the table. Time is CPU time of the
training. Memory is the peak of its process: every training has its own. Rows are appended to a JSON-lines file
(``--rows``). A row has a digest of its settings; only rows of the current settings count, and they are not computed
again. The exit code is 1 if a training failed.
"""

import argparse
import fcntl
import hashlib
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from measure import in_fresh_process, peak_mib
from miniature_study import MOST, Task, make_data
from painted_sets import RECIPE, PairSet
from study_rows import append_row, differences, holm, interval, paired_p, read_rows

from magicseg.config.loading import load_config
from magicseg.config.model import encoder_weights
from magicseg.config.run import Config
from magicseg.config.training import TrainSettings
from magicseg.data.kept_samples import KeptSamples
from magicseg.evaluate.heads.segmenter_head import SegmenterHead
from magicseg.evaluate.metrics.confusion import Scores
from magicseg.evaluate.metrics.false_positives import false_positives
from magicseg.evaluate.runner import count_images
from magicseg.miniature.held_out_scenes import PaintedScenes
from magicseg.miniature.painter import RECIPE as PAINTER
from magicseg.model.saved_model import load_segmenter
from magicseg.model.segmenter import Segmenter
from magicseg.run.fingerprint import stage_fingerprints
from magicseg.train.loop import train
from magicseg.weights.content import content_identity
from magicseg.weights.manifest import Manifest

BASE = "base"
ROWS = Path(__file__).with_suffix(".jsonl")


@dataclass(frozen=True)
class Term:
    """A change of the training's settings. ``against``: the term that it is compared with.

    ``recipe`` is a part of the digest. Raise it when the formula behind the settings changes.
    """

    train: Mapping[str, Any] = field(default_factory=dict)
    against: str = BASE
    recipe: int = 1


@dataclass(frozen=True)
class Set:
    """Data with the settings that all of its trainings share.

    ``terms``: names of the terms that it is for. ``embed_dim``: of the preset's encoder. ``train``: settings that
    differ from the preset's. ``generated``: the preset's own data instead of ``pairs``.
    """

    pairs: PairSet
    terms: tuple[str, ...]
    preset: str = "miniature"
    embed_dim: int = 96
    train: Mapping[str, Any] = field(default_factory=dict)
    generated: bool = False


_RELEASE_LOSSES = {"losses": "release", "focal_weight": 100.0, "dice_weight": 1.0}
_RELEASE = {**_RELEASE_LOSSES, "decoder": "zegclip", "weight_decay_on": "all", "schedule": "release"}
_COUNTERFACTUAL = {"counterfactual_weight": 1.0}
TERMS: Mapping[str, Term] = {
    BASE: Term({"counterfactual_weight": 0.0}),
    "counterfactual": Term({"counterfactual_weight": 0.1}),
    "counterfactual x10": Term({"counterfactual_weight": 1.0}),
    "silence": Term({"silence_weight": 20.0}),
    "aligned pair": Term({"aligned_pair_weight": 0.1}),
    "text direction": Term({"text_direction_weight": 0.1, "text_direction_margin": 1.0}),
    "hard negatives": Term({"hard_negatives": 4}),
    "silence + aligned": Term({"silence_weight": 20.0, "aligned_pair_weight": 0.1}),
    "release losses": Term(_RELEASE_LOSSES),
    "release losses, c.": Term({**_RELEASE_LOSSES, **_COUNTERFACTUAL}, against="release losses"),
    "release": Term(_RELEASE),
    "release, c.": Term({**_RELEASE, **_COUNTERFACTUAL}, against="release"),
}
_OURS, _RELEASES = tuple(TERMS)[:8], tuple(TERMS)[8:]
_COLOURS = ("red", "yellow", "green", "blue", "white")
SETS: Mapping[str, Set] = {
    "plain": Set(PairSet(), (*_OURS, *_RELEASES[2:])),
    "context bias": Set(PairSet(one_scene=True), _OURS, train={"paste": 0.0}),
    "wrong pairs": Set(PairSet(wrong=0.2), _OURS),
    "64 samples": Set(PairSet(count=64), _OURS),
    "fifty classes": Set(PairSet(colours=_COLOURS), _OURS),
    "unaligned pairs": Set(PairSet(aligned=False), _OURS),
    "128 samples": Set(PairSet(count=128), _OURS),
    "context, pasted": Set(PairSet(one_scene=True), _OURS),
    "generated": Set(PairSet(), _OURS, generated=True),
    "from scratch": Set(PairSet(count=4096), (*_OURS[:3], *_RELEASES), preset="painted", embed_dim=64),
}

Key = tuple[str, str, int]  # set, term, seed
Row = Mapping[str, Any]


def train_settings(data: Set, term: Term, overrides: Sequence[str]) -> tuple[TrainSettings, Config]:
    """Return the settings of a training, and the configuration that they are taken from."""
    config = load_config(preset=data.preset, overrides=list(overrides))
    changes = {**TERMS[BASE].train, **data.train, **term.train, "loader_workers": 0}
    values = {**config.train.model_dump(), **changes}
    if values["decoder"] == "zegclip":
        values["decoder_width"] = data.embed_dim  # it has no projection
    return TrainSettings.model_validate(values), config


def digest(data: Set, term: Term, overrides: Sequence[str]) -> str:
    """Return the digest of everything that decides a row but its seed.

    Settings that have their default are left out, so that a new setting makes no row stale.
    """
    settings, config = train_settings(data, term, overrides)
    weights = [content_identity(each, each.setting) for each in encoder_weights(settings)]
    made = stage_fingerprints(config, "", Manifest())["mask"].digest if data.generated else asdict(data.pairs)
    content = {
        "set": [RECIPE, PAINTER, made],
        "term": term.recipe,
        "train": settings.model_dump(mode="json", exclude_defaults=True, exclude={*settings.NEUTRAL, "encoder"}),
        "encoder": settings.encoder.model_dump(mode="json", exclude={"weights"}),
        "weights": weights,
        "evaluate": [config.evaluate.scenes, config.evaluate.threshold],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def generated(seed: int, overrides: Sequence[str], work: Path) -> KeptSamples:
    """Return the samples of the preset ``miniature``, generated once by a process of their own."""
    with (work / f"run-{seed}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        task = Task(work, tuple(overrides), 0, "cpu")
        task = replace(task, samples=task.base_samples)
        return KeptSamples.of(in_fresh_process(make_data, MOST, seed, task))


def one(key: Key, overrides: Sequence[str], work: Path) -> dict[str, Any]:
    """Train and score one model. Returns: its row."""
    torch.set_num_threads(1)
    name, term, seed = key
    data = SETS[name]
    settings, config = train_settings(data, TERMS[term], overrides)
    vocabulary = data.pairs.vocabulary
    samples = generated(seed, overrides, work) if data.generated else data.pairs.samples(seed)
    began, cpu = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory(dir=work) as folder:
        trained = train(samples, vocabulary, settings, Path(folder), seed=seed, data_fingerprint=" ".join(key[:2]))
        seconds, cpu_seconds, peak = time.perf_counter() - began, time.process_time() - cpu, peak_mib()
        model = load_segmenter(trained.model_dir)
    return {
        "set": name,
        "term": term,
        "seed": seed,
        **score(model, data.pairs.held_out(config.evaluate, seed=seed)),
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
        "peak_mib": round(peak),
        "losses": {loss: round(value, 5) for loss, value in trained.losses.items()},
        "digest": digest(data, TERMS[term], overrides),
    }


def score(model: Segmenter, scenes: PaintedScenes) -> dict[str, float]:
    """Return mIoU over classes and background, and the shares of `magicseg.evaluate.metrics.false_positives`."""
    confusion, counts = count_images(SegmenterHead(model, ""), scenes)
    scores, false = Scores(confusion), false_positives(counts)
    return {
        "miou": round(scores.miou, 5),
        "pixel_accuracy": round(scores.pixel_accuracy, 5),
        "false_pixels": round(false["pixels"], 6),
        "false_own_pixels": round(false["own_pixels"], 6),
        "found": round(false["found"], 5),
    }


def kept(path: Path, overrides: Sequence[str]) -> dict[Key, Row]:
    """Return the rows whose digest is that of the current settings; of equal keys the last."""
    current = {
        (name, term): digest(data, TERMS[term], overrides) for name, data in SETS.items() for term in data.terms
    }
    return {
        (row["set"], row["term"], row["seed"]): row
        for row in read_rows(path)
        if current.get((row["set"], row["term"])) == row["digest"]
    }


def wanted(sets: Sequence[str], terms: Sequence[str], seeds: Sequence[int]) -> list[Key]:
    """Return what the table needs in the order of training: set by set, seed by seed."""
    chosen = [
        (name, seed, term) for name, seed in itertools.product(sets, seeds) for term in _with_bases(name, terms)
    ]
    return [(name, term, seed) for name, seed, term in chosen]


def _with_bases(name: str, terms: Sequence[str]) -> list[str]:
    """Return those of the terms that a set is for, and the terms that they are compared with."""
    own = {term for term in SETS[name].terms if term in terms}
    while bases := {TERMS[term].against for term in own} - own:
        own |= bases
    return [term for term in SETS[name].terms if term in own]


def compute(keys: Sequence[Key], arguments: argparse.Namespace) -> dict[Key, Row]:
    """Train what is missing. Every training has a new process. Failures are printed."""
    rows: dict[Key, Row] = {}
    began = time.perf_counter()
    with ThreadPoolExecutor(arguments.processes) as pool:
        running = {pool.submit(in_fresh_process, one, key, tuple(arguments.set), arguments.work): key for key in keys}
        for number, future in enumerate(as_completed(running), start=1):
            key = running[future]
            try:
                rows[key] = future.result()
            except Exception as error:  # of any kind: the others go on
                print(f"{key} failed\n{error.__cause__ or error}", flush=True)
                continue
            append_row(arguments.rows, rows[key])
            hours = (time.perf_counter() - began) / 3600
            left = hours / number * (len(keys) - number)
            print(f"{number} of {len(keys)} after {hours:.2f} h, about {left:.1f} h left", flush=True)
    return rows


@dataclass(frozen=True, eq=False)
class Line:
    """A line of the table: rows of one set and term, and those that they are compared with, both by seed."""

    name: str
    term: str
    rows: Sequence[Row]
    base: Sequence[Row]

    def values(self, key: str) -> tuple[list[float], list[float]]:
        """Return one number of the rows and of base's."""
        return [row[key] for row in self.rows], [row[key] for row in self.base]

    @property
    def is_base(self) -> bool:
        """Whether it is compared with itself."""
        return TERMS[self.term].against == self.term


def print_table(lines: Sequence[Line]) -> None:
    """Print a Markdown table."""
    compared = [line for line in lines if not line.is_base and len(line.rows) > 1]
    adjusted = holm({(line.name, line.term): paired_p(*line.values("miou")) for line in compared})
    titles = ("set", "term", "seeds", "mIoU", "difference [95 %]", "p, Holm", "false positives, %")
    print("\n|", " | ".join((*titles, "difference [95 %]", "time", "memory")), "|")
    print("|" + "---|" * (len(titles) + 3))
    for line in lines:
        print("|", " | ".join(_cells(line, adjusted.get((line.name, line.term)))), "|")
    print(f"\np is adjusted for {len(compared)} comparisons.")


def _cells(line: Line, p: float | None) -> list[str]:
    """Return a line's cells. Args: p: adjusted; None if there is none."""
    miou = line.values("miou")
    false, other_false = ([100 * share for share in shares] for shares in line.values("false_pixels"))
    first = [line.name, line.term, str(len(line.rows)), interval(miou[0])]
    cost = ("cpu_seconds", "peak_mib")
    if line.is_base:
        seconds, mib = (statistics.median(line.values(key)[0]) for key in cost)
        return [*first, "", "", interval(false), "", f"{seconds:.0f} s", f"{mib:.0f} MiB"]
    return [
        *first,
        interval(differences(*miou), "+.4f"),
        "" if p is None else f"{p:.2g}",
        interval(false),
        interval(differences(false, other_false), "+.3f"),
        *(_ratio(*line.values(key)) for key in cost),
    ]


def _ratio(values: Sequence[float], base: Sequence[float]) -> str:
    return f"x {statistics.median(one / other for one, other in zip(values, base, strict=True)):.2f}"


def lines_of(rows: Mapping[Key, Row], keys: Sequence[Key]) -> list[Line]:
    """Return the table's lines: one for each set and term of the keys, with the seeds that both sides have."""
    lines = []
    for name, term in dict.fromkeys((name, term) for name, term, _ in keys):
        against = TERMS[term].against
        seeds = [seed for *_, seed in keys if (name, term, seed) in rows and (name, against, seed) in rows]
        seeds = list(dict.fromkeys(seeds))
        if seeds:
            pair = ([rows[name, which, seed] for seed in seeds] for which in (term, against))
            lines.append(Line(name, term, *pair))
    return lines


def main() -> int:
    """Train what is missing, if a work folder is given, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", choices=SETS, nargs="+", default=list(SETS), metavar="NAME")
    parser.add_argument("--terms", choices=TERMS, nargs="+", default=list(TERMS), metavar="NAME")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of all trainings")
    parser.add_argument("--work", type=Path, help="folder for models in training; without it, nothing is trained")
    parser.add_argument("--rows", type=Path, default=ROWS, help=f"results  ({ROWS.name} beside this program)")
    parser.add_argument("--processes", type=int, default=1)
    arguments = parser.parse_args()
    keys = wanted(arguments.sets, arguments.terms, arguments.seeds)
    rows = kept(arguments.rows, arguments.set)
    missing = [key for key in keys if key not in rows]
    if arguments.work is not None:
        os.environ["OMP_NUM_THREADS"] = "1"  # of the trainings' processes
        arguments.work = arguments.work.resolve()
        arguments.work.mkdir(parents=True, exist_ok=True)
        rows |= compute(missing, arguments)
        missing = [key for key in keys if key not in rows]
    print_table(lines_of(rows, keys))
    if missing:
        print(f"{len(missing)} of {len(keys)} trainings are missing.")
    return int(arguments.work is not None and bool(missing))


if __name__ == "__main__":
    raise SystemExit(main())
