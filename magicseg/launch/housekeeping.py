"""Before a submission: claims of dead tasks are taken back, small files that nobody needs are removed."""

from magicseg.launch.jobs import submissions
from magicseg.launch.planning import State
from magicseg.run.claims import claiming_job, is_live
from magicseg.run.fingerprint import STAGES


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
                if is_live(path):
                    ledger.fail(shard, "WorkerDied", f"task {job} ended while it was at it")
                path.unlink(missing_ok=True)


def tidy(state: State) -> None:
    """Remove submitit's pickles of submissions that have ended: most of a run's small files."""
    if not state.board.asked:
        return
    active = {task.submission.number for task in state.board.tasks if task.active}
    for one in submissions(state.run):
        if one.number not in active:
            for path in (*one.folder.glob("*.pkl"), *one.folder.glob(".submission_file_*.sh")):
                path.unlink(missing_ok=True)
