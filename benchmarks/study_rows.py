"""Rows of a study in a JSON-lines file, and their statistics over seeds: intervals, adjusted p values, a table."""

import json
import math
import statistics
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from scipy.stats import t as student
from scipy.stats import ttest_rel

Name = TypeVar("Name", bound=Hashable)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file; none if it does not exist."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Append a row to a file and print it."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row), flush=True)


def interval(values: Sequence[float], form: str = ".3f") -> str:
    """Return ``mean [low, high]``, with Student's 95 % interval of the mean. Args: form: of each number."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:{form}}"
    half = float(student.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:{form}} [{mean - half:{form}}, {mean + half:{form}}]"


def differences(values: Sequence[float], base: Sequence[float]) -> list[float]:
    """Return the paired differences, seed by seed."""
    return [one - other for one, other in zip(values, base, strict=True)]


def paired_p(values: Sequence[float], base: Sequence[float]) -> float:
    """Return the p value of a paired t test; 1 if all values are equal."""
    return 1.0 if list(values) == list(base) else float(ttest_rel(values, base).pvalue)


def holm(values: Mapping[Name, float]) -> dict[Name, float]:
    """Return p values adjusted for their number: Holm's step-down procedure (1979)."""
    adjusted: dict[Name, float] = {}
    highest = 0.0
    for rank, name in enumerate(sorted(values, key=lambda each: values[each])):
        highest = max(highest, min(1.0, values[name] * (len(values) - rank)))
        adjusted[name] = highest
    return adjusted


def print_table(variants: Sequence[str], seeds: Sequence[int], miou: Mapping[tuple[str, int], float]) -> None:
    """Print a Markdown table: mIoU of each seed, the mean, the paired difference to the first variant, the p value.

    The p value is from a paired t test, adjusted for the number of variants (`holm`).
    """
    titles = " | ".join(f"seed {seed}" for seed in seeds)
    print(f"\n| variant | {titles} | mean [95 %] | difference to {variants[0]} [95 %] | p, Holm |")
    print("|---|" + "---|" * (len(seeds) + 3))
    values = {variant: [miou[variant, seed] for seed in seeds] for variant in variants}
    base = values[variants[0]]
    adjusted = {}
    if len(seeds) > 1:
        adjusted = holm({name: paired_p(values[name], base) for name in variants[1:]})
    for name, row in values.items():
        change = "" if name == variants[0] else interval(differences(row, base))
        p = f"{adjusted[name]:.2g}" if name in adjusted else ""
        print(f"| {name} |", " | ".join(f"{value:.3f}" for value in row), f"| {interval(row)} | {change} | {p} |")
