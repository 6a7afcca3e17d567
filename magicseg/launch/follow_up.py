"""After jobs: waiting for them, reporting on them, submitting what they left."""

import contextlib
import time
from collections.abc import Callable, Sequence

from magicseg.config.stage_declarations import STAGES
from magicseg.core.errors import IncompleteError, PlanMismatch, RunError
from magicseg.core.ranges import format_ranges
from magicseg.core.text import command
from magicseg.launch.efficiency import efficiency, efficiency_lines
from magicseg.launch.jobs import Submission, submissions
from magicseg.launch.planning import Request
from magicseg.launch.profile import FOLLOW_UP
from magicseg.launch.queue_state import Board, board_of
from magicseg.launch.slurm import SlurmError
from magicseg.launch.submit import Submitted, submit
from magicseg.run.directory import Run
from magicseg.run.progress import evaluated, trained

_POLL_SECONDS = 3.0
_PATIENCE_SECONDS = 240.0  # a follow-up job has ten minutes


def left_undone(run: Run, made: Sequence[Submission]) -> list[str]:
    """One phrase per stage of ``made`` whose work is not all there."""
    phrases = []
    for stage in dict.fromkeys(one.stage for one in made):
        if stage in STAGES:
            wanted = {shard for one in made if one.stage == stage for shard in one.all_shards()}
            missing = wanted - run.ledger(stage).commits().keys()
            if missing:
                phrases.append(f"{len(missing)} shards of {stage}: {format_ranges(missing)}")
        elif (stage == "train" and not trained(run)) or (stage == "evaluate" and not evaluated(run)):
            phrases.append(stage)
    return phrases


def wait_for(run: Run, stage: str, made: Sequence[Submission], show: Callable[[Board], None]) -> None:
    """Stay until ``made``, and what its follow-up jobs submit, has left the queue.

    Args: stage: what was asked for, for the hint.
    Raises: IncompleteError if some of its work is not done then.
    """
    numbers = {one.number for one in made}
    while True:
        board = board_of(run, whole_queue=True)
        show(board)
        # A follow-up job writes down what it submits before it ends.
        heirs = {one.number for one in submissions(run) if one.parent in numbers} - numbers
        numbers |= heirs
        if board.asked and not heirs and not any(task.submission.number in numbers for task in board.active()):
            break
        time.sleep(_POLL_SECONDS)
    undone = left_undone(run, [one for one in made if one.stage != FOLLOW_UP])
    if undone:
        raise IncompleteError(
            f"{run.path}: the jobs have ended, but not done are: {'; '.join(undone)}",
            hint=f"why: {command('magicseg', 'logs', run.path, '--failed')}; again: "
            + command("magicseg", "submit", stage, run.path),
        )


def follow_up(run: Run, number: int) -> tuple[list[str], Submitted | None]:
    """What a follow-up job does: say how its submissions ended, and submit the rest while it may.

    Returns: lines to print, and what was submitted.
    Raises: IncompleteError if work is missing and nothing more will be submitted; RunError for a wrong number.
    """
    own = next((one for one in submissions(run) if one.number == number and one.stage == FOLLOW_UP), None)
    if own is None:
        raise RunError(
            f"{run.path}: submission {number} is not a follow-up job", hint=command("magicseg", "status", run.path)
        )
    asked = own.again()
    made = [one for one in submissions(run) if one.number in set(asked["submissions"])]
    for stage in STAGES:  # thousands of small files become one; here, where nobody waits for it
        ledger = run.ledger(stage)
        with contextlib.suppress(OSError):  # nothing depends on it
            ledger.compact(ledger.commits())
    lines = efficiency_lines(efficiency(run), run)
    undone = left_undone(run, made)
    if not undone:
        return [*lines, "all that was submitted is done"], None
    if not asked["resubmit"]:
        raise IncompleteError(
            "\n".join([*lines, f"{run.path}: not done are: {'; '.join(undone)}"]),
            hint=f"why: {command('magicseg', 'logs', run.path, '--failed')}; again: "
            + command("magicseg", "submit", asked["stage"], run.path),
        )
    request = Request(
        stage=asked["stage"],
        profile=asked["profile"],
        overrides=tuple(asked["overrides"]),
        shards_per_task=asked["shards_per_task"],
        parent=number,
    )
    again = _patiently(lambda: submit(run, request))
    return [*lines, f"not done are: {'; '.join(undone)}; submitted again:", *again.lines], again


def _patiently(submit_again: Callable[[], Submitted]) -> Submitted:
    """Try for a while: somebody else may be submitting, the queue may be silent, the stage before may be just about
    to be submitted by its own follow-up job.
    """
    until = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            return submit_again()
        except PlanMismatch:
            raise
        except (RunError, SlurmError, IncompleteError):
            if time.monotonic() > until:
                raise
            time.sleep(_POLL_SECONDS)
