"""Resource usage of finished tasks from Slurm's accounting: one ``sacct`` call for all tasks and their steps."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from magicseg.launch.jobs import Submission
from magicseg.launch.queue_state import seconds_of
from magicseg.launch.slurm import SlurmError, call, installed

_FIELDS = "JobID,State,Elapsed,TotalCPU,AllocCPUS,MaxRSS,TRESUsageInAve"
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True, kw_only=True)
class TaskUsage:
    """Resource usage of one task. A requeued task has the usage of its last start.

    ``elapsed``: wall time in seconds. ``processor``: CPU time in seconds, summed over all CPUs. ``cpus``: number of
    allocated CPUs. ``peak_memory``: largest memory on one node in bytes. ``gpu_share``: mean GPU utilisation, 0 to 1.
    The last two are None if the site does not record them.
    """

    elapsed: float
    processor: float
    cpus: int
    completed: bool
    peak_memory: int | None = None
    gpu_share: float | None = None


def task_usage(known: Sequence[Submission]) -> dict[str, TaskUsage] | None:
    """Return the usage of every task of ``known`` by Slurm's id, ``123_4``; None if the site has no accounting."""
    names = [name for one in known for name in one.names]
    if not names:
        return {}
    if not installed("sacct"):
        return None
    since = min(one.created for one in known)
    try:
        text = call(
            ["sacct", "-n", "-P", "-a", f"--starttime={since}", f"--name={','.join(names)}", f"--format={_FIELDS}"]
        )
    except SlurmError:
        return None
    return parse_usage(text)


def parse_usage(text: str) -> dict[str, TaskUsage]:
    """Parse sacct's lines. A job's line has its times; the lines of its steps have memory and GPU utilisation.

    Lines that cannot be parsed are skipped.
    """
    jobs: dict[str, tuple[str, float, float, int]] = {}
    memory: dict[str, list[int]] = {}
    gpus: dict[str, list[float]] = {}
    for line in text.splitlines():
        fields = line.split("|")
        if len(fields) != len(_FIELDS.split(",")):
            continue
        label, state, elapsed, processor, cpus, peak, usage = fields
        job, _, step = label.partition(".")
        if step:
            memory.setdefault(job, []).extend(_size(peak))
            gpus.setdefault(job, []).extend(float(share) / 100 for share in re.findall(r"gres/gpuutil=(\d+)", usage))
            continue
        times = seconds_of(elapsed), _processor_seconds(processor)
        if not any(map(math.isnan, times)) and cpus.isdigit():
            jobs[job] = (state.partition(" ")[0], *times, int(cpus))
    return {
        job: TaskUsage(
            elapsed=elapsed,
            processor=processor,
            cpus=cpus,
            completed=state == "COMPLETED",
            peak_memory=max(memory.get(job, []), default=None),
            gpu_share=max(gpus.get(job, []), default=None),
        )
        for job, (state, elapsed, processor, cpus) in jobs.items()
    }


def _processor_seconds(text: str) -> float:
    """Return the seconds of ``[D-][H:]M:S[.milliseconds]``; NaN for any other text."""
    whole, _, part = text.partition(".")
    return seconds_of(whole) + (float(f"0.{part}") if part.isdigit() else 0.0)


def _size(text: str) -> list[int]:
    """Return a size such as ``2063340K`` in bytes, as a list of one; an empty list if sacct gives no size."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)", text)
    return [round(float(match[1]) * _UNITS[match[2]])] if match else []
