"""From missing shards to array tasks: which shards a task gets, and how many arrays it takes. Pure functions."""

import math
import statistics
from collections.abc import Collection, Sequence

from magicseg.launch.profile import Profile
from magicseg.run.ledger import CommitRecord

TASKS_PER_SLOT = 4  # where nothing is measured yet: enough tasks to even out slow ones


def contiguous_groups(shards: Collection[int], size: int) -> list[list[int]]:
    """Ascending shards in groups of at most ``size``. A gap of shards that are not asked for does not end a group:
    tasks are equal in work, and a range with a hole is still read in order.
    """
    ordered = sorted(set(shards))
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def median_seconds(commits: Collection[CommitRecord]) -> float | None:
    """Median time of a shard, in seconds, of those that were really made here; None if there are none."""
    times = [record.seconds for record in commits if record.imported_from is None]
    return statistics.median(times) if times else None


def shards_per_task(
    missing: int, profile: Profile, stage: str, *, measured: float | None, asked: int | None, most_tasks: int
) -> int:
    """How many shards a task gets.

    Args:
        missing: shards to do. measured: seconds of one, if known. asked: what the user wants, if anything.
        most_tasks: what the queue takes; tasks grow to fit.
    """
    least = math.ceil(missing / most_tasks)
    wanted = asked or profile.shards_per_task
    if wanted is None and measured is not None:
        minutes = profile.task_minutes or profile.resources(stage).minutes / 2
        # Never so many that places stay empty.
        wanted = min(int(minutes * 60 / max(measured, 1e-3)), math.ceil(missing / profile.parallel))
    if wanted is None:
        wanted = math.ceil(missing / (profile.parallel * TASKS_PER_SLOT))
    return max(wanted, least, 1)


def most_tasks(profile: Profile, max_job_count: int, stages: int) -> int:
    """How many tasks a stage may have, of ``stages`` that are submitted together: never more than half of what the
    controller holds in all (``max_job_count``), for all of them.
    """
    return min(profile.tasks or max_job_count, max(1, max_job_count // (2 * stages)))


def split_arrays(tasks: Sequence[Sequence[int]], limit: int) -> list[Sequence[Sequence[int]]]:
    """Tasks in arrays of at most ``limit``, as equal in length as can be.

    A last array of one task would be a job of another kind than the rest, which equal parts avoid.
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
    """The ``%`` of each array: together ``parallel``, but at least 1 each."""
    share, more = divmod(parallel, arrays)
    return [max(1, share + (position < more)) for position in range(arrays)]
