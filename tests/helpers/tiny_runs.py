"""Small runs and the command line, for tests."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from magicseg.config.loading import load_config
from magicseg.run import STAGES, Run
from magicseg.stages.worker import ShardEvent, run_shards

TINY = (
    *("plan.samples=96", "plan.shard_size=16", "generate.size=32", "describe.batch_size=4"),
    "mask.backend=pair-difference",
    # With random weights, all samples often fail for the same reason.
    *(f"{stage}.one_reason_at_most=1" for stage in STAGES),
)
LIMITED = tuple(f"{stage}.one_reason_at_most=0.9" for stage in STAGES)


def make_run(path: Path, *overrides: str) -> Run:
    """Create an empty run of six shards of sixteen small samples."""
    return Run.create(path, load_config(preset="painted", overrides=[*TINY, *overrides]))


def do(run: Run, *stages: str, shards: Sequence[int] | None = None) -> list[ShardEvent]:
    """Run stages in this process and return the events of their shards."""
    events: list[ShardEvent] = []

    def note(event: ShardEvent) -> None:
        if event.outcome != "started":
            events.append(event)

    for stage in stages or STAGES:
        run_shards(run, stage, range(run.plan.shards) if shards is None else shards, report=note)
    return events


@dataclass(frozen=True)
class Result:
    """The exit code and the output of a command."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class CommandLine:
    """The ``magicseg`` command, run in a given folder."""

    folder: Path
    environment: dict[str, str]

    def start(self, *arguments: object) -> subprocess.Popen[str]:
        """Start a command in a new process group."""
        return subprocess.Popen(
            [sys.executable, "-c", "from magicseg.cli import main; main()", *map(str, arguments)],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def finish(self, process: subprocess.Popen[str]) -> Result:
        """Wait for a started command."""
        try:
            out, err = process.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
            raise AssertionError(f"a command hangs: {out}{err}") from None
        assert "Traceback" not in err, err
        return Result(process.returncode, out, err)

    def __call__(self, *arguments: object) -> Result:
        """Run a command to its end."""
        return self.finish(self.start(*arguments))

    def patiently(self, *arguments: object, seconds: float = 280) -> Result:
        """Run a command that may take minutes."""
        process = self.start(*arguments)
        try:
            out, err = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
            raise AssertionError(f"a command hangs: {arguments}: {out}{err}") from None
        assert "Traceback" not in err, err
        return Result(process.returncode, out, err)

    def typed(self, line: str) -> Result:
        """Run a command line from a hint: ``magicseg reset generate RUN``."""
        name, *arguments = line.split("#")[0].split()
        assert name == "magicseg"
        return self(*arguments)


def change(run: Run, key: str, value: object) -> object:
    """Edit a setting in a run's configuration file. Returns: the former value."""
    file = run.path / "magicseg.yaml"
    data = node = yaml.safe_load(file.read_text())
    *groups, name = key.split(".")
    for group in groups:
        node = node[group]
    old, node[name] = node[name], value
    file.write_text(yaml.safe_dump(data, sort_keys=False))
    return old
