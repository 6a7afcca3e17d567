"""Write the report of a run as one HTML file, also for unfinished runs."""

import datetime
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from magicseg.config.stage_declarations import STAGES
from magicseg.core.documents import read_json, read_rows
from magicseg.core.errors import DamageError, DataError
from magicseg.core.files import storage_errors, write_atomic
from magicseg.core.text import command, printable, size_text
from magicseg.report.charts import line_chart, short_number
from magicseg.report.results import (
    FALSE_POSITIVES,
    MANY_CLASSES,
    MEASURES,
    ComparedRun,
    ShownScores,
    flat,
    read_results,
)
from magicseg.report.sample_gallery import (
    Commits,
    ShownSample,
    choose_dropped,
    choose_kept,
    furthest_stage,
    show_sample,
)
from magicseg.run.directory import Run
from magicseg.run.progress import run_status
from magicseg.run.versions import library_versions

REPORT_NAME = "report.html"
_SAMPLES = 12
_DIFFERENCES = 4
_CURVES = {
    "loss": "loss (weighted sum)",
    "focal": "focal term",
    "dice": "dice term",
    "counterfactual": "counterfactual term",
    "deep_supervision": "deep supervision, earlier layers",
    "evaluation/miou": "validation mIoU during training",
    "learning_rate": "learning rate",
    "loss_scale": "loss scale (fp16)",
    "samples_per_second": "samples per second",
}


def write_report(run: Run, *, beside: Sequence[Run] = ()) -> Path:
    """Write ``RUN/report.html``, a self-contained page, also for unfinished runs, and return its path.

    Args: beside: other runs, whose scores on the same benchmarks are shown too.
    Raises DamageError if the plan or the ledger cannot be read. Raises StoreError if the page cannot be written.
    """
    page = render_report(run, written=datetime.datetime.now(datetime.UTC), beside=beside)
    path = run.path / REPORT_NAME
    with storage_errors(path, command("magicseg", "report", run.path)):
        # A caption may hold a lone surrogate, which UTF-8 cannot encode: it becomes a question mark.
        write_atomic(path, page.encode("utf-8", "replace"))
    return path


def render_report(run: Run, *, written: datetime.datetime, beside: Sequence[Run] = ()) -> str:
    """Return the page's HTML. It depends only on ``written``, the run's content and the installed versions."""
    commits = {stage: run.ledger(stage).commits() for stage in STAGES}
    status = run_status(run)
    warnings: list[str] = list(status["warnings"])
    others = [ComparedRun(each.path.name, _differences(run, each), each.path / "results") for each in beside]
    scores, faults = read_results(run.path / "results", beside=others)
    warnings += faults
    card, faults = _read_card(run)
    warnings += faults + _other_weights(scores, card)
    samples, dropped, faults = _read_samples(run, commits)
    warnings += faults
    template = _environment().get_template("report.html.j2")
    return template.render(
        name=run.path.name,
        path=str(run.path),
        written=written.isoformat(sep=" ", timespec="minutes").removesuffix("+00:00") + " UTC",
        settings=_key_settings(run),
        config=run.config.to_yaml(),
        status=status,
        stages=STAGES,
        furthest=furthest_stage(commits),
        samples=samples,
        dropped=dropped,
        curves=_curves(run),
        scores=scores,
        measures=MEASURES,
        false_positives=FALSE_POSITIVES,
        many_classes=MANY_CLASSES,
        provenance=_provenance(run, commits, card),
        warnings=list(dict.fromkeys(warnings)),
        data_done=all(len(commits[stage]) == run.plan.shards for stage in STAGES),
    )


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("magicseg", "report"),
        autoescape=True,
        finalize=_escape_controls,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=_percent, score=_score, bytes=size_text, duration=_duration)
    return environment


def _escape_controls(value: object) -> object:
    """Escape control and bidirectional characters in a template's text; markup and other values stay as they are."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return printable(value, len(value), allowed="\n\t")
    return value


def _differences(run: Run, other: Run) -> str:
    """Return the settings in which another run differs, without evaluation's, as text."""
    ours, others = (
        flat(each.config.model_dump(mode="json", exclude={"evaluate", "preset"})) for each in (run, other)
    )
    changed = [name for name in {**ours, **others} if ours.get(name) != others.get(name)]
    shown = [f"{name}: {others.get(name, 'left out')}" for name in changed[:_DIFFERENCES]]
    more = [f"and {len(changed) - len(shown)} more"] if len(changed) > len(shown) else []
    return ", ".join([*shown, *more]) or "the same settings"


def _key_settings(run: Run) -> dict[str, str]:
    config, plan = run.config, run.plan
    codec = config.store.image_codec
    labels = (
        str(config.plan.min_labels)
        if config.plan.min_labels == config.plan.max_labels
        else f"{config.plan.min_labels} to {config.plan.max_labels}"
    )
    return {
        "preset": config.preset or "none",
        "seed": str(config.seed),
        "vocabulary": f"{run.vocabulary.name}, {len(run.vocabulary)} labels",
        "samples": f"{plan.samples:,} in {plan.shards:,} shards of {plan.shard_size}",
        "labels per sample": labels,
        "images": f"{config.generate.size} × {config.generate.size} pixels, "
        + (f"JPEG quality {config.store.jpeg_quality}" if codec == "jpeg" else codec),
        "back ends": ", ".join(getattr(config, stage).backend for stage in STAGES),
        "training": f"{config.train.steps:,} steps of {config.train.batch_size}, "
        f"learning rate {short_number(config.train.learning_rate)}",
    }


def _read_samples(run: Run, commits: Commits) -> tuple[list[ShownSample], list[ShownSample], list[str]]:
    """Return kept samples, dropped samples, and messages about samples that cannot be read."""
    faults: list[str] = []

    def read(index: int, why: tuple[str, str, str] | None = None) -> list[ShownSample]:
        try:
            return [show_sample(run, index, commits, why)]
        except DamageError as error:
            faults.append(f"sample {index} is not shown: {error.message}")
            return []

    kept = [shown for index in choose_kept(run, commits, _SAMPLES) for shown in read(index)]
    dropped: list[ShownSample] = []
    try:
        for stage, index, reason, detail in choose_dropped(run, commits):
            dropped += read(index, (stage, reason, detail))
    except DamageError as error:
        faults.append(f"dropped samples are not shown: {error.message}")
    return kept, dropped, faults


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One curve of the training log; ``last`` is its newest value."""

    title: str
    chart: Markup
    last: str


def _curves(run: Run) -> list[Curve]:
    columns: dict[str, list[tuple[float, float]]] = {}
    try:
        for row in read_rows(run.path / "train.jsonl"):
            try:
                step = float(row["step"])
                for name, value in _numbers(row):
                    columns.setdefault(name, []).append((step, value))
            except (ValueError, KeyError, TypeError, OverflowError):
                continue  # not a row of training
    except (FileNotFoundError, DataError):  # the status already warns about damage
        return []
    columns.pop("step", None)
    titles = _CURVES | {name: name.replace("/", ": ") for name in sorted(columns.keys() - _CURVES.keys())}
    return [
        Curve(
            title=title,
            chart=line_chart(columns[name], label=title),
            last=short_number(columns[name][-1][1]) if math.isfinite(columns[name][-1][1]) else "not finite",
        )
        for name, title in titles.items()
        if name in columns
    ]


def _numbers(row: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield the numbers of a log's row by name. Nested mappings give ``NAME/NAME``, as in TensorBoard."""
    for name, value in row.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            yield f"{prefix}{name}", float(value)


def _read_card(run: Run) -> tuple[dict[str, Any], list[str]]:
    try:
        return read_json(run.path / "model" / "model.json", dict[str, Any], nan=True), []
    except FileNotFoundError:
        return {}, []
    except DataError as error:
        return {}, [error.message]


def _other_weights(scores: Sequence[ShownScores], card: Mapping[str, Any]) -> list[str]:
    """Return a warning for every score of other weights than the current model's."""
    present = str(card.get("weights_digest"))
    return [
        f"the score of {result.benchmark} is of other weights than the current model's: magicseg evaluate"
        for result in scores
        if card and result.provenance.get("weights_digest", present) != present
    ]


def _provenance(run: Run, commits: Commits, card: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return fingerprints, digests, hosts and library versions, as pairs of name and value."""
    rows = [("plan fingerprint", run.plan.fingerprint), ("vocabulary", run.vocabulary.digest())]
    rows += [(f"{stage} fingerprint", run.fingerprints[stage].digest) for stage in STAGES]
    rows.append(("weights digest", str(card.get("weights_digest") or "no trained model yet")))
    hosts = {record.host for stage in STAGES for record in commits[stage].values()}
    if hosts:
        rows.append(
            ("hosts", ", ".join(sorted(hosts)[:8]) + (f" and {len(hosts) - 8} more" if len(hosts) > 8 else ""))
        )
    for stage in STAGES:
        kinds = {tuple(sorted(record.versions.items())) for record in commits[stage].values()}
        rows += [(f"{stage} made with", _versions(dict(kind))) for kind in sorted(kinds)]
    rows.append(("report made with", _versions(library_versions())))
    return rows


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def _score(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} s"
    if seconds < 5400:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"
