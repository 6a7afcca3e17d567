"""Compare the resources that jobs requested with the resources that they used, and suggest new requests.

For array stages, time and memory come from the commit records, which always exist. For training and evaluation, they
come from Slurm's accounting. Accounting also gives the times of whole tasks, and CPU and GPU utilisation.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from magicseg.config.stage_declarations import JOBS, STAGES
from magicseg.core.text import command, size_text
from magicseg.launch.grouping import median_seconds
from magicseg.launch.jobs import Submission, server_log_path, submissions
from magicseg.launch.task_usage import TaskUsage, task_usage
from magicseg.launch.workers import workers_per_task
from magicseg.run.directory import Run
from magicseg.run.ledger import CommitRecord
from magicseg.run.progress import evaluated, trained

_TARGET_SECONDS = 1800.0
_HEADROOM = 1.25


def efficiency(run: Run, stage: str | None = None) -> list[dict[str, Any]]:
    """Return one entry per stage that ran under Slurm: requested, used and suggested resources.

    Times are in seconds, memory is in bytes. Unknown values are None. For array stages, memory is the peak of one of
    a task's ``workers``; for tasks with a caption server it is that of the whole task, from Slurm's accounting.
    """
    known = [one for one in submissions(run) if one.stage in JOBS and stage in {None, one.stage}]
    report = []
    used = task_usage(known)
    for name in JOBS:
        of_stage = [one for one in known if one.stage == name]
        if not of_stage:
            continue
        if name not in STAGES:
            report += _of_job(run, of_stage[-1], used)
        elif records := [record for record in run.ledger(name).commits().values() if record.job]:
            report.append(_of_stage(run, of_stage[-1], records, used or {}))
    return report


def _of_stage(
    run: Run, latest: Submission, records: Sequence[CommitRecord], used: Mapping[str, TaskUsage]
) -> dict[str, Any]:
    seconds = median_seconds(records) or 0.0
    peak: int | None = max(record.peak_memory for record in records)
    workers = workers_per_task(run.config, latest.stage, latest.asked_resources())
    by_task: dict[str, float] = {}
    for record in records:
        by_task[record.job] = by_task.get(record.job, 0.0) + record.seconds / workers
    known = [used[job] for job in by_task if job in used]
    if any(latest.folder.glob(server_log_path(latest.folder, "*").name)):  # the records lack the server's memory
        peak = max((usage.peak_memory for usage in known if usage.peak_memory), default=None)
    # A task's time besides its shards: starting Python and loading weights.
    overheads = [used[job].elapsed - work for job, work in by_task.items() if job in used]
    overhead = max(statistics.median(overheads), 0.0) if overheads else None
    each = max(1, round(_TARGET_SECONDS / max(seconds, 1e-3)))
    per_task = min(each * workers, run.plan.shards)
    longest = max(used[job].elapsed if job in used else work for job, work in by_task.items())
    return {
        "stage": latest.stage,
        "shards": len(records),
        "tasks": len(by_task),
        "workers": workers,
        "seconds_per_shard": round(seconds, 3),
        "overhead_seconds_per_task": None if overhead is None else round(overhead, 1),
        "longest_task_seconds": round(longest, 3),
        **_shares(known),
        "asked": _asked(latest),
        "peak_memory": peak,
        "peak_gpu_memory": max(record.peak_gpu_memory for record in records) or None,
        "suggested": {
            "shards_per_task": per_task,
            "memory": memory_to_ask(peak * workers) if peak else None,
            "time_minutes": _minutes_to_ask(math.ceil(per_task / workers) * seconds, overhead or 30.0),
        },
    }


def _of_job(run: Run, latest: Submission, used: Mapping[str, TaskUsage] | None) -> list[dict[str, Any]]:
    """Return the entry of training or evaluation from Slurm's accounting, in a list; empty before the job has run."""
    found = [used[job] for job in latest.jobs if job in used and used[job].elapsed] if used else []
    if not found and (used is not None or not (trained if latest.stage == "train" else evaluated)(run)):
        return []
    usage = found[0] if found else None
    peak = usage.peak_memory if usage else None
    return [
        {
            "stage": latest.stage,
            "tasks": 1,
            "longest_task_seconds": usage.elapsed if usage else None,
            **_shares(found),
            "asked": _asked(latest) | {"nodes": latest.asked_resources().nodes},
            "peak_memory": peak,
            "suggested": {
                "memory": memory_to_ask(peak) if peak else None,
                # An interrupted job's full duration is unknown.
                "time_minutes": _minutes_to_ask(usage.elapsed, 0.0) if usage and usage.completed else None,
            },
        }
    ]


def _shares(known: Sequence[TaskUsage]) -> dict[str, float | None]:
    """Return the CPU and GPU utilisation of the tasks' allocations, 0 to 1; None if unknown."""
    had = sum(usage.elapsed * usage.cpus for usage in known)
    processor = sum(usage.processor for usage in known)
    gpus = [usage.gpu_share for usage in known if usage.gpu_share is not None]
    return {
        "cpu_share": round(processor / had, 3) if had and processor else None,
        "gpu_share": round(statistics.mean(gpus), 3) if gpus else None,
    }


def _asked(latest: Submission) -> dict[str, Any]:
    asked = latest.asked_resources()
    return {"memory": asked.memory_bytes, "time": asked.time, "cpus": asked.cpus}


def _minutes_to_ask(seconds: float, start: float) -> int:
    return math.ceil((seconds * _HEADROOM + start) / 60) + 5


def memory_to_ask(peak: int) -> str:
    """Return the memory to request after a peak of ``peak`` bytes: 25 % more, in whole gibibytes, such as ``16G``."""
    return f"{math.ceil(peak * _HEADROOM / 2**30)}G"


def efficiency_lines(report: Sequence[dict[str, Any]], run: Run) -> list[str]:
    """Return the report as lines of text."""
    lines = []
    for entry in report:
        lines += _stage_lines(entry, run) if entry["stage"] in STAGES else _job_lines(entry, run)
    return lines or ["Slurm has done no work for this run yet"]


def _stage_lines(entry: dict[str, Any], run: Run) -> list[str]:
    overhead = entry["overhead_seconds_per_task"]
    workers = f" of {entry['workers']} workers" if entry["workers"] > 1 else ""
    tasks = f"{entry['shards']} shards in {entry['tasks']} tasks{workers}"
    shards = f"{tasks}, {entry['seconds_per_shard']:.2f} s per shard"
    return [
        f"{entry['stage']}: {shards}" + (f", {overhead:.1f} s overhead per task" if overhead is not None else ""),
        *_used_lines(entry),
        _next_line(entry, run, f" --shards-per-task {entry['suggested']['shards_per_task']}"),
    ]


def _job_lines(entry: dict[str, Any], run: Run) -> list[str]:
    nodes = entry["asked"]["nodes"]
    title = f"{entry['stage']}: {nodes} node{'s' if nodes > 1 else ''}"
    if entry["longest_task_seconds"] is None:
        return [f"{title}; usage is unknown: this site has no accounting (sacct)"]
    return [title, *_used_lines(entry), _next_line(entry, run, "")]


def _used_lines(entry: dict[str, Any]) -> list[str]:
    asked, peak = entry["asked"], entry["peak_memory"]
    shares = [
        *([f"CPUs: {entry['cpu_share']:.0%} of {asked['cpus']} used"] if entry["cpu_share"] is not None else []),
        *([f"GPUs: {entry['gpu_share']:.0%} used"] if entry["gpu_share"] is not None else []),
    ]
    memory = f"{size_text(peak, binary=True)}" if peak else "unknown"
    if peak and entry.get("workers", 1) > 1:
        memory = f"{entry['workers']} workers with at most {memory} each,"
    gpu = entry.get("peak_gpu_memory")
    of_asked = f" of {size_text(asked['memory'], binary=True)} requested" if asked["memory"] else ""
    held = [f"memory: {memory}{of_asked}"]
    held += [f"GPU memory: {size_text(gpu, binary=True)}"] if gpu else []
    return [
        f"  time: {entry['longest_task_seconds']:.0f} s at most, of {asked['time']} requested",
        f"  {'; '.join([*held, *shares])}",
    ]


def _next_line(entry: dict[str, Any], run: Run, options: str) -> str:
    stage, suggested = entry["stage"], entry["suggested"]
    values = {"memory": suggested["memory"], "time": suggested["time_minutes"]}
    settings = [f" --set slurm.stages.{stage}.{key}={value}" for key, value in values.items() if value is not None]
    return f"  next time: {command('magicseg', 'submit', stage, run.path)}{options}{''.join(settings)}"
