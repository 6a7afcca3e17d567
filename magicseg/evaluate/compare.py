"""``magicseg compare``: results side by side, with intervals and with notes on what makes them incomparable.

rows = compare([Path("runs/a"), Path("runs/b")])
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired

from pydantic import ConfigDict
from typing_extensions import TypedDict

from magicseg.core.documents import read_json
from magicseg.core.errors import DataError
from magicseg.core.text import command
from magicseg.evaluate.threshold import Threshold

if TYPE_CHECKING:
    from magicseg.evaluate.metrics.intervals import ImageCounts


@dataclass(frozen=True, kw_only=True)
class ComparedResults:
    """The results of one head on one benchmark, one per compared path.

    ``cells``: the results by path, or None. ``notes``: why the scores are not comparable, or not reliable.
    ``differences``: by path, the ``value`` and paired ``interval`` of the difference to the first path. None if a
    path has no counts by image, or they are of other images or classes.
    """

    benchmark: str
    head: str
    cells: tuple[Mapping[str, Any] | None, ...]
    notes: tuple[str, ...] = field(default=())
    differences: tuple[Mapping[str, Any] | None, ...] = field(default=())


def compare(paths: Sequence[Path], measure: str = "miou") -> list[ComparedResults]:
    """Compare all benchmarks and heads that are in any of ``paths``: runs, models' folders, or results files.

    Args: measure: the score to subtract, one of `magicseg.evaluate.metrics.intervals.measures` with a single value.
    Raises: DataError if a path holds no results, or a file is damaged.
    """
    found = [_results_in(path) for path in paths]
    rows = []
    for benchmark, head in dict.fromkeys(key for results in found for key in results):
        there = [results.get((benchmark, head)) for results in found]
        cells = tuple(None if each is None else each.scores for each in there)
        differences = tuple(_difference(there[0], each, measure) for each in there[1:])
        rows.append(
            ComparedResults(
                benchmark=benchmark, head=head, cells=cells, notes=_notes(cells), differences=(None, *differences)
            )
        )
    return rows


@dataclass(frozen=True)
class _Found:
    """Stored scores of a head, and the folder of its parts, if it exists."""

    scores: Mapping[str, Any]
    parts: Path
    classes: tuple[str, ...]


def _difference(first: _Found | None, second: _Found | None, measure: str) -> dict[str, Any] | None:
    if first is None or second is None or first.classes != second.classes:
        return None
    from magicseg.evaluate.metrics.intervals import difference_interval

    low, high = (each.scores.get(measure) for each in (first, second))
    one, other = _by_image(first), _by_image(second)
    if low is None or high is None or one is None or other is None or one[0] != other[0]:
        return None
    interval = difference_interval(one[1], other[1], measure)
    return {"value": high - low, "interval": None if interval is None else list(interval)}


def _by_image(found: _Found) -> "tuple[tuple[tuple[str, str], ...], ImageCounts] | None":
    """Return each image's name and content digest, and the counts by image; None if parts are missing."""
    from magicseg.evaluate.committed_parts import join, read_part

    identity = found.scores.get("provenance", {}).get("identity")
    if not isinstance(identity, str):
        return None
    parts = [
        part
        for path in sorted(found.parts.glob("part-*.npz"))
        if (part := read_part(path, identity=identity, names=None, classes=len(found.classes))) is not None
    ]
    images = tuple(pair for part in parts for pair in zip(part.names, part.content, strict=True))
    if not parts or len(images) != found.scores.get("images"):
        return None
    return images, join(parts)[1]


def _results_in(path: Path) -> dict[tuple[str, str], _Found]:
    """Return results by benchmark and head, the trained model's first."""
    if path.is_file():
        files = [path]
    else:
        files = sorted((path / "results").glob("*.json")) or sorted(path.glob("*.json"))
        files = [file for file in files if file.name != "model.json"]
    found: dict[tuple[str, str], _Found] = {}
    for file in files:
        content = _read(file)
        name = f"{content['benchmark']}{'' if content.get('complete') is not False else ' (part)'}"
        if content.get("limited"):  # there may be results of several limits
            name = f"{content['benchmark']} ({content.get('images')} images)"
        for head, scores in {str(content.get("head", "model")): content, **content.get("baselines", {})}.items():
            folder = file.parent / str(content["benchmark"]) / head
            if file.name == "results.json":
                folder = file.parent
            elif content.get("limited"):
                folder /= f"limit-{content.get('images')}"
            found[name, head] = _Found(scores, folder, tuple(map(str, content.get("classes", ()))))
    if not found:
        raise DataError(f"{path}: holds no results", hint=command("magicseg", "evaluate", path))
    return found


class _Threshold(TypedDict):
    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    value: float
    origin: str


class _Scores(TypedDict):
    """The displayed scores of a head; other keys are kept unchanged."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    miou: float | None
    miou_interval: NotRequired[tuple[float, float] | None]
    threshold: NotRequired[_Threshold | None]


class _Results(_Scores):
    """The displayed results of a benchmark."""

    benchmark: str
    provenance: dict[str, Any]
    classes: NotRequired[list[str]]
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
        notes.append(f"ground truth differs: {'; '.join(truths)}")
    notes += dict.fromkeys(filter(None, map(threshold_warning, there)))
    return tuple(notes)


def threshold_warning(scores: Mapping[str, Any]) -> str | None:
    """Return a warning about the threshold of stored scores, or None."""
    threshold = scores.get("threshold")
    return Threshold.from_dict(threshold).warning if threshold else None


def cell_text(cell: Mapping[str, Any] | None, measure: str) -> str:
    """Format a score, such as ``0.512 [0.480, 0.540]``; ``-`` without a score."""
    value = None if cell is None else cell.get(measure)
    if value is None or cell is None:
        return "-"
    key = f"{measure}_interval"
    if key not in cell:  # of an earlier version
        return f"{value:.4f}"
    return f"{value:.4f} {_interval_text(cell[key], '.3f')}"


def false_positives_text(scores: Mapping[str, Any]) -> tuple[str, ...]:
    """Return lines about a head's false positives on counterfactual images; none if it was not scored on any."""
    found = scores.get("false_positives")
    if not found:
        return ()
    shares = {name: cell_text(found, name) for name in ("pixels", "own_pixels", "own_images", "found")}
    return (
        f"false positives on {found['images']} counterfactual images: {shares['pixels']} of the pixels",
        f"removed classes: {shares['own_pixels']} of the pixels, in {shares['own_images']} of the images; "
        f"with the objects, found in {shares['found']}",
    )


def difference_text(difference: Mapping[str, Any] | None) -> str:
    """Format a difference, such as ``+0.012 [+0.003, +0.020]``; empty without one."""
    if difference is None:
        return ""
    return f"{difference['value']:+.4f} {_interval_text(difference['interval'], '+.3f')}"


def _interval_text(interval: Sequence[float] | None, digits: str) -> str:
    return "(no interval)" if interval is None else f"[{interval[0]:{digits}}, {interval[1]:{digits}}]"
