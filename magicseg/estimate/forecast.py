"""The arithmetic of an estimate: tasks of shards, some at a time, each with its start. Pure functions."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """``tasks``: how many, of ``shards_per_task`` shards. ``busy_seconds``: of all tasks together. ``wall_seconds``:
    from the first start to the last end. ``longest_seconds``: of one task.
    """

    tasks: int
    shards_per_task: int
    busy_seconds: float
    wall_seconds: float
    longest_seconds: float


def forecast(
    samples: int, *, shard_size: int, shards_per_task: int, parallel: int, sample_seconds: float, start_seconds: float
) -> Forecast:
    """What it takes to do ``samples`` samples in full shards, of which the last may be short.

    Args: parallel: tasks at a time. sample_seconds: of one sample. start_seconds: of a task before its first shard.
    """
    if not samples:
        return Forecast(
            tasks=0, shards_per_task=shards_per_task, busy_seconds=0.0, wall_seconds=0.0, longest_seconds=0.0
        )
    per_task = shards_per_task * shard_size
    tasks = math.ceil(samples / per_task)
    full = start_seconds + min(per_task, samples) * sample_seconds
    last = start_seconds + (samples - (tasks - 1) * per_task) * sample_seconds
    return Forecast(
        tasks=tasks,
        shards_per_task=shards_per_task,
        busy_seconds=tasks * start_seconds + samples * sample_seconds,
        wall_seconds=wall_seconds(tasks, parallel, full=full, last=last),
        longest_seconds=full,
    )


def wall_seconds(tasks: int, parallel: int, *, full: float, last: float) -> float:
    """How long ``tasks`` tasks take, ``parallel`` at a time, each begun when a place is free: all take ``full``
    seconds but the last one, which takes ``last``, no more than that.
    """
    rounds, alone = divmod(tasks - 1, parallel)
    return rounds * full + (full if alone else last)
