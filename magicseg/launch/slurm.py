"""Call Slurm's commands and parse their output. Each function makes one call, never one call per task.

Sites wrap Slurm's commands in scripts that print a banner. Only lines of the expected form are parsed: a job id alone
on its line, or a table row that has `_MARK` or the name of a queried job.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from magicseg.core.errors import MagicsegError, RunError
from magicseg.core.shard_ranges import parse_ranges
from magicseg.core.text import printable

_TIMEOUT_SECONDS = 120
# Variables of a job or of a user's shell that would change the behaviour of Slurm's commands.
_LEAKING = re.compile(r"(SLURM|SLURMD|SBATCH|SRUN|SALLOC|SQUEUE|SINFO|SACCT|SCANCEL|SUBMITIT)_")
_KEPT = {"SLURM_CONF", "SLURM_CONF_SERVER"}  # these locate the cluster
_MARK = "magicseg"  # the first column of what squeue prints
_PENDING = "PENDING CONFIGURING REQUEUED REQUEUE_FED REQUEUE_HOLD RESV_DEL_HOLD SPECIAL_EXIT"
_RUNNING = "RUNNING COMPLETING RESIZING SIGNALING STAGE_OUT STOPPED SUSPENDED"
# Slurm's states by kind. All other states mean failed.
_KINDS = {
    **dict.fromkeys(_PENDING.split(), "pending"),
    **dict.fromkeys(_RUNNING.split(), "running"),
    "COMPLETED": "completed",
    "CANCELLED": "cancelled",
}


class SlurmError(MagicsegError):
    """Slurm is not installed, does not answer, or refuses a command. The message quotes Slurm."""

    @classmethod
    def refused(cls, command: str, words: str) -> "SlurmError":
        """Return an error with the message of ``command``, and with a remedy if one is known.

        Lines that do not begin with ``command`` are taken for a banner and left out, unless all lines are such.
        """
        messages = [line for line in words.splitlines() if line.startswith(f"{command}: ")]
        words = printable("\n".join(messages) or words, allowed="\n").removeprefix(f"{command}: error: ")
        kind = SlurmSilence if _SILENT.search(words) else cls
        return kind(f"{command}: {words}", hint=_remedy(words))


class SlurmSilence(SlurmError):
    """Slurm did not answer, so it is unknown whether it executed the command."""


_SILENT = re.compile(
    r"timed out|unable to contact|connection refused|communication connection failure", re.IGNORECASE
)


@dataclass(frozen=True, kw_only=True)
class TaskState:
    """Slurm's state of a job, or of one task of an array.

    ``job``: id of the job or array. ``index``: the task's index, None for a job that is not an array. ``reason``: why
    the task waits. ``exit_code``: CODE:SIGNAL, empty for 0:0. ``elapsed`` and ``left``: as Slurm prints them.
    """

    job: str
    index: int | None
    state: str
    name: str
    reason: str = ""
    exit_code: str = ""
    nodes: str = ""
    elapsed: str = ""
    left: str = ""

    @property
    def active(self) -> bool:
        """Return whether the task is pending or running."""
        return kind_of(self.state) in {"pending", "running"}


def kind_of(state: str) -> str:
    """Map a state of Slurm to pending, running, completed, failed or cancelled."""
    return _KINDS.get(state, "failed")


def slurm_environment() -> dict[str, str]:
    """Return this process's environment for a Slurm command, without the variables of a surrounding job."""
    kept = {name: value for name, value in os.environ.items() if name in _KEPT or not _LEAKING.match(name)}
    return kept | {"SLURM_BITSTR_LEN": "0"}  # so that squeue does not truncate lists of tasks


def installed(command: str = "sbatch") -> bool:
    """Return whether a command of Slurm is on the PATH."""
    return shutil.which(command) is not None


def call(command: Sequence[str]) -> str:
    """Run a command of Slurm and return its output. Raises SlurmError with its message if it fails."""
    if not installed(command[0]):
        raise SlurmError(
            f"{command[0]} is not on the PATH: this is not a machine of a Slurm cluster",
            hint="log in to the cluster, or run on this machine: magicseg run RUN",
        )
    try:
        done = subprocess.run(
            command,
            env=slurm_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise SlurmSilence(
            f"{command[0]} did not answer within {_TIMEOUT_SECONDS} s", hint="try again later"
        ) from None
    if done.returncode:
        words = done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}"
        raise SlurmError.refused(command[0], words)
    return done.stdout


def _remedy(words: str) -> str:
    lowered = words.lower()
    for part, remedy in {
        "job violates": "a limit of the site: fewer or larger tasks: --shards-per-task N, --set slurm.tasks=N",
        "invalid account": "name an account of yours, and a partition that it may use: --set slurm.account=NAME "
        "(sacctmgr show associations user=$USER)",
        "partition": "name a partition of yours: --set slurm.partition=NAME (sinfo -s lists them)",
        "account": "name an account of yours: --set slurm.account=NAME (sacctmgr show associations user=$USER)",
        "qos": "name a quality of service of yours: --set slurm.qos=NAME",
        "node configuration is not available": "ask for what a node has: --set slurm.cpus=..., slurm.memory=..., "
        "slurm.gpus=... (sinfo -N -o '%N %c %m %G')",
        "time limit": "ask for less: --set slurm.time=... (sinfo -o '%P %l')",
        "unable to contact": "the controller does not answer: try again later",
    }.items():
        if part in lowered:
            return remedy
    return "this message is Slurm's; magicseg submit ... --dry-run prints the script"


@dataclass(frozen=True, kw_only=True)
class SiteLimits:
    """Limits of the site's configuration: ``max_array_size`` tasks per array, ``max_job_count`` jobs in the queue."""

    max_array_size: int
    max_job_count: int

    @classmethod
    def usual(cls) -> "SiteLimits":
        """Return Slurm's defaults."""
        return cls(max_array_size=1001, max_job_count=10_000)

    @classmethod
    def ask(cls) -> "SiteLimits":
        """Read the limits from ``scontrol show config``."""
        text = call(["scontrol", "show", "config"])

        def number(key: str, default: int) -> int:
            match = re.search(rf"^{key}\s*=\s*(\d+)", text, re.MULTILINE)
            return int(match[1]) if match else default

        return cls(max_array_size=number("MaxArraySize", 1001), max_job_count=number("MaxJobCount", 10_000))


def submit_script(script: Path, name: str) -> str:
    """Submit a script and return the job id.

    Args: name: the job's name, to query the queue if ``sbatch`` prints no id or several ids.
    Raises SlurmError if ``sbatch`` refuses the job. Raises SlurmSilence if it is unknown whether the job is queued.
    """
    printed = call(["sbatch", "--parsable", str(script)])
    numbers = job_numbers_in(printed)
    if len(numbers) != 1:
        numbers = {state.job for state in queue([name]) if state.active}
    if len(numbers) != 1:
        shown = printable(printed.strip(), 200) or "nothing"
        raise SlurmSilence(
            f"sbatch printed no job id, and the queue has {len(numbers) or 'no'} jobs named {name}; "
            f"it printed: {shown}",
            hint=f"squeue --me --name={name}   # was the job queued? Submitting again submits only what is missing",
        )
    return numbers.pop()


def job_numbers_in(printed: str) -> set[str]:
    """Return the job ids in the output of ``sbatch --parsable``: lines of exactly ``NUMBER`` or ``NUMBER;CLUSTER``.

    A wrapper script may drop the option. Then the lines are ``Submitted batch job NUMBER``.
    """
    lines = [line.strip() for line in printed.splitlines()]
    for pattern in (r"([1-9]\d*)(?:;[\w.-]+)?", r"Submitted batch job ([1-9]\d*)(?: on cluster [\w.-]+)?"):
        found = {match[1] for line in lines if (match := re.fullmatch(pattern, line, re.ASCII))}
        if found:
            return found
    return set()


def cancel(jobs: Sequence[str]) -> None:
    """Cancel jobs and whole arrays. Jobs that have already ended are ignored."""
    if jobs:
        call(["scancel", "--quiet", *jobs])


def queue(names: Sequence[str]) -> list[TaskState]:
    """Return all tasks of the jobs with these names that the controller still knows, including ended tasks."""
    if not names:
        return []
    format_ = "|".join((_MARK, "%F", "%K", "%T", "%N", "%M", "%L", "%j", "%r"))
    text = call(["squeue", "--states=all", f"--name={','.join(names)}", f"--format={format_}"])
    marked = [line for line in text.splitlines() if line.startswith(f"{_MARK}|")]
    if not marked:  # no header: this is not squeue's output, so the queue may not be empty
        raise SlurmError(
            f"squeue printed {printable(text.strip(), 200)!r}, which is not understood", hint="try again later"
        )
    states: list[TaskState] = []
    for line in marked[1:]:
        job, indices, state, nodes, elapsed, left, name, reason = _fields("squeue", line.partition("|")[2], 8)
        common = TaskState(
            job=job,
            index=None,
            state=state,
            nodes=nodes,
            elapsed=elapsed,
            left=left,
            name=name,
            reason="" if reason == "None" else reason,
        )
        states += (replace(common, index=index) for index in _indices(indices))
    return states


def accounting(names: Sequence[str], since: str) -> list[TaskState]:
    """Return the newest accounting record of every task of the jobs with these names.

    Args: since: time of the earliest submission, as ``YYYY-MM-DDTHH:MM:SS`` in local time.
    Raises SlurmError if the site has no accounting.
    """
    if not names:
        return []
    fields = "JobID,State,NodeList,Elapsed,JobName,ExitCode"
    text = call(
        ["sacct", "-X", "-n", "-P", "-a", f"--starttime={since}", f"--name={','.join(names)}", f"--format={fields}"]
    )
    states: list[TaskState] = []
    for line in text.splitlines():
        if not any(name in line for name in names):
            continue  # the header, or a banner
        label, state, nodes, elapsed, name, code = _fields("sacct", line, 6)
        job, _, indices = label.partition("_")
        common = TaskState(
            job=job,
            index=None,
            state=state.partition(" ")[0],  # "CANCELLED by 0"
            nodes="" if nodes == "None assigned" else nodes,
            elapsed=elapsed,
            name=name,
            exit_code="" if code == "0:0" else code,
        )
        states += (replace(common, index=index) for index in _indices(indices.strip("[]")))
    return states


def release() -> str:
    """Return the version of Slurm's commands, such as ``slurm 24.05.1``."""
    lines = call(["sbatch", "--version"]).splitlines()
    return next((line for line in lines if re.match(r"slurm\S* \d", line)), "slurm of an unknown version")


def partitions() -> list[str]:
    """Return the partitions, one string each: name, state, time limit and number of nodes."""
    lines = call(["sinfo", "--noheader", f"--format={_MARK}|%P %a %l %D"]).splitlines()
    return [" ".join(line.partition("|")[2].split()) for line in lines if line.startswith(f"{_MARK}|")]


def _fields(command: str, line: str, count: int) -> list[str]:
    fields = line.split("|", count - 1)
    if len(fields) != count or not re.match(r"[1-9][0-9]*(_|$)", fields[0]):
        raise SlurmError(
            f"{command} printed {printable(line, 200)!r}, which is not understood", hint="try again later"
        )
    return fields


def _indices(text: str) -> list[int | None]:
    """Return the indices in Slurm's list, ``3-9%2`` or ``3-9:2`` (every second); [None] for a job without tasks."""
    if text in {"N/A", ""}:
        return [None]
    spans, _, step = text.partition("%")[0].partition(":")
    try:
        return list(parse_ranges(spans)[:: int(step or 1)])
    except (RunError, ValueError):
        raise SlurmError(f"the list of tasks {text!r} is not understood", hint="try again later") from None
