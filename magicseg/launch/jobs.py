"""Records of submissions: the jobs, their tasks, and the shards of each task.

RUN/jobs/0003-generate/submission.json   one submission: its tasks, its jobs, its request
RUN/jobs/0003-generate/*_log.out         the tasks' logs, beside submitit's files
RUN/jobs/0001-describe/*_server.log      the logs of the tasks' caption servers, if they start any

These records locate jobs and logs. Only the ledger records finished work.
"""

import contextlib
import datetime
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from magicseg.config.stage_declarations import JOBS
from magicseg.core.documents import read_json
from magicseg.core.errors import DamageError, RunError, StoreError
from magicseg.core.files import storage_errors, to_json, write_atomic
from magicseg.core.setting_errors import first_fault
from magicseg.core.shard_ranges import parse_ranges
from magicseg.core.text import command
from magicseg.launch.profile import JobName, Resources
from magicseg.run.claims import try_claim
from magicseg.run.directory import Run

if TYPE_CHECKING:
    _SubmitName = str
else:
    _SubmitName = Literal[(*JOBS, "all")]

_FILE = "submission.json"
_MOST_SHARDS = 1_000_000  # accepted in one submission, even if the plan has fewer
_SPAN = "[0-9]{1,9}(-[0-9]{1,9})?"
_Ranges = Annotated[str, Field(pattern=f"^({_SPAN}(,{_SPAN})*)?$")]


@dataclass(frozen=True, kw_only=True)
class ArrayJob:
    """One job of a submission, with ``count`` tasks from ``first`` on.

    ``job`` is Slurm's id, None until sbatch has returned it. A job of one task is not a Slurm array: its task has no
    index.
    """

    name: str
    first: int
    count: int
    job: str | None = None

    def label(self, task: int) -> str:
        """Return Slurm's id of the submission's task ``task``: ``123_4``, or ``123``."""
        return str(self.job) if self.count == 1 else f"{self.job}_{task - self.first}"


@dataclass(frozen=True, kw_only=True)
class Submission:
    """The jobs that one ``submit`` queued for one stage.

    ``run``: directory of the run at submission. ``tasks``: ranges of shards, or part numbers of a sharded evaluation.
    Training, follow-up jobs and unsharded evaluations have one task with an empty range. ``parent``: number of the
    follow-up job that submitted this. ``asked``: request that a follow-up job submits again. ``ended``: ranges of
    tasks by Slurm's final state, once all have left the queue.
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
        """Return whether this run is a copy, and the submission belongs to the original directory."""
        return self.run != str(self.folder.parents[1])

    @property
    def names(self) -> list[str]:
        """Return the names of the jobs. Queries use names, because they are known before sbatch answers."""
        return [array.name for array in self.arrays]

    @property
    def jobs(self) -> list[str]:
        """Return the ids of the jobs that sbatch has confirmed."""
        return [array.job for array in self.arrays if array.job is not None]

    def shards_of(self, task: int) -> list[int]:
        """Return the shards of task ``task``."""
        return parse_ranges(self.tasks[task])

    def all_shards(self) -> set[int]:
        """Return the shards of all tasks."""
        return {shard for task in range(len(self.tasks)) for shard in self.shards_of(task)}

    def log_path(self, label: str) -> Path:
        """Return the log of a task, given Slurm's id of the task."""
        return self.folder / f"{label}_0_log.out"

    def server_log_path(self, label: str) -> Path:
        """Return the log of a task's caption server, given Slurm's id of the task."""
        return server_log_path(self.folder, label)

    def asked_resources(self) -> Resources:
        """Return the resources that the jobs requested. Raises DamageError if the record's values are invalid."""
        try:
            return Resources.model_validate(dict(self.resources))
        except ValidationError as error:
            raise _damaged(self.folder, f"resources.{first_fault(error)}") from None

    def again(self) -> Mapping[str, Any]:
        """Return the request that a follow-up job submits again. Raises DamageError if the record is incomplete."""
        missing = sorted(_Asked.model_fields.keys() - self.asked.keys())
        if missing:
            raise _damaged(self.folder, f"`asked` lacks {', '.join(missing)}")
        return self.asked

    def write(self) -> None:
        """Write the record to its file."""
        data = {key: value for key, value in vars(self).items() if key != "folder"}
        data["arrays"] = [vars(array) for array in self.arrays]
        with storage_errors(self.folder, "submit again"):
            write_atomic(self.folder / _FILE, to_json(data))

    def with_job(self, position: int, job: str) -> "Submission":
        """Set the job id of the array at ``position``, write the record, and return it."""
        arrays = list(self.arrays)
        arrays[position] = replace(arrays[position], job=job)
        changed = replace(self, arrays=tuple(arrays))
        changed.write()
        return changed


class _StoredArray(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str = Field(pattern="^[A-Za-z0-9_.-]{1,200}$")
    first: int = Field(ge=0)
    count: int = Field(ge=1)
    job: str | None


class _Asked(BaseModel):
    """Request that a follow-up job submits again; empty in other records."""

    model_config = ConfigDict(extra="forbid")
    stage: _SubmitName = "all"
    profile: str = ""
    shards_per_task: int | None = None
    overrides: list[str] = []
    submissions: list[int] = []
    resubmit: int = 0


class _SubmissionFile(BaseModel):
    """The content of ``submission.json``."""

    model_config = ConfigDict(extra="forbid")
    run: str
    number: int = Field(ge=1)
    stage: JobName
    created: str = Field(pattern="^[0-9]{4}(-[0-9]{2}){2}T[0-9]{2}(:[0-9]{2}){2}$")
    version: str
    tasks: list[_Ranges]
    arrays: list[_StoredArray]
    profile: str
    resources: dict[str, Any]
    parent: int | None = None
    asked: _Asked = _Asked()
    ended: dict[str, _Ranges] = {}


def read_submission(folder: Path, *, most_shards: int) -> Submission:
    """Return the record in ``folder``.

    Args: most_shards: largest number of shards that its tasks may have together.
    Raises FileNotFoundError if the record is missing. Raises DamageError if it is not the record of a submission.
    """
    path = folder / _FILE
    stored = read_json(path, _SubmissionFile, error=DamageError, hint=_way_out(folder))
    tasks = len(stored.tasks)
    _refuse_ranges(folder, stored.tasks, most_shards, "shards")
    _refuse_ranges(folder, stored.ended.values(), tasks, "tasks that ended")
    if any(array.first + array.count > tasks for array in stored.arrays):
        raise _damaged(folder, f"it names tasks beyond its {tasks} tasks")
    return Submission(
        folder=folder,
        run=stored.run,
        number=stored.number,
        stage=stored.stage,
        created=stored.created,
        version=stored.version,
        profile=stored.profile,
        resources=stored.resources,
        parent=stored.parent,
        asked=stored.asked.model_dump(exclude_unset=True),
        ended=stored.ended,
        tasks=tuple(stored.tasks),
        arrays=tuple(
            ArrayJob(
                name=array.name,
                first=array.first,
                count=array.count,
                # Older versions stored a site's banner as the job id. The queue still has the job's name.
                job=array.job if array.job and re.fullmatch("[0-9]{1,18}", array.job) else None,
            )
            for array in stored.arrays
        ),
    )


def _refuse_ranges(folder: Path, texts: Iterable[str], most: int, what: str) -> None:
    """Raise DamageError if ranges such as ``0-3,7`` run backwards or hold more than ``most`` numbers in all.

    The numbers are counted before they are expanded into lists.
    """
    total = 0
    for span in (span for text in texts for span in text.split(",") if span):
        low, _, high = span.partition("-")
        count = int(high or low) - int(low) + 1
        total += count
        if count < 1 or total > most:
            raise _damaged(folder, f"{span!r}: is descending, or has more than {most:,} {what}")


def _damaged(folder: Path, reason: str) -> DamageError:
    return DamageError(f"{folder / _FILE}: is not the record of a submission: {reason}", hint=_way_out(folder))


def _way_out(folder: Path) -> str:
    return f"if its jobs are no longer in the queue: {command('rm', '-r', folder)}"


def jobs_folder(run: Run) -> Path:
    """Return the folder of a run's submissions."""
    return run.path / "jobs"


def now() -> str:
    """Return the current local time in the format of Slurm's commands."""
    return datetime.datetime.now().isoformat(timespec="seconds")


def next_number(run: Run) -> int:
    """Return the number of the next submission."""
    return max(map(_number, _entries(jobs_folder(run))), default=0) + 1


def server_log_path(folder: Path, label: str) -> Path:
    """Return the log of the caption server of task ``label`` in a submission's folder."""
    return folder / f"{label}_server.log"


def make_folder(record: Submission) -> None:
    """Create a submission's folder. Raises StoreError if it exists or cannot be created."""
    with storage_errors(record.folder, "submit again"):
        record.folder.mkdir(parents=True)


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:  # treating it as empty would submit everything twice
        raise StoreError(
            f"{folder}: cannot be listed: {error.strerror or error}",
            hint=f"{command('chmod', '-R', 'u+rwX', folder)}   # or ask its owner",
        ) from error


def _number(folder: Path) -> int:
    """Return a submission's number from its folder's name; 0 for other folders."""
    match = re.fullmatch(r"([0-9]{1,9})-.*", folder.name, re.DOTALL)
    return int(match[1]) if match else 0


def job_name(run: Run, stage: str, number: int, position: int) -> str:
    """Return a unique job name: the stage, a hash of the run's path, the submission's number and the position."""
    token = hashlib.sha256(str(run.path).encode()).hexdigest()[:8]
    return f"{stage}-{token}-{number}-{position}"


def submissions(run: Run) -> list[Submission]:
    """Return a run's submissions, oldest first.

    Raises DamageError if a record cannot be read. Raises StoreError if the folder of submissions cannot be listed.
    """
    found = []
    for folder in sorted(filter(_number, _entries(jobs_folder(run))), key=_number):
        with contextlib.suppress(FileNotFoundError):  # a `submit` that was killed before it wrote anything
            found.append(read_submission(folder, most_shards=max(run.plan.shards, _MOST_SHARDS)))
    return found


@contextlib.contextmanager
def submitting(run: Run) -> Iterator[None]:
    """Lock the run against other submissions. Raises RunError if another submission is in progress."""
    folder = jobs_folder(run)
    with storage_errors(folder, "submit again"):
        folder.mkdir(exist_ok=True)
        claim = try_claim(folder / "submitting.json")
    if claim is None:
        raise RunError(f"{run.path}: another submission is under way", hint="wait for it, then see: magicseg status")
    with claim:
        yield
