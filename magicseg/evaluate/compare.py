"""``magicseg compare``: results side by side, with their intervals, and whether they may be compared at all.

rows = compare([Path("runs/a"), Path("runs/b")])
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NotRequired

from pydantic import ConfigDict
from typing_extensions import TypedDict

from magicseg.core.documents import read_json
from magicseg.core.text import command
from magicseg.errors import DataError
from magicseg.evaluate.threshold import Threshold


@dataclass(frozen=True, kw_only=True)
class Row:
    """One benchmark and head. ``cells``: by position of what is compared, the results there, or None.

    ``notes``: why the figures of this row are of different things, or not to be trusted, if so.
    """

    benchmark: str
    head: str
    cells: tuple[Mapping[str, Any] | None, ...]
    notes: tuple[str, ...] = field(default=())


def compare(paths: Sequence[Path]) -> list[Row]:
    """All benchmarks and heads that are in any of ``paths``: runs, models' folders, or single results files.

    Raises: DataError where there are no results, or a file is none.
    """
    found = [_results_in(path) for path in paths]
    keys = dict.fromkeys(key for results in found for key in results)
    return [
        Row(benchmark=benchmark, head=head, cells=cells, notes=_notes(cells))
        for benchmark, head in keys
        for cells in [tuple(results.get((benchmark, head)) for results in found)]
    ]


def _results_in(path: Path) -> dict[tuple[str, str], Mapping[str, Any]]:
    """Results by benchmark and head, the trained model's first."""
    if path.is_file():
        files = [path]
    else:
        files = sorted((path / "results").glob("*.json")) or sorted(path.glob("*.json"))
        files = [file for file in files if file.name != "model.json"]
    found: dict[tuple[str, str], Mapping[str, Any]] = {}
    for file in files:
        content = _read(file)
        name = f"{content['benchmark']}{'' if content.get('complete') is not False else ' (part)'}"
        if content.get("limited"):  # there may be results of several limits
            name = f"{content['benchmark']} ({content.get('images')} images)"
        found[name, str(content.get("head", "model"))] = content
        for head, scores in content.get("baselines", {}).items():
            found[name, head] = scores
    if not found:
        raise DataError(f"{path}: there are no results", hint=command("magicseg", "evaluate", path))
    return found


class _Scores(TypedDict):
    """What is shown of a head; other keys are kept as they are."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    miou: float | None
    miou_interval: NotRequired[tuple[float, float] | None]


class _Results(_Scores):
    """What is shown of a benchmark."""

    benchmark: str
    provenance: dict[str, Any]
    baselines: NotRequired[dict[str, _Scores]]


def _read(path: Path) -> dict[str, Any]:
    try:
        return {**read_json(path, _Results, hint="name files that magicseg evaluate has written", nan=True)}
    except FileNotFoundError:
        raise DataError(f"{path}: is gone") from None


_MUST_AGREE = {"protocol_digest": "protocols", "data": "data"}


def _notes(cells: Sequence[Mapping[str, Any] | None]) -> tuple[str, ...]:
    there = [cell for cell in cells if cell is not None]
    notes = []
    if len({cell.get("images") for cell in there}) > 1:
        notes.append(f"of different numbers of images: {', '.join(str(cell.get('images')) for cell in there)}")
    for key, what in _MUST_AGREE.items():
        values = {json.dumps(cell.get("provenance", {}).get(key), sort_keys=True) for cell in there}
        if len(values) > 1:
            notes.append(f"of different {what}")
    truths = dict.fromkeys(str(cell["ground_truth"]) for cell in there if "ground_truth" in cell)
    if len(truths) > 1:
        notes.append(f"of different ground truth: {'; '.join(truths)}")
    notes += dict.fromkeys(filter(None, map(threshold_warning, there)))
    return tuple(notes)


def threshold_warning(scores: Mapping[str, Any]) -> str | None:
    """Return what is wrong with the threshold of stored scores, None if nothing is."""
    threshold = scores.get("threshold")
    return Threshold.from_dict(threshold).warning if threshold else None


def cell_text(cell: Mapping[str, Any] | None, measure: str) -> str:
    """``0.512 [0.480, 0.540]``, or - where there is none."""
    value = None if cell is None else cell.get(measure)
    if value is None or cell is None:
        return "-"
    interval = cell.get(f"{measure}_interval")
    return f"{value:.4f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")
