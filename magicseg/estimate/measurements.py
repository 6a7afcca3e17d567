"""Measurements of finished shards, from commit records, and pilots, which complete a few shards to measure them.

RUN/estimate.json   startup times of the stages' back ends in the last pilot, which commit records do not hold
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
from magicseg.launch.caption_server import server_for
from magicseg.launch.jobs import jobs_folder, server_log_path
from magicseg.launch.profile import SERVER_STAGE, CaptionServer
from magicseg.run.claims import job_label
from magicseg.run.directory import ESTIMATE_NAME, Run
from magicseg.run.ledger import CommitRecord
from magicseg.stages.pool import missing_message, run_stage
from magicseg.stages.worker import ShardEvent


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Measurements of a stage's shards, for an estimate.

    ``sample_seconds``: seconds per sample, one value per shard. ``start_seconds``: startup time of a worker, None if
    no pilot has measured it. ``bytes``, ``files`` and ``kept`` (samples): sums over these shards. ``peak_memory`` and
    ``peak_gpu_memory``: largest use of a worker in bytes. ``device``: the GPU's name, or CPU. ``fitting``: whether
    the shards were measured on the requested hardware.
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
        """Return the median of the seconds per sample."""
        return statistics.median(self.sample_seconds)


def device_of(record: CommitRecord) -> str:
    """Return the device that computed a shard: the GPU's name, or CPU."""
    return record.versions.get("gpu", "CPU")


def local_records(commits: Mapping[int, CommitRecord]) -> list[CommitRecord]:
    """Return the records of shards that were computed in this run, oldest first.

    Imported shards were computed elsewhere, so their times do not apply here.
    """
    local = (record for record in commits.values() if record.imported_from is None)
    return sorted(local, key=lambda record: record.finished)


def _fits(record: CommitRecord, gpu: bool | None) -> bool:
    """Return whether a shard was measured on the requested hardware.

    Args: gpu: if set, accept only shards measured on a GPU (True) or on a CPU (False). Shards of Slurm jobs always
        count, because they had the job's hardware, even if their back end uses no GPU.
    """
    return gpu is None or bool(record.job) or (device_of(record) != "CPU") == gpu


def measured(run: Run, stage: str, commits: Mapping[int, CommitRecord], *, gpu: bool | None) -> Measured | None:
    """Return the measurements for a stage's estimate; None if no shard was computed in this run.

    They are taken from shards on the requested hardware, if there are any, and of these from the last used device.

    Args: gpu: if set, prefer shards measured on a GPU (True) or on a CPU (False).
    """
    local = local_records(commits)
    if not local:
        return None
    chosen = [record for record in local if _fits(record, gpu)]
    fitting = bool(chosen)
    device = device_of((chosen or local)[-1])
    chosen = [record for record in chosen or local if device_of(record) == device]
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
    server: CaptionServer | None = None,
) -> None:
    """Complete at least ``shards`` shards of every stage, with one worker at a time, as regular work of the run.

    The startup time of each worker is written to RUN/estimate.json.

    Args: gpu: returns whether a stage requests a GPU; inside a job, shards from other hardware do not count.
        report: is called with the stage and the event of every shard. server: runs during the describe stage; its log
        is RUN/jobs/pilot_server.log.
    Raises IncompleteError if a shard fails, and StoreError, PlanMismatch or BackendError as stages do.
    """
    above: Collection[int] = range(run.plan.shards)
    for stage in STAGES:
        commits = run.checked_commits(stage)
        todo = pilot_shards(shards, above, commits, gpu=gpu(stage) if job_label() else None)
        if todo:
            began = time.monotonic()
            served = server if stage == SERVER_STAGE else None
            log = server_log_path(jobs_folder(run), "pilot")
            with server_for(run, todo, served, log, stop=stop, report=lambda text: None):
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
    """Return the first missing shards, as many as a pilot of ``wanted`` shards still needs.

    Args: above: shards that the previous stage has committed. gpu: as for `measured`.
    """
    present = sum(_fits(record, gpu) for record in local_records(commits))
    return sorted(set(above) - commits.keys())[: max(wanted - present, 0)]


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
    """Startup time of a stage's back end in the last pilot, in seconds, with device, host and fingerprint."""

    seconds: float
    device: str
    host: str
    fingerprint: str


class _Estimate(BaseModel):
    starts: dict[str, _Start]


def _starts(run: Run) -> dict[str, _Start]:
    path = run.path / ESTIMATE_NAME
    hint = f"{command('rm', path)}   # the next pilot writes it again"
    try:
        return read_json(path, _Estimate, error=StoreError, hint=hint).starts
    except FileNotFoundError:
        return {}
