"""Estimate hours, wall time, memory, disk and files, for a run's missing shards and for its whole plan.

report = estimate(run, profile)      # plain data, printed by ``magicseg estimate --json``
summary_lines(report)                # lines, printed by ``magicseg submit`` before it queues jobs
"""

import contextlib
import functools
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, Field

from magicseg.config.stage_declarations import COSTLIEST, STAGES
from magicseg.core.documents import parse_json, read_bytes
from magicseg.core.errors import DataError
from magicseg.core.gpus import visible_gpus
from magicseg.core.text import command
from magicseg.estimate.forecast import Forecast, forecast
from magicseg.estimate.measurements import Measured, measured
from magicseg.estimate.warnings import estimate_warnings
from magicseg.launch.efficiency import memory_to_ask
from magicseg.launch.grouping import median_seconds, most_tasks, shards_per_task
from magicseg.launch.profile import SERVER_STAGE, Profile
from magicseg.launch.slurm import SiteLimits
from magicseg.launch.workers import workers_per_task
from magicseg.run.directory import Run
from magicseg.run.ledger import CommitRecord
from magicseg.run.progress import trained
from magicseg.stages.placement import place_workers
from magicseg.stages.pool import default_shards_per_job

_LOG_BYTES = 1 << 30  # largest accepted train.jsonl
FILES_PER_TASK = 3  # the log, and submitit's two pickles, which the next submission removes
COUNTED = (
    "disk: the store's files. Files, largest number at a time: the store's, a commit record per shard"
    " (one file per stage once all shards are done), and per task a log and submitit's two files"
)


def estimate(
    run: Run,
    profile: Profile | None,
    *,
    stages: Sequence[str] = STAGES,
    parallel: int | None = None,
    per_task: int | None = None,
    reference: str | None = None,
) -> dict[str, Any]:
    """Estimate the cost of ``stages`` from their committed shards.

    Args: profile: the site; None for worker processes on this machine. parallel: concurrent tasks or workers; None
        for the default of the profile or of this machine (of each stage: one per GPU, or per CPU).
        per_task: requested shards per task.
        reference: the profile's name or path, for suggested commands.
    Returns: times in seconds, sizes in bytes. ``left`` covers the missing shards, ``whole`` the whole plan. Stages
        without measurements are listed in ``unmeasured`` and are in no sum.
    """
    if profile is not None and parallel is not None:
        profile = profile.model_copy(update={"parallel": parallel})
    at_a_time = _parallel(run, profile, parallel)
    found: list[dict[str, Any]] = []
    unmeasured: list[str] = []
    for stage in STAGES:
        if stage not in stages:
            continue
        commits = run.checked_commits(stage)
        known = measured(run, stage, commits, gpu=profile.resources(stage).asks_gpu if profile else None)
        if known is None:
            unmeasured += [stage] if len(commits) < run.plan.shards else []
            continue
        found.append(_stage(run, stage, commits, known, profile, at_a_time[stage], per_task, len(stages)))
    training = _training(run)
    return {
        "run": str(run.path),
        "samples": run.plan.samples,
        "parallel": at_a_time[COSTLIEST],
        "stages": found,
        "unmeasured": unmeasured,
        "train": training,
        "total": {part: _total(run, part, found, training) for part in ("left", "whole")},
        "counted": COUNTED,
        "warnings": estimate_warnings(run, found, profile, reference),
    }


def _parallel(run: Run, profile: Profile | None, parallel: int | None) -> dict[str, int]:
    """Return the number of concurrent tasks or workers of each stage."""
    if profile is not None or parallel is not None:
        return dict.fromkeys(STAGES, profile.parallel if profile else parallel or 1)
    find = functools.cache(visible_gpus)
    return {stage: place_workers(run.config, stage, find=find).workers for stage in STAGES}


def _stage(
    run: Run,
    stage: str,
    commits: Mapping[int, CommitRecord],
    known: Measured,
    profile: Profile | None,
    parallel: int,
    per_task: int | None,
    stages: int,
) -> dict[str, Any]:
    plan = run.plan
    missing = [shard for shard in range(plan.shards) if shard not in commits]
    resources = profile.resources(stage) if profile else None
    on_gpu = known.device != "CPU"
    devices = 1
    workers = workers_per_task(run.config, stage, resources) if resources else 1
    has_server = stage == SERVER_STAGE and profile is not None and profile.caption_server is not None
    if resources:  # an allocation is charged for all devices that a task holds, used or not
        # A site may allocate GPUs that the profile does not request. Shards measured in jobs reveal this.
        on_gpu = resources.asks_gpu or (on_gpu and known.fitting)
        devices = max(resources.gpus_per_node, 1) if on_gpu else resources.cpus

    def group(shards: int) -> int:
        if profile is None:
            return default_shards_per_job(shards, parallel)
        return shards_per_task(
            shards,
            profile,
            stage,
            measured=median_seconds(commits.values()),
            asked=per_task,
            most_tasks=most_tasks(profile, SiteLimits.usual().max_job_count, stages),
            workers=workers,
        )

    def part(shards: Sequence[int]) -> dict[str, Any]:
        samples = sum(len(plan.shard_range(shard)) for shard in shards)
        expected, low, high = (
            forecast(
                samples,
                shard_size=plan.shard_size,
                shards_per_task=group(len(shards)),
                parallel=parallel,
                sample_seconds=seconds,
                start_seconds=known.start_seconds or 0.0,
                workers=workers,
            )
            for seconds in (known.median, min(known.sample_seconds), max(known.sample_seconds))
        )
        share = samples / known.samples
        return {
            "shards": len(shards),
            "samples": samples,
            "tasks": expected.tasks,
            "shards_per_task": expected.shards_per_task,
            "longest_task_seconds": round(expected.longest_seconds, 3),
            "wall_seconds": round(expected.wall_seconds, 3),
            "device_hours": _hours(expected, devices),
            "device_hours_range": [_hours(low, devices), _hours(high, devices)],
            "kept": round(known.kept * share),
            "bytes": round(known.bytes * share),
            "files": round(known.files / known.shards * len(shards))
            + len(shards)
            + (FILES_PER_TASK * expected.tasks if profile else 0),
        }

    shard_seconds = [seconds * plan.shard_size for seconds in known.sample_seconds]
    return {
        "stage": stage,
        "unit": "GPU" if on_gpu else "CPU",
        "measured": {
            "shards": known.shards,
            "device": known.device,
            "hosts": list(known.hosts),
            "fitting": known.fitting,
            "start_seconds": known.start_seconds,
            "shard_seconds": {
                "median": round(statistics.median(shard_seconds), 4),
                "min": round(min(shard_seconds), 4),
                "max": round(max(shard_seconds), 4),
            },
        },
        "memory": {
            "peak": known.peak_memory,
            "workers": workers,
            "asked": resources.memory_bytes if resources else None,
            # The records lack the memory of a caption server.
            "suggested": None if has_server else memory_to_ask(known.peak_memory * workers),
        },
        "peak_gpu_memory": known.peak_gpu_memory or None,
        "limit_seconds": resources.minutes * 60 if resources else None,
        "left": part(missing),
        "whole": part(range(plan.shards)),
    }


def _hours(expected: Forecast, devices: int) -> float:
    return round(expected.busy_seconds * devices / 3600, 6)


def _total(
    run: Run, part: str, stages: Sequence[Mapping[str, Any]], training: Mapping[str, Any] | None
) -> dict[str, Any]:
    def hours(unit: str) -> float:
        return round(math.fsum(float(entry[part]["device_hours"]) for entry in stages if entry["unit"] == unit), 6)

    return {
        "gpu_hours": hours("GPU"),
        "cpu_hours": hours("CPU"),
        # Stages run in sequence. Waiting times in the queue are unknown.
        "wall_seconds": round(
            sum(entry[part]["wall_seconds"] for entry in stages) + (training[f"{part}_seconds"] if training else 0.0),
            3,
        ),
        "bytes": sum(entry[part]["bytes"] for entry in stages),
        "files": sum(entry[part]["files"] for entry in stages),
    }


class _LogRow(BaseModel):
    """The fields of a row of the training log that an estimate needs."""

    step: int = Field(ge=0, lt=10**12)
    samples_per_second: float = Field(gt=1e-9, lt=1e12)


def _training(run: Run) -> dict[str, Any] | None:
    """Estimate training from the speed in its log, on whatever hardware it ran; None without a log."""
    path = run.path / "train.jsonl"
    rows: list[_LogRow] = []
    try:
        lines = read_bytes(path, limit=_LOG_BYTES, hint=command("rm", path)).splitlines()
    except FileNotFoundError:
        return None
    for line in lines:
        with contextlib.suppress(DataError):  # an incomplete last line
            rows.append(parse_json(line, _LogRow, source=path))
    if not rows:
        return None
    settings, speed = run.config.train, statistics.median(row.samples_per_second for row in rows)
    step = max(row.step for row in rows)
    left = 0 if trained(run) else max(settings.steps - step, 0)
    return {
        "step": step,
        "steps": settings.steps,
        "samples_per_second": speed,
        "left_seconds": round(left * settings.batch_size / speed, 3),
        "whole_seconds": round(settings.steps * settings.batch_size / speed, 3),
    }
