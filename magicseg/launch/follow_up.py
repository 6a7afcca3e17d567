"""After jobs: waiting for them, reporting on them, submitting what they left."""

import time
from collections.abc import Callable, Sequence

from magicseg.errors import IncompleteError, RunError
from magicseg.launch.board import Board, board_of
from magicseg.launch.efficiency import efficiency, efficiency_lines
from magicseg.launch.jobs import Submission, submissions
from magicseg.launch.planning import Request
from magicseg.launch.profile import FOLLOW_UP
from magicseg.launch.submit import Submitted, submit
from magicseg.run.directory import Run
from magicseg.run.fingerprint import STAGES
from magicseg.run.ranges import format_ranges
from magicseg.run.status import evaluated, trained

_POLL_SECONDS = 3.0


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


def wait_for(run: Run, made: Sequence[Submission], show: Callable[[Board], None]) -> None:
    """Stay until ``made``, and what its follow-up jobs submit, has left the queue.

    Raises: IncompleteError if some of its work is not done then.
    """
    numbers = {one.number for one in made}
    while True:
        board = board_of(run)
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
            hint=f"why: magicseg logs {run.path} --failed; again: magicseg submit {made[0].stage} {run.path}",
        )


def follow_up(run: Run, number: int) -> tuple[list[str], Submitted | None]:
    """What a follow-up job does: say how its submissions ended, and submit the rest while it may.

    Returns: lines to print, and what was submitted.
    Raises: IncompleteError if work is missing and nothing more will be submitted; RunError for a wrong number.
    """
    own = next((one for one in submissions(run) if one.number == number and one.stage == FOLLOW_UP), None)
    if own is None:
        raise RunError(f"{run.path}: submission {number} is no follow-up job", hint=f"magicseg status {run.path}")
    asked = own.asked
    made = [one for one in submissions(run) if one.number in set(asked["submissions"])]
    for stage in STAGES:  # thousands of small files become one; here, where nobody waits for it
        ledger = run.ledger(stage)
        ledger.compact(ledger.commits())
    lines = efficiency_lines(efficiency(run), run)
    undone = left_undone(run, made)
    if not undone:
        return [*lines, "all that was submitted is done"], None
    if not asked["resubmit"]:
        raise IncompleteError(
            "\n".join([*lines, f"{run.path}: not done are: {'; '.join(undone)}"]),
            hint=f"why: magicseg logs {run.path} --failed; again: magicseg submit {asked['stage']} {run.path}",
        )
    again = submit(
        run,
        Request(
            stage=asked["stage"],
            profile=asked["profile"],
            overrides=tuple(asked["overrides"]),
            shards_per_task=asked["shards_per_task"],
            parent=number,
        ),
    )
    return [*lines, f"not done are: {'; '.join(undone)}; submitted again:", *again.lines], again
