"""The job map: what was submitted, and which task had which shards.

RUN/jobs/0003-generate/submission.json   one submission: its tasks, its jobs, how it was asked for
RUN/jobs/0003-generate/*_log.out         the tasks' logs, besides what submitit needs

The map says where to look, never what is done: that the ledger alone says.
"""

import contextlib
import datetime
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from magicseg.errors import DamageError, RunError
from magicseg.run.claims import try_claim
from magicseg.run.directory import Run
from magicseg.run.files import storage_errors, to_json, write_atomic
from magicseg.run.ranges import parse_ranges

_FILE = "submission.json"


@dataclass(frozen=True, kw_only=True)
class ArrayJob:
    """One job of a submission: the tasks from ``first`` on, ``count`` of them. ``job`` is Slurm's number, None until
    sbatch has given it. A job of one task is no array in Slurm's sense: its task has no index.
    """

    name: str
    first: int
    count: int
    job: str | None = None

    def label(self, task: int) -> str:
        """What Slurm calls task ``task`` of the submission: ``123_4``, or ``123``."""
        return str(self.job) if self.count == 1 else f"{self.job}_{task - self.first}"


@dataclass(frozen=True, kw_only=True)
class Submission:
    """What one ``submit`` put into the queue for one stage.

    ``run``: the directory that it was for. ``tasks`` are ranges of shards, or the numbers of an evaluation's shares;
    training and follow-up jobs, and evaluations that are not shared out, have one task without any. ``parent``: the
    follow-up job that submitted it. ``asked``: what a follow-up job has to submit again. ``ended``: once all have
    left the queue, tasks by Slurm's word for how they ended, as ranges.
    """

    folder: Path
    run: str
    number: int
    stage: str
    created: str
    version: str
    tasks: tuple[str, ...]
    arrays: tuple[ArrayJob, ...]
    profile: str
    resources: Mapping[str, Any]
    parent: int | None = None
    asked: Mapping[str, Any] = field(default_factory=dict)
    ended: Mapping[str, str] = field(default_factory=dict)

    @property
    def foreign(self) -> bool:
        """Whether it was submitted for another directory, of which this one is a copy: its jobs are not ours."""
        return self.run != str(self.folder.parents[1])

    @property
    def names(self) -> list[str]:
        """The names of its jobs, by which the queue is asked: they are known before sbatch answers."""
        return [array.name for array in self.arrays]

    @property
    def jobs(self) -> list[str]:
        """The numbers of its jobs, as far as sbatch gave any."""
        return [array.job for array in self.arrays if array.job is not None]

    def shards_of(self, task: int) -> list[int]:
        """The shards that task ``task`` had."""
        return parse_ranges(self.tasks[task])

    def all_shards(self) -> set[int]:
        """The shards of all its tasks."""
        return {shard for task in range(len(self.tasks)) for shard in self.shards_of(task)}

    def log_path(self, label: str) -> Path:
        """The log of a task, by Slurm's name of it."""
        return self.folder / f"{label}_0_log.out"

    def write(self) -> None:
        """Keep the record."""
        data = {key: value for key, value in vars(self).items() if key != "folder"}
        data["arrays"] = [vars(array) for array in self.arrays]
        with storage_errors(self.folder, "submit again"):
            write_atomic(self.folder / _FILE, to_json(data))

    def with_job(self, position: int, job: str) -> "Submission":
        """The record with the number that sbatch gave the array at ``position``, kept."""
        arrays = list(self.arrays)
        arrays[position] = replace(arrays[position], job=job)
        changed = replace(self, arrays=tuple(arrays))
        changed.write()
        return changed


def jobs_folder(run: Run) -> Path:
    """Where a run's jobs are."""
    return run.path / "jobs"


def now() -> str:
    """This moment, local time, as Slurm's commands take it."""
    return datetime.datetime.now().isoformat(timespec="seconds")


def next_number(run: Run) -> int:
    """The number of the next submission."""
    folder = jobs_folder(run)
    return max((_number(path) for path in folder.iterdir()), default=0) + 1 if folder.is_dir() else 1


def make_folder(record: Submission) -> None:
    """A submission's own, empty folder. Raises: StoreError."""
    with storage_errors(record.folder, "submit again"):
        record.folder.mkdir(parents=True)


def _number(folder: Path) -> int:
    """A submission's number, of its folder's name; 0 for other folders."""
    number = folder.name.partition("-")[0]
    return int(number) if number.isascii() and number.isdigit() else 0


def job_name(run: Run, stage: str, number: int, position: int) -> str:
    """A name that no other job has: the stage, a token of the run's path, submission and part."""
    token = hashlib.sha256(str(run.path).encode()).hexdigest()[:8]
    return f"{stage}-{token}-{number}-{position}"


def submissions(run: Run) -> list[Submission]:
    """All submissions of a run, oldest first. Raises: DamageError for a record that cannot be read."""
    folder = jobs_folder(run)
    if not folder.is_dir():
        return []
    found = []
    for path in sorted(folder.glob(f"[0-9]*-*/{_FILE}"), key=lambda path: _number(path.parent)):
        try:
            data = json.loads(path.read_bytes())
            data["tasks"] = tuple(map(str, data["tasks"]))
            data["arrays"] = tuple(ArrayJob(**array) for array in data["arrays"])
            found.append(Submission(folder=path.parent, **data))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DamageError(
                f"{path}: is not the record of a submission: {error}",
                hint=f"if none of its jobs is in the queue: rm -r {path.parent}",
            ) from error
    return found


@contextlib.contextmanager
def submitting(run: Run) -> Iterator[None]:
    """Keep others from submitting the same run meanwhile. Raises: RunError if somebody is at it."""
    folder = jobs_folder(run)
    with storage_errors(folder, "submit again"):
        folder.mkdir(exist_ok=True)
        claim = try_claim(folder / "submitting.json")
    if claim is None:
        raise RunError(f"{run.path}: another submission is under way", hint="wait for it, then look: magicseg status")
    with claim:
        yield
