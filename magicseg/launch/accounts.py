"""What Slurm's accounting knows of tasks that have run: one ``sacct`` call for all of them, steps included."""

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
class Account:
    """What one task used: of a task that went back into the queue, in its last turn.

    ``elapsed`` and ``processor``: seconds, of the clock and of all CPUs. ``cpus``: how many it had. ``peak_memory``:
    bytes, the most on one node, and ``gpu_share``: mean use of its GPUs, 0 to 1; None where the site does not say.
    """

    elapsed: float
    processor: float
    cpus: int
    completed: bool
    peak_memory: int | None = None
    gpu_share: float | None = None


def accounts(known: Sequence[Submission]) -> dict[str, Account] | None:
    """The accounts of every task of ``known`` by Slurm's name of it, ``123_4``; None for a site that keeps none."""
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
    return parse_accounts(text)


def parse_accounts(text: str) -> dict[str, Account]:
    """sacct's lines as accounts: a job's own line has its time, those of its steps memory and GPUs. What is not
    understood is left out.
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
        job: Account(
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
    """``[D-][H:]M:S[.milliseconds]``; NaN for anything else."""
    whole, _, part = text.partition(".")
    return seconds_of(whole) + (float(f"0.{part}") if part.isdigit() else 0.0)


def _size(text: str) -> list[int]:
    """A size with its unit, ``2063340K``, in bytes; none where sacct has none."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)", text)
    return [round(float(match[1]) * _UNITS[match[2]])] if match else []
