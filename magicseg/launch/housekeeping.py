"""Clean up before a submission: release claims of dead tasks, remove small files that are no longer needed."""

from dataclasses import replace
from typing import TYPE_CHECKING

from magicseg.config.stage_declarations import STAGES
from magicseg.core.shard_ranges import format_ranges
from magicseg.launch.planning import State
from magicseg.run.claims import claiming_job

if TYPE_CHECKING:
    from magicseg.launch.queue_state import Task


def release_dead_claims(state: State) -> None:
    """Release the claims of this run's ended tasks, so that no task waits for them."""
    if not state.queue.asked:
        return
    ended = {task.label for task in state.queue.tasks if not task.active}
    for stage in STAGES:
        ledger = state.run.ledger(stage)
        for shard in ledger.claimed():
            path = ledger.claim_path(shard)
            job = claiming_job(path)
            if job in ended and shard not in state.commits[stage]:
                ledger.fail(shard, "WorkerDied", f"task {job} ended while it was working on this shard")
                path.unlink(missing_ok=True)


def record_endings(state: State) -> None:
    """Record how ended submissions ended, so that Slurm is not queried again, and remove submitit's files of them."""
    if not state.queue.asked:
        return
    by_submission: dict[int, list[Task]] = {}
    for task in state.queue.tasks:
        by_submission.setdefault(task.submission.number, []).append(task)
    for tasks in by_submission.values():
        one = tasks[0].submission
        if one.ended or any(task.active for task in tasks):
            continue
        endings = {task.ending for task in tasks}
        ended = {ending: format_ranges(task.number for task in tasks if task.ending == ending) for ending in endings}
        replace(one, ended=ended).write()
        for path in (*one.folder.glob("*.pkl"), *one.folder.glob(".submission_file_*.sh")):
            path.unlink(missing_ok=True)
