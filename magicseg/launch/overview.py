"""The data of ``magicseg status``: a run's ledgers and its jobs, from at most two calls to Slurm."""

from typing import Any

from magicseg.config.stage_declarations import STAGES
from magicseg.core.shard_ranges import format_ranges
from magicseg.launch.queue_state import Task, job_summaries, read_queue_state
from magicseg.run.directory import Run
from magicseg.run.progress import all_commits, run_status

_SHOWN = 20


def cluster_status(run: Run) -> dict[str, Any]:
    """Return `run_status` with ``jobs`` (one entry per Slurm job, newest last) and ``tasks`` (the first running).

    Works without a queue, without accounting and away from the cluster. Failed queries become warnings.
    """
    commits = all_commits(run)
    state = run_status(run, commits)
    queue = read_queue_state(run, commits)
    running = [task for task in queue.tasks if task.kind == "running"]
    state["jobs"] = job_summaries(queue)
    state["tasks"] = [_described(task, commits) for task in running[:_SHOWN]]
    state["waiting_for"] = _reasons(queue.tasks)
    state["warnings"] += queue.warnings
    return state


def _described(task: Task, commits: dict[str, Any]) -> dict[str, Any]:
    stage = task.submission.stage
    shards = task.submission.shards_of(task.number)
    seen = task.state
    return {
        "id": task.label,
        "stage": stage,
        "nodes": seen.nodes if seen else "",
        "elapsed": seen.elapsed if seen else "",
        "left": seen.left if seen else "",
        "shards": format_ranges(shards),
        "committed": sum(shard in commits[stage] for shard in shards) if stage in STAGES else 0,
    }


def _reasons(tasks: list[Task]) -> dict[str, int]:
    """Return the number of pending tasks by Slurm's reason for waiting."""
    found: dict[str, int] = {}
    for task in tasks:
        if task.kind == "pending" and task.state is not None:
            reason = task.state.reason or "Priority"
            found[reason] = found.get(reason, 0) + 1
    return dict(sorted(found.items()))
