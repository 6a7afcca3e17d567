"""Wait for jobs, report on them, and submit missing work again."""

import contextlib
import time
from collections.abc import Callable, Sequence

from magicseg.config.stage_declarations import STAGES
from magicseg.core.errors import IncompleteError, PlanMismatch, RunError
from magicseg.core.shard_ranges import format_ranges
from magicseg.core.text import command
from magicseg.launch.efficiency import efficiency, efficiency_lines
from magicseg.launch.jobs import Submission, submissions
from magicseg.launch.planning import Request
from magicseg.launch.profile import FOLLOW_UP
from magicseg.launch.queue_state import QueueState, read_queue_state
from magicseg.launch.slurm import SlurmError
from magicseg.launch.submit import Submitted, submit
from magicseg.run.directory import Run
from magicseg.run.progress import evaluated, trained

_POLL_SECONDS = 3.0
_PATIENCE_SECONDS = 240.0  # a follow-up job has ten minutes


def missing_work(run: Run, made: Sequence[Submission]) -> list[str]:
    """Return the missing work of submissions, as one phrase per stage."""
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


def wait_for(run: Run, stage: str, made: Sequence[Submission], show: Callable[[QueueState], None]) -> None:
    """Wait until the jobs of ``made``, and the jobs that their follow-up jobs submit, have left the queue.

    Args: stage: the requested stage, for the hint.
    Raises IncompleteError if work is missing at the end.
    """
    numbers = {one.number for one in made}
    while True:
        queue = read_queue_state(run, whole_queue=True)
        show(queue)
        # A follow-up job records its submissions before it ends.
        children = {one.number for one in submissions(run) if one.parent in numbers} - numbers
        numbers |= children
        if queue.asked and not children and not any(task.submission.number in numbers for task in queue.active()):
            break
        time.sleep(_POLL_SECONDS)
    undone = missing_work(run, [one for one in made if one.stage != FOLLOW_UP])
    if undone:
        raise IncompleteError(
            f"{run.path}: all jobs ended; still missing: {'; '.join(undone)}",
            hint=f"why: {command('magicseg', 'logs', run.path, '--failed')}; again: "
            + command("magicseg", "submit", stage, run.path),
        )


def follow_up(run: Run, number: int) -> tuple[list[str], Submitted | None]:
    """Run a follow-up job: report how its submissions ended, and submit missing work if resubmissions are left.

    Returns: lines to print, and the new submission, if any.
    Raises IncompleteError if work is missing and no resubmissions are left. Raises RunError if submission ``number``
    is not a follow-up job.
    """
    record = next((one for one in submissions(run) if one.number == number and one.stage == FOLLOW_UP), None)
    if record is None:
        raise RunError(
            f"{run.path}: submission {number} is not a follow-up job", hint=command("magicseg", "status", run.path)
        )
    asked = record.again()
    made = [one for one in submissions(run) if one.number in set(asked["submissions"])]
    for stage in STAGES:  # merges thousands of small files into one, in the background
        ledger = run.ledger(stage)
        with contextlib.suppress(OSError):  # compacting is optional
            ledger.compact(ledger.commits())
    lines = efficiency_lines(efficiency(run), run)
    undone = missing_work(run, made)
    if not undone:
        return [*lines, "all that was submitted is done"], None
    if not asked["resubmit"]:
        raise IncompleteError(
            "\n".join([*lines, f"{run.path}: still missing: {'; '.join(undone)}"]),
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
    return [*lines, f"missing: {'; '.join(undone)}; submitted again:", *again.lines], again


def _patiently(submit_again: Callable[[], Submitted]) -> Submitted:
    """Retry a submission for some minutes.

    Another process may be submitting, the queue may not answer, or another follow-up job may be about to submit the
    previous stage.
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
