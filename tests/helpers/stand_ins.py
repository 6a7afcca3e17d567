"""Fakes of Slurm's commands: small shell scripts that record their calls and print given output.

Slurm is neither needed nor used. Tests with real Slurm daemons are in tests/slurm.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from magicseg.core.files import to_json
from magicseg.launch.jobs import ArrayJob, Submission, job_name, now, submissions
from magicseg.run import Run

COMMANDS = ("sbatch", "squeue", "sacct", "scontrol", "scancel", "srun")
_SCRIPT = """#!/bin/sh
PATH=/usr/bin:/bin
cd '{folder}' || exit 9
echo "{name} $*" >>calls
env >{name}.environment
count=$(grep -c '^{name} ' calls)
for complaint in {name}.fails "{name}.fails.$count"; do
  if [ -e "$complaint" ]; then cat "$complaint" >&2; exit 1; fi
done
{answer}
"""
_ANSWER = "if [ -e {name}.says ]; then cat {name}.says; fi"
_SQUEUE = "echo 'magicseg|ARRAY_JOB_ID|ARRAY_TASK_ID|STATE|NODELIST|TIME|TIME_LEFT|NAME|REASON'"
_SBATCH = """number=$((100 + count))
case "$*" in
  *--parsable*) echo "$number" ;;
  *) echo "Submitted batch job $number" ;;
esac"""


@dataclass(frozen=True)
class StandIns:
    """The fake commands of a cluster. ``sbatch`` numbers jobs from 101."""

    folder: Path

    @property
    def path(self) -> Path:
        """Return the folder for PATH."""
        return self.folder / "bin"

    def install(self) -> None:
        """Install all commands. The site's limits are 1001 tasks per array and 10000 jobs."""
        self.path.mkdir(parents=True)
        for name in COMMANDS:
            answer = _SBATCH if name == "sbatch" else _ANSWER.format(name=name)
            if name == "squeue":
                answer = f"if [ -e squeue.instead ]; then cat squeue.instead; exit; fi\n{_SQUEUE}\n{answer}"
            if name == "sbatch":
                answer = f"if [ -e banner ]; then cat banner; fi\n{answer}"
            script = self.path / name
            script.write_text(_SCRIPT.format(folder=self.folder, name=name, answer=answer))
            script.chmod(0o755)
        self.says("scontrol", "Configuration data\nMaxArraySize            = 1001\nMaxJobCount             = 10000\n")

    def says(self, name: str, text: str) -> None:
        """Set the output of a command."""
        (self.folder / f"{name}.says").write_text(text)

    def says_instead(self, text: str) -> None:
        """Set text that ``squeue`` prints instead of a table."""
        (self.folder / "squeue.instead").write_text(text)

    def has_banner(self, text: str) -> None:
        """Set text that ``sbatch`` prints before the job number."""
        (self.folder / "banner").write_text(text)

    def fails(self, name: str, words: str, *, call: int | None = None) -> None:
        """Make a command fail with a message: always, or only at call number ``call``, counted from 1."""
        (self.folder / (f"{name}.fails" if call is None else f"{name}.fails.{call}")).write_text(words + "\n")

    def heals(self, name: str) -> None:
        """Make a command succeed again."""
        for path in self.folder.glob(f"{name}.fails*"):
            path.unlink()

    def lacks(self, name: str) -> None:
        """Remove a command."""
        (self.path / name).unlink()

    def calls(self, name: str) -> list[str]:
        """Return the arguments of a command's calls."""
        file = self.folder / "calls"
        lines = file.read_text().splitlines() if file.exists() else []
        return [line.removeprefix(f"{name} ") for line in lines if line.startswith(f"{name} ")]

    def forget_calls(self) -> None:
        """Forget the recorded calls."""
        (self.folder / "calls").unlink(missing_ok=True)

    def environment_of(self, name: str) -> dict[str, str]:
        """Return the environment of a command's last call."""
        lines = (self.folder / f"{name}.environment").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)


def queued(array: ArrayJob | str, indices: str, state: str, *, job: str = "101", reason: str = "None") -> str:
    """Return a line of ``squeue`` in magicseg's format."""
    name = array if isinstance(array, str) else array.name
    nodes, elapsed = ("n1", "1:05") if state == "RUNNING" else ("", "0:00")
    return "|".join(("magicseg", job, indices, state, nodes, elapsed, "58:55", name, reason)) + "\n"


def accounted(array: ArrayJob, label: str, state: str, *, code: str = "0:0") -> str:
    """Return a line of ``sacct`` in magicseg's format."""
    return f"{label}|{state}|n1|00:01:05|{array.name}|{code}\n"


def record(
    run: Run,
    stage: str,
    tasks: Sequence[str],
    *,
    jobs: Sequence[str | None] = ("101",),
    asks: Mapping[str, object] | None = None,
    **more: object,
) -> Submission:
    """Write the record of a submission like `submit`: its tasks and jobs. ``asks``: the requested resources."""
    number = max((one.number for one in submissions(run)), default=0) + 1
    share = -(-len(tasks) // len(jobs))
    arrays = tuple(
        ArrayJob(
            name=job_name(run, stage, number, position),
            first=position * share,
            count=min(share, len(tasks) - position * share),
            job=job,
        )
        for position, job in enumerate(jobs)
    )
    made = Submission(
        folder=run.path / "jobs" / f"{number:04d}-{stage}",
        run=str(run.path),
        number=number,
        stage=stage,
        created=now(),
        version="0",
        tasks=tuple(tasks),
        arrays=arrays,
        profile="cpu",
        resources={"cpus": 2, "memory": "1900M", "time": "1:00:00", "nodes": 1, **(asks or {})},
        **more,
    )
    made.folder.mkdir(parents=True)
    made.write()
    return made


def claim(run: Run, stage: str, shard: int, job: str) -> Path:
    """Write a claim of another machine for a shard."""
    path = run.ledger(stage).claim_path(shard)
    path.write_bytes(to_json({"token": "t", "pid": 1, "started": 0.0, "namespace": "elsewhere", "job": job}))
    return path


def listing(folder: Path) -> dict[str, float]:
    """Return the modification time of every file in a folder."""
    return {str(path.relative_to(folder)): os.lstat(path).st_mtime for path in sorted(folder.rglob("*"))}
