"""Before a submission: claims of dead tasks are taken back, small files that nobody needs are removed."""

from dataclasses import replace
from typing import TYPE_CHECKING

from magicseg.config.stage_declarations import STAGES
from magicseg.core.ranges import format_ranges
from magicseg.launch.planning import State
from magicseg.run.claims import claiming_job

if TYPE_CHECKING:
    from magicseg.launch.queue_state import Task


def take_back_claims(state: State) -> None:
    """Of tasks of ours that the queue knows to have ended, the claims: so that nobody waits for the dead."""
    if not state.board.asked:
        return
    ended = {task.label for task in state.board.tasks if not task.active}
    for stage in STAGES:
        ledger = state.run.ledger(stage)
        for shard in ledger.claimed():
            path = ledger.claim_path(shard)
            job = claiming_job(path)
            if job in ended and shard not in state.commits[stage]:
                ledger.fail(shard, "WorkerDied", f"task {job} ended while it was at it")
                path.unlink(missing_ok=True)


def tidy(state: State) -> None:
    """Of submissions that have left the queue: write down how they ended, so that Slurm is not asked again, and
    remove submitit's pickles, which are most of their small files.
    """
    if not state.board.asked:
        return
    by_submission: dict[int, list[Task]] = {}
    for task in state.board.tasks:
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
