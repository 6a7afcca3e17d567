"""What shards have really cost: from commit records, and from pilots, which are real shards done for the purpose.

RUN/estimate.json   what no commit record holds: how long the stages' back ends took to start in the last pilot
"""

import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from pydantic import BaseModel

from magicseg.config.stage_declarations import STAGES
from magicseg.core.documents import read_json
from magicseg.core.errors import StoreError
from magicseg.core.files import storage_errors, to_json, write_atomic
from magicseg.core.signals import StopFlag
from magicseg.core.text import command
from magicseg.run.claims import job_label
from magicseg.run.directory import ESTIMATE_NAME, Run
from magicseg.run.ledger import CommitRecord
from magicseg.stages.pool import missing_message, run_stage
from magicseg.stages.worker import ShardEvent


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What the shards of a stage have cost, as far as an estimate may rest on them.

    ``sample_seconds``: seconds by sample, one value per shard. ``start_seconds``: of a worker before its first shard,
    None if no pilot has measured it. ``bytes``, ``files`` and ``kept`` (samples) are of all these shards together.
    ``peak_memory`` and ``peak_gpu_memory``: bytes, the most that a worker had. ``device``: the GPU's name, or CPU.
    ``fitting``: whether they were made on what was asked for.
    """

    shards: int
    samples: int
    sample_seconds: tuple[float, ...]
    start_seconds: float | None
    bytes: int
    files: int
    kept: int
    peak_memory: int
    peak_gpu_memory: int
    device: str
    hosts: tuple[str, ...]
    fitting: bool

    @property
    def median(self) -> float:
        """Median seconds by sample."""
        return statistics.median(self.sample_seconds)


def device_of(record: CommitRecord) -> str:
    """What a shard was computed on: the GPU's name, or CPU."""
    return record.versions.get("gpu", "CPU")


def own_records(commits: Mapping[int, CommitRecord]) -> list[CommitRecord]:
    """Those that were not imported: somebody else's say nothing about the time it takes here. Oldest first."""
    own = (record for record in commits.values() if record.imported_from is None)
    return sorted(own, key=lambda record: record.finished)


def _fits(record: CommitRecord, gpu: bool | None) -> bool:
    """Whether a shard was made on the hardware that is asked for. ``gpu``: whether that is one; None: no matter.

    In a job it was made on what the job had, whether or not the back end has a use for a GPU.
    """
    return gpu is None or bool(record.job) or (device_of(record) != "CPU") == gpu


def measured(run: Run, stage: str, commits: Mapping[int, CommitRecord], *, gpu: bool | None) -> Measured | None:
    """What a stage's estimate rests on; None if none of its shards was done.

    Shards from the hardware that is asked for, if there are any; and of these, those on the device used last.
    """
    own = own_records(commits)
    if not own:
        return None
    chosen = [record for record in own if _fits(record, gpu)]
    fitting = bool(chosen)
    device = device_of((chosen or own)[-1])
    chosen = [record for record in chosen or own if device_of(record) == device]
    start = _starts(run).get(stage)
    known = start and start.fingerprint == run.fingerprints[stage].digest and start.device == device
    return Measured(
        shards=len(chosen),
        samples=sum(record.samples for record in chosen),
        sample_seconds=tuple(record.seconds / record.samples for record in chosen),
        start_seconds=start.seconds if start and known else None,
        bytes=sum(size for record in chosen for _, size in record.files.values()),
        files=sum(len(record.files) for record in chosen),
        kept=sum(record.kept_count for record in chosen),
        peak_memory=max(record.peak_memory for record in chosen),
        peak_gpu_memory=max(record.peak_gpu_memory for record in chosen),
        device=device,
        hosts=tuple(sorted({record.host for record in chosen})),
        fitting=fitting,
    )


def pilot(
    run: Run,
    shards: int,
    *,
    gpu: Callable[[str], bool | None],
    report: Callable[[str, ShardEvent], None],
    stop: StopFlag,
) -> None:
    """Have at least ``shards`` shards of every stage done, as real work: one worker after the other does what is
    missing of that. How long a worker takes before its first shard is kept in RUN/estimate.json.

    Args: gpu: whether a GPU is asked for, by stage; inside a job, shards from other hardware do not count.
        report: is told what becomes of a shard, with its stage.
    Raises: IncompleteError if a shard fails; StoreError, PlanMismatch, BackendError.
    """
    above: Collection[int] = range(run.plan.shards)
    for stage in STAGES:
        commits = run.checked_commits(stage)
        todo = pilot_shards(shards, above, commits, gpu=gpu(stage) if job_label() else None)
        if todo:
            began = time.monotonic()
            outcome = run_stage(
                run,
                stage,
                shards=todo,
                workers=1,
                shards_per_job=len(todo),
                report=lambda event, stage=stage: report(stage, event),  # type: ignore[misc]
                stop=stop,
            )
            took = time.monotonic() - began
            if outcome.missing:
                raise missing_message(run, stage, outcome)
            commits = run.ledger(stage).commits()
            _keep_start(run, stage, [commits[shard] for shard in todo], took)
        above = commits.keys()


def pilot_shards(
    wanted: int, above: Collection[int], commits: Mapping[int, CommitRecord], *, gpu: bool | None
) -> list[int]:
    """The first shards that a pilot of ``wanted`` has to do.

    Args: above: shards that the stage before has done. gpu: as for `measured`.
    """
    there = sum(_fits(record, gpu) for record in own_records(commits))
    return sorted(set(above) - commits.keys())[: max(wanted - there, 0)]


def _keep_start(run: Run, stage: str, records: Sequence[CommitRecord], took: float) -> None:
    start = _Start(
        seconds=round(max(took - sum(record.seconds for record in records), 0.0), 3),
        device=device_of(records[-1]),
        host=records[-1].host,
        fingerprint=run.fingerprints[stage].digest,
    )
    with storage_errors(run.path, command("magicseg", "estimate", run.path, "--pilot", 1)):
        write_atomic(run.path / ESTIMATE_NAME, to_json(_Estimate(starts={**_starts(run), stage: start}).model_dump()))


class _Start(BaseModel):
    """How long a stage's back end took to start in the last pilot: seconds, where, and with which settings."""

    seconds: float
    device: str
    host: str
    fingerprint: str


class _Estimate(BaseModel):
    starts: dict[str, _Start]


def _starts(run: Run) -> dict[str, _Start]:
    path = run.path / ESTIMATE_NAME
    hint = f"{command('rm', path)}   # the next pilot writes it anew"
    try:
        return read_json(path, _Estimate, error=StoreError, hint=hint).starts
    except FileNotFoundError:
        return {}
