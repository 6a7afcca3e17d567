"""Pure functions that divide missing shards among array tasks, and tasks among arrays."""

import math
import statistics
from collections.abc import Collection, Sequence

from magicseg.launch.profile import Profile
from magicseg.run.ledger import CommitRecord

TASKS_PER_SLOT = 4  # before anything is measured: enough tasks to balance slow ones


def contiguous_groups(shards: Collection[int], size: int) -> list[list[int]]:
    """Return ascending shards in groups of at most ``size``.

    A gap in the shards does not end a group: tasks keep equal work, and a range with gaps is still read in order.
    """
    ordered = sorted(set(shards))
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def median_seconds(commits: Collection[CommitRecord]) -> float | None:
    """Return the median time of a shard in seconds, without imported shards; None if no shard was computed here."""
    times = [record.seconds for record in commits if record.imported_from is None]
    return statistics.median(times) if times else None


def shards_per_task(
    missing: int,
    profile: Profile,
    stage: str,
    *,
    measured: float | None,
    asked: int | None,
    most_tasks: int,
    workers: int = 1,
) -> int:
    """Return the number of shards per task.

    Args:
        missing: number of missing shards. measured: seconds per shard, or None. asked: the user's choice, or None.
        most_tasks: largest number of tasks that the queue accepts; tasks grow to stay below it.
        workers: of a task. Unless the user chose, each gets the same number of shards.
    """
    least = math.ceil(missing / most_tasks)
    wanted = asked or profile.shards_per_task
    if wanted is None:
        # Use all parallel slots: never fewer tasks than slots.
        slots = profile.parallel * workers * (1 if measured is not None else TASKS_PER_SLOT)
        each = math.ceil(missing / slots)
        if measured is not None:
            minutes = profile.task_minutes or profile.resources(stage).minutes / 2
            each = min(int(minutes * 60 / max(measured, 1e-3)), each)
        wanted = max(each, math.ceil(least / workers), 1) * workers
    return max(wanted, least)


def most_tasks(profile: Profile, max_job_count: int, stages: int) -> int:
    """Return the largest number of tasks of one stage, if ``stages`` stages are submitted together.

    Together they get at most half of the ``max_job_count`` jobs that Slurm's controller holds.
    """
    return min(profile.tasks or max_job_count, max(1, max_job_count // (2 * stages)))


def split_arrays(tasks: Sequence[Sequence[int]], limit: int) -> list[Sequence[Sequence[int]]]:
    """Split tasks into as few arrays of at most ``limit`` tasks as possible, of almost equal length.

    Equal lengths avoid a last array of one task, which Slurm would treat as a plain job.
    """
    if not tasks:
        return []
    count = math.ceil(len(tasks) / limit)
    size, longer = divmod(len(tasks), count)
    arrays, start = [], 0
    for position in range(count):
        stop = start + size + (position < longer)
        arrays.append(tasks[start:stop])
        start = stop
    return arrays


def share_parallelism(parallel: int, arrays: int) -> list[int]:
    """Return each array's limit of concurrent tasks (``--array=...%N``): ``parallel`` in total, at least 1 each."""
    share, more = divmod(parallel, arrays)
    return [max(1, share + (position < more)) for position in range(arrays)]
