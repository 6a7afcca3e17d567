"""A job: a list of shards done one after another in this process, with one load of the back end.

A local worker process and a task of a Slurm array both run it.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from magicseg.core.errors import (
    BackendError,
    DamageError,
    IncompleteError,
    LimitReached,
    MagicsegError,
    PlanMismatch,
    StoreError,
)
from magicseg.core.files import storage_errors
from magicseg.core.text import command
from magicseg.run.claims import try_claim
from magicseg.run.directory import Run
from magicseg.run.drop_rates import Shares, refuse_one_reason
from magicseg.stages.shard import Stopped, execute_shard, load_backend


@dataclass(frozen=True)
class ShardEvent:
    """An event of a shard.

    ``outcome`` is ``started``, then ``committed``, ``failed`` or ``abandoned``; or ``busy`` if another process holds
    the shard, or ``blocked`` if the stage above has not done it. A pool reports ``died`` or ``out-of-memory`` if the
    worker ended and others do its shards.
    """

    shard: int
    outcome: str
    samples: int = 0
    detail: str = ""


class _Tally:
    """Counts of a stage's kept and dropped samples: those committed before this job, plus this job's."""

    def __init__(self, run: Run, stage: str) -> None:
        self._run, self._stage = run, stage
        commits = run.ledger(stage).commits()
        self._shares, self._left = Shares.of(commits.values()), run.plan.shards - len(commits)

    def check(self, kept: int, dropped: Mapping[str, int], fallbacks: Mapping[str, int]) -> None:
        """Count one more shard. Raises LimitReached."""
        self._shares.add(kept, dropped, fallbacks)
        self._left -= 1
        refuse_one_reason(self._run, self._stage, self._shares, is_all=self._left <= 0)


def never() -> bool:
    """Return False: the work is not to stop."""
    return False


def run_shards(
    run: Run,
    stage: str,
    shards: Iterable[int],
    *,
    report: Callable[[ShardEvent], None],
    should_stop: Callable[[], bool] = never,
    gpu: str | None = None,
) -> None:
    """Do the uncommitted ``shards`` one after another, and report each.

    A failed shard is recorded in the ledger and does not stop the others. The job stops on storage errors, stale
    settings, a broken back end (such as a dead endpoint), and one drop reason for nearly all samples
    (`magicseg.run.drop_rates`).

    Args: gpu: the name of the GPU that this process sees, for the claims; None if it has none of its own.
    Raises StoreError, PlanMismatch, BackendError, LimitReached.
    """
    ledger = run.ledger(stage)
    with storage_errors(run.path, command("magicseg", stage, run.path)):
        ledger.create()
        backend = None
        tally = _Tally(run, stage)
        for shard in shards:
            if should_stop():
                report(ShardEvent(shard, "abandoned"))
                return
            if ledger.committed(shard) is not None:
                continue
            claim = try_claim(ledger.claim_path(shard), gpu=gpu)
            if claim is None:
                report(ShardEvent(shard, "busy"))
                continue
            with claim:
                done = ledger.committed(shard)
                if done is not None:  # by somebody who held the claim a moment ago
                    report(ShardEvent(shard, "committed", done.samples))
                    continue
                backend = backend or load_backend(run, stage)
                report(ShardEvent(shard, "started"))
                try:
                    record = execute_shard(run, stage, shard, backend, should_stop, tally.check)
                except Stopped:
                    report(ShardEvent(shard, "abandoned"))
                    return
                except LimitReached as error:
                    ledger.fail(shard, type(error).__name__, error.message)
                    raise
                except IncompleteError as error:
                    report(ShardEvent(shard, "blocked", detail=error.message))
                except MagicsegError as error:
                    if isinstance(error, StoreError | PlanMismatch | BackendError) and not isinstance(
                        error, DamageError
                    ):
                        raise
                    ledger.fail(shard, type(error).__name__, error.message)
                    report(ShardEvent(shard, "failed", detail=error.message))
                except OSError:
                    raise
                except Exception as error:  # foreign code once more: what it gave could not be stored
                    ledger.fail(shard, type(error).__name__, str(error))
                    report(ShardEvent(shard, "failed", detail=f"{type(error).__name__}: {error}"))
                else:
                    report(ShardEvent(shard, "committed", record.samples))
