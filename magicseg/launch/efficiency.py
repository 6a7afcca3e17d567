"""What jobs asked for and what they used, and what to ask for next time.

From the commit records (time and memory of the workers, always there) and, where the site has accounting, from one
``sacct`` call (queueing, elapsed and processor time of whole tasks).
"""

import math
import statistics
from collections.abc import Sequence
from typing import Any

from magicseg.launch.board import seconds_of
from magicseg.launch.grouping import median_seconds
from magicseg.launch.jobs import Submission, submissions
from magicseg.launch.slurm import SlurmError, call, installed
from magicseg.run.directory import Run
from magicseg.run.fingerprint import STAGES
from magicseg.run.ledger import CommitRecord

_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_TARGET_SECONDS = 1800.0
_HEADROOM = 1.25


def efficiency(run: Run, stage: str | None = None) -> list[dict[str, Any]]:
    """One entry per stage that has been submitted: asked, used, and what to ask for next time.

    Times in seconds, memory in bytes; None where nothing is known.
    """
    known = [one for one in submissions(run) if one.stage in STAGES and stage in {None, one.stage}]
    report = []
    used = _accounted(known)
    for name in STAGES:
        own = [one for one in known if one.stage == name]
        records = [record for record in run.ledger(name).commits().values() if record.job]
        if own and records:
            report.append(_of_stage(run, own[-1], records, used))
    return report


def _of_stage(
    run: Run, latest: Submission, records: Sequence[CommitRecord], used: dict[str, tuple[float, float]]
) -> dict[str, Any]:
    seconds = median_seconds(records) or 0.0
    peak = max(record.peak_memory for record in records)
    by_task: dict[str, float] = {}
    for record in records:
        by_task[record.job] = by_task.get(record.job, 0.0) + record.seconds
    # What a task takes besides its shards: the start of Python and the load of the weights.
    overheads = [used[job][0] - work for job, work in by_task.items() if job in used]
    overhead = max(statistics.median(overheads), 0.0) if overheads else None
    cpus = int(latest.resources["cpus"])
    elapsed = sum(used[job][0] for job in by_task if job in used)
    processor = sum(used[job][1] for job in by_task if job in used)
    per_task = min(max(1, round(_TARGET_SECONDS / max(seconds, 1e-3))), run.plan.shards)
    return {
        "stage": latest.stage,
        "shards": len(records),
        "tasks": len(by_task),
        "seconds_per_shard": round(seconds, 3),
        "overhead_seconds_per_task": None if overhead is None else round(overhead, 1),
        "longest_task_seconds": round(max(used[job][0] if job in used else work for job, work in by_task.items()), 3),
        "cpu_share": round(processor / (elapsed * cpus), 3) if elapsed and processor else None,
        "asked": {
            "memory": bytes_of(str(latest.resources["memory"])),
            "time": latest.resources["time"],
            "cpus": cpus,
        },
        "peak_memory": peak,
        "peak_gpu_memory": max(record.peak_gpu_memory for record in records) or None,
        "suggested": {
            "shards_per_task": per_task,
            "memory": memory_to_ask(peak),
            "time_minutes": math.ceil((per_task * seconds * _HEADROOM + (overhead or 30.0)) / 60) + 5,
        },
    }


def _accounted(known: Sequence[Submission]) -> dict[str, tuple[float, float]]:
    """Elapsed and processor seconds of every task that accounting knows, by its label."""
    names = [name for one in known for name in one.names]
    if not names or not installed("sacct"):
        return {}
    since = min(one.created for one in known)
    try:
        format_ = "--format=JobID,Elapsed,TotalCPU"
        text = call(["sacct", "-X", "-n", "-P", "-a", f"--starttime={since}", f"--name={','.join(names)}", format_])
    except SlurmError:
        return {}  # a site without accounting
    found = {}
    for line in text.splitlines():
        if line.count("|") != 2:
            continue  # not of sacct's own
        label, elapsed, processor = line.split("|")
        found[label] = (seconds_of(elapsed), seconds_of(processor.partition(".")[0]))
    return {label: (a, b) for label, (a, b) in found.items() if not math.isnan(a) and not math.isnan(b)}


def memory_to_ask(peak: int) -> str:
    """What to ask for where ``peak`` bytes were used, as profiles have it: with some room, in whole gibibytes."""
    return f"{math.ceil(peak * _HEADROOM / 2**30)}G"


def bytes_of(text: str) -> int:
    """A size as profiles have it, ``16G``; without a letter it is in mebibytes, as Slurm has it."""
    return int(text[:-1]) * _UNITS[text[-1]] if text[-1] in _UNITS else int(text) * 2**20


def efficiency_lines(report: Sequence[dict[str, Any]], run: Run) -> list[str]:
    """The report for people."""
    lines = []
    for entry in report:
        suggested = entry["suggested"]
        overhead = entry["overhead_seconds_per_task"]
        share = entry["cpu_share"]
        gpu = entry["peak_gpu_memory"]
        lines += [
            f"{entry['stage']}: {entry['shards']} shards in {entry['tasks']} tasks, "
            f"{entry['seconds_per_shard']:.2f} s a shard"
            + (f", {overhead:.1f} s more a task" if overhead is not None else ""),
            f"  time: {entry['longest_task_seconds']:.0f} s at most, of {entry['asked']['time']} asked",
            f"  memory: {entry['peak_memory'] / 2**30:.2f} GiB of {entry['asked']['memory'] / 2**30:.2f} asked"
            + (f"; GPU memory: {gpu / 2**30:.2f} GiB" if gpu else "")
            + (f"; CPUs: {share:.0%} of {entry['asked']['cpus']} used" if share is not None else ""),
            f"  next time: magicseg submit {entry['stage']} {run.path} "
            f"--shards-per-task {suggested['shards_per_task']} "
            f"--set slurm.stages.{entry['stage']}.memory={suggested['memory']} "
            f"--set slurm.stages.{entry['stage']}.time={suggested['time_minutes']}",
        ]
    return lines or ["no stage of this run was done by Slurm yet"]
