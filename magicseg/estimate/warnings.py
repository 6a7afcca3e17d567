"""Warnings of an estimate: measurements on other hardware, insufficient time limits and memory."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from magicseg.config.stage_declarations import COSTLIEST
from magicseg.core.text import size_text
from magicseg.launch.job_script import interpreter, resource_options
from magicseg.launch.profile import Profile
from magicseg.run.directory import Run


def estimate_warnings(
    run: Run, entries: Sequence[Mapping[str, Any]], profile: Profile | None, reference: str | None
) -> list[str]:
    """Return one sentence per warning, each with a suggested command or option.

    Args:
        entries: of stages, as returned by `magicseg.estimate.run_estimate.estimate`.
        reference: the profile's name or path.
    """
    if profile is None:
        return []
    open_ = [entry for entry in entries if entry["left"]["shards"]]
    found = [text for entry in open_ for text in _misfits(entry, profile)]
    elsewhere = [entry for entry in open_ if not entry["measured"]["fitting"]]
    if elsewhere:
        stages = [entry["stage"] for entry in elsewhere]
        devices = ", ".join(sorted({entry["measured"]["device"] for entry in elsewhere}))
        costly = COSTLIEST if COSTLIEST in stages else stages[0]
        wanted = "a GPU" if profile.resources(costly).asks_gpu else "no GPU"
        found.insert(
            0,
            f"{', '.join(stages)}: measured on {devices}, but the profile requests {wanted}: times and memory may "
            f"be wrong; measure there: {pilot_command(run, profile, costly, reference)}",
        )
    return found


def _misfits(entry: Mapping[str, Any], profile: Profile) -> list[str]:
    """Return warnings about a stage whose time limit or memory is too small."""
    stage = entry["stage"]
    setting = f"--set slurm.stages.{stage}"
    found = []
    start = entry["measured"]["start_seconds"] or 0.0
    shard = start + entry["measured"]["shard_seconds"]["max"]
    usable = entry["limit_seconds"] - profile.signal_before(stage)
    if shard > usable:
        found.append(
            f"{stage}: one shard takes {shard / 60:.0f} min, but tasks are stopped after {usable / 60:.0f} min: "
            f"{setting}.time={_minutes(shard * 1.25)}, or a new run with a smaller plan.shard_size"
        )
    elif entry["left"]["longest_task_seconds"] > usable:
        found.append(
            f"{stage}: a task of {entry['left']['shards_per_task']} shards takes longer than its time limit and "
            f"will be requeued: {setting}.time={_minutes(entry['left']['longest_task_seconds'] * 1.25)}, or fewer "
            "--shards-per-task"
        )
    memory = entry["memory"]
    if None not in {memory["asked"], memory["suggested"]} and memory["peak"] * memory["workers"] > memory["asked"]:
        used = f"shards used {size_text(memory['peak'], binary=True)} of memory"
        used += f", times {memory['workers']} workers" if memory["workers"] > 1 else ""
        found.append(
            f"{stage}: {used}, but the profile requests "
            f"{size_text(memory['asked'], binary=True)}: {setting}.memory={memory['suggested']}"
        )
    return found


def pilot_command(run: Run, profile: Profile, stage: str, reference: str | None) -> str:
    """Return the command that runs a pilot on the hardware of a stage's tasks."""
    resources = profile.resources(stage)
    options = {**resource_options(resources, stage), "time": resources.minutes, **resources.extra}
    words = [
        f"--{name}" if value is True else f"--{name}={value}"
        for name, value in options.items()
        if value not in {None, False}
    ]
    program = [*interpreter(profile, stage, run.path), "-P", "-m", "magicseg"] if profile.container else ["magicseg"]
    named = ["--profile", reference] if reference else []
    return shlex.join(["srun", *words, *program, "estimate", str(run.path), "--pilot", "1", *named])


def _minutes(seconds: float) -> int:
    return max(1, round(seconds / 60 + 0.5))
