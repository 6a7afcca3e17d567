"""The progress of a run, from one listing of its ledgers."""

import datetime
import math
from collections.abc import Collection, Mapping
from typing import Annotated, Any

from pydantic import AllowInfNan, Field
from typing_extensions import TypedDict

from magicseg.config.stage_declarations import STAGES
from magicseg.core.documents import read_json, read_rows
from magicseg.core.errors import DataError
from magicseg.core.text import command
from magicseg.run.claims import claimant, is_live
from magicseg.run.directory import Run
from magicseg.run.drop_rates import WARNING_SHARE, Shares
from magicseg.run.ledger import CommitRecord, Ledger

_RATE_SECONDS = 900.0  # the rate is measured over the last quarter of an hour


class _Weights(TypedDict):
    weights_digest: str


class _Provenance(TypedDict, total=False):
    near_duplicates: Annotated[int, Field(ge=0)] | None


class _ModelCard(TypedDict):
    provenance: _Provenance


class _Evaluated(TypedDict):
    benchmark: str
    provenance: dict[str, Any]


class _Score(TypedDict):
    miou: Annotated[float, AllowInfNan(False)] | None


def all_commits(run: Run) -> dict[str, dict[int, CommitRecord]]:
    """List the ledgers once: commits by stage and shard."""
    return {stage: run.ledger(stage).commits() for stage in STAGES}


def run_status(run: Run, all_stages: Mapping[str, Mapping[int, CommitRecord]] | None = None) -> dict[str, Any]:
    """Return the state of every stage as plain data, as ``magicseg status --json`` prints it.

    ``shards.running`` counts live claims. ``shards.failed`` counts shards whose last attempt failed and that no
    process works on.
    ``samples.dropped`` counts the samples that this stage dropped, by reason, without the drops of earlier stages.
    ``samples.fallbacks`` counts kept samples that come from a fallback, by reason.
    ``warnings`` names shares above a third.
    ``train.near_duplicates`` is the number of samples that the finished training left out; None before that, and for
    models of older versions.
    ``rate`` is in samples per second of working time in the last quarter of an hour. ``eta_seconds`` is the time
    left at that rate. Both are None if nothing was committed recently.
    ``workers`` has the live claims: the shard that a process works on, its host, and its GPU (None if it has none of
    its own).

    Args: all_stages: the commits, if the caller has listed them.
    """
    all_stages = all_stages or all_commits(run)
    stages: dict[str, Any] = {}
    warnings: list[str] = []
    workers: list[dict[str, Any]] = []
    for stage in STAGES:
        ledger = run.ledger(stage)
        commits = all_stages[stage]
        open_claims = [shard for shard in ledger.claimed() if shard not in commits]
        running = {shard for shard in open_claims if is_live(ledger.claim_path(shard))}
        workers += _workers(stage, ledger, running)
        failures = {shard: why for shard, why in ledger.failures().items() if shard not in commits}
        failed = failures.keys() - running
        shares = Shares.of(commits.values())
        rate = _rate(commits.values())
        left = run.plan.samples - sum(record.samples for record in commits.values())
        reasons: dict[str, int] = {}
        for shard in failed:
            reason = failures[shard].partition(":")[0]
            reasons[reason] = reasons.get(reason, 0) + 1
        stages[stage] = {
            "shards": {
                "total": run.plan.shards,
                "committed": len(commits),
                "failed": len(failed),
                "running": len(running),
                "pending": run.plan.shards - len(commits) - len(failed) - len(running),
            },
            "samples": {
                "kept": sum(record.kept_count for record in commits.values()),
                "dropped": dict(sorted(shares.dropped.items())),
                "fallbacks": dict(sorted(shares.fallbacks.items())),
            },
            "seconds": round(sum(record.seconds for record in commits.values()), 3),
            "bytes": sum(size for record in commits.values() for _, size in record.files.values()),
            "rate": rate,
            "eta_seconds": round(left / rate, 1) if rate and left else None,
            "failure_reasons": dict(sorted(reasons.items())),
            "failures": {str(shard): failures[shard] for shard in sorted(failed)[:20]},
        }
        warnings += [f"{stage}: {told}" for told in shares.above(WARNING_SHARE)]
        stale = sum(record.fingerprint != run.fingerprints[stage].digest for record in commits.values())
        if stale:
            warnings.append(
                f"{stage}: {stale} shards were made with other settings: "
                + command("magicseg", "reset", stage, run.path)
            )
        kinds = {tuple(sorted(record.versions.items())) for record in commits.values()}
        if len(kinds) > 1:
            items = [set(kind) for kind in kinds]
            differing = sorted({name for name, _ in items[0].union(*items) - items[0].intersection(*items)})
            warnings.append(
                f"{stage}: made with {len(kinds)} different sets of library versions or machines: "
                f"{', '.join(differing)} differ"
            )
    return {
        "run": str(run.path),
        "samples": run.plan.samples,
        "stages": stages,
        "workers": workers,
        "train": _train_status(run, warnings),
        "results": _results(run, warnings),
        "warnings": warnings,
    }


def _workers(stage: str, ledger: Ledger, running: Collection[int]) -> list[dict[str, Any]]:
    """Return who works on the ``running`` shards. A claim that ended meanwhile is left out."""
    found = ((shard, claimant(ledger.claim_path(shard))) for shard in sorted(running))
    return [
        {"stage": stage, "gpu": owner.gpu, "host": owner.host, "shard": shard}
        for shard, owner in found
        if owner is not None
    ]


def _rate(records: Collection[CommitRecord]) -> float | None:
    """Return samples per second over the time in which at least one shard was in progress, without pauses."""
    now = datetime.datetime.now(datetime.UTC)
    samples, seconds, spans = 0, 0.0, []
    for record in records:
        age = (now - datetime.datetime.fromisoformat(record.finished)).total_seconds()
        if record.imported_from is None and age < _RATE_SECONDS:
            samples += record.samples
            seconds += record.seconds
            spans.append((-age - record.seconds, 1.0 - age))  # records have the end in whole seconds
    busy, until = 0.0, -math.inf
    for start, end in sorted(spans):
        busy += max(end - max(start, until), 0.0)
        until = max(until, end)
    busy = min(busy, seconds)  # of a single worker, the sum is exact
    return round(samples / busy, 3) if busy > 0 else None


def trained(run: Run) -> bool:
    """Return whether the run has a finished model. Does not import torch."""
    return (run.path / "model" / "model.json").is_file()


def evaluated(run: Run) -> bool:
    """Return whether the current model and the baselines have scores on all configured benchmarks.

    Does not import torch.
    """
    wanted = run.config.evaluate.model_dump(mode="json")
    found: set[str] = set()
    for path in (run.path / "results").glob("*.json"):
        try:
            card = read_json(run.path / "model" / "model.json", _Weights, nan=True)
            results = read_json(path, _Evaluated, nan=True)
        except (FileNotFoundError, DataError):
            continue
        facts = results["provenance"]
        is_same = facts.get("weights_digest") == card["weights_digest"]
        used = facts.get("evaluate", {})
        if is_same and isinstance(used, dict) and all(wanted.get(key) == value for key, value in used.items()):
            found.add(results["benchmark"])
    # The benchmark's name inside a protocol file is not read; its results count as one more.
    named = {name for name in wanted["benchmarks"] if not name.endswith((".yaml", ".yml"))}
    return named <= found and len(found) >= len(set(wanted["benchmarks"]))


def _train_status(run: Run, warnings: list[str]) -> dict[str, Any]:
    step = 0
    try:
        for row in read_rows(run.path / "train.jsonl"):
            done = row.get("step")
            step = max(step, done if isinstance(done, int) else 0)
    except FileNotFoundError:
        pass
    except DataError as error:
        warnings.append(error.message)
    near = None
    try:
        near = read_json(run.path / "model" / "model.json", _ModelCard, nan=True)["provenance"].get("near_duplicates")
    except FileNotFoundError:
        pass
    except DataError as error:
        warnings.append(error.message)
    return {"step": step, "steps": run.config.train.steps, "done": trained(run), "near_duplicates": near}


def _results(run: Run, warnings: list[str]) -> dict[str, float]:
    found: dict[str, float] = {}
    for path in sorted((run.path / "results").glob("*.json")):
        try:
            score = read_json(path, _Score, nan=True)["miou"]
        except FileNotFoundError:
            continue
        except DataError as error:
            warnings.append(error.message)
            continue
        if score is not None:
            found[path.stem] = score
    return found
