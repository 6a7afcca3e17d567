"""Pure functions that forecast the duration of tasks from seconds per sample, startup time and parallelism."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """The forecast of a stage.

    ``tasks``: number of tasks with ``shards_per_task`` shards each. ``busy_seconds``: sum over all tasks.
    ``wall_seconds``: from the first start to the last end. ``longest_seconds``: duration of the longest task.
    """

    tasks: int
    shards_per_task: int
    busy_seconds: float
    wall_seconds: float
    longest_seconds: float


def forecast(
    samples: int,
    *,
    shard_size: int,
    shards_per_task: int,
    parallel: int,
    sample_seconds: float,
    start_seconds: float,
    workers: int = 1,
) -> Forecast:
    """Forecast the processing of ``samples`` samples in full shards; the last shard may be short.

    Args: parallel: concurrent tasks. sample_seconds: seconds per sample. start_seconds: a task's startup time.
        workers: of a task, which divide its shards evenly.
    """
    if not samples:
        return Forecast(
            tasks=0, shards_per_task=shards_per_task, busy_seconds=0.0, wall_seconds=0.0, longest_seconds=0.0
        )
    per_task = shards_per_task * shard_size
    tasks = math.ceil(samples / per_task)

    def duration(of_task: int) -> float:
        """Return the seconds of a task's busiest worker."""
        shards = math.ceil(math.ceil(of_task / shard_size) / workers)
        return start_seconds + min(shards * shard_size, of_task) * sample_seconds

    full = duration(min(per_task, samples))
    last = duration(samples - (tasks - 1) * per_task)
    return Forecast(
        tasks=tasks,
        shards_per_task=shards_per_task,
        busy_seconds=(tasks - 1) * full + last,
        wall_seconds=wall_seconds(tasks, parallel, full=full, last=last),
        longest_seconds=full,
    )


def wall_seconds(tasks: int, parallel: int, *, full: float, last: float) -> float:
    """Return the seconds for ``tasks`` tasks, at most ``parallel`` at a time, each started when a slot is free.

    Args: full: seconds of each task except the last. last: seconds of the last task, at most ``full``.
    """
    rounds, alone = divmod(tasks - 1, parallel)
    return rounds * full + (full if alone else last)
