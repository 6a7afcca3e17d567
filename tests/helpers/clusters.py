"""A real Slurm cluster of several nodes on this machine, for tests."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from helpers.tiny_runs import CommandLine

SANDBOX = Path(__file__).with_name("slurm-sandbox")
PLUGINS = Path(__file__).parents[1] / "faults" / "plugins"
NEEDED = ("slurmctld", "slurmd", "sbatch", "munged", "slurmdbd", "mariadbd", "ip")
_SYSTEM = ":/usr/sbin:/sbin"
_SLURM = re.compile(r"(SLURM|SLURMD|SBATCH|SRUN|SQUEUE|SINFO|SACCT|SUBMITIT)_")


def require_slurm() -> None:
    """Skip the test if Slurm is missing; in CI, fail."""
    missing = [name for name in NEEDED if not shutil.which(name, path=os.environ["PATH"] + _SYSTEM)]
    if missing or os.geteuid() != 0:
        reason = f"a real Slurm is not to be had: {', '.join(missing) or 'its sandbox needs root'}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(f"{reason} (tests/slurm/install.sh)")


@dataclass(frozen=True)
class Cluster:
    """A running cluster and the environment of its users."""

    folder: Path
    environment: dict[str, str]

    def run(self, *command: str, check: bool = True) -> str:
        """Run a Slurm command and return its output."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60, check=False)
        assert not check or done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout

    def kill_node(self, name: str) -> None:
        """Kill a node, and tell the controller at once."""
        subprocess.run([SANDBOX, "kill-node", self.folder, name], check=True, capture_output=True)
        self.run("scontrol", "update", f"nodename={name}", "state=down", "reason=test")

    def start_node(self, name: str) -> None:
        """Start a killed node again."""
        subprocess.run([SANDBOX, "start-node", self.folder, name], check=True, capture_output=True)

    def cancel_all(self) -> None:
        """Cancel all jobs and start all nodes again."""
        jobs = sorted(set(self.run("squeue", "-h", "-o", "%A").split()))
        if jobs:
            self.run("scancel", "-f", *jobs, check=False)
        for line in self.run("sinfo", "-h", "-N", "-p", "main", "-o", "%N %T").splitlines():
            name, state = line.split()
            if state.startswith("down"):
                subprocess.run([SANDBOX, "start-node", self.folder, name], check=False, capture_output=True)
        wait_until(lambda: not self.run("squeue", "-h").strip(), 60)
        wait_until(lambda: self.run("sinfo", "-h", "-N", "-p", "main", "-o", "%T").split().count("idle") == 4, 60)

    def queued(self, *options: str) -> list[str]:
        """Return lines of squeue: task, state, node."""
        return self.run("squeue", "-h", "-r", "-o", "%i %T %N", *options).splitlines()


@contextmanager
def started(**settings: str) -> Iterator[Cluster]:
    """Start a cluster with these settings of the sandbox, and stop it at the end."""
    # The path is short, because a socket's address has at most 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    folder.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if not _SLURM.match(name)}
    environment["PATH"] += _SYSTEM
    # Clusters start one at a time; otherwise two could choose the same free ports.
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    chosen = {"ISOLATE": "net", "ACCT": "0", "PORT": str(17800 + 1024 * worker), **settings}
    try:
        subprocess.run([SANDBOX, "start", folder], check=True, timeout=120, env=environment | chosen)
        shown = subprocess.run(
            [SANDBOX, "exec", folder, "env", "-0"], env=environment, check=True, text=True, capture_output=True
        )
        pairs = (pair.split("=", 1) for pair in shown.stdout.split("\0") if pair)
        yield Cluster(folder, dict(pairs))
    finally:
        subprocess.run([SANDBOX, "stop", folder], timeout=120, check=False)
        if not os.environ.get("KEEP_SLURM_LOGS"):
            shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class ClusterCommands(CommandLine):
    """The command line on the cluster's login node."""


def commands(cluster: Cluster, folder: Path, plugins: Path) -> ClusterCommands:
    """Return the command line in ``folder``, with the test's plug-ins installed."""
    paths = os.pathsep.join(filter(None, [str(plugins), os.environ.get("PYTHONPATH")]))
    extra = {"PYTHONPATH": paths, "COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1", "OMP_NUM_THREADS": "1"}
    # Commands that a job starts by name use the same interpreter.
    path = f"{Path(sys.executable).parent}:{cluster.environment['PATH']}"
    return ClusterCommands(folder, {**cluster.environment, **extra, "PATH": path})


def wait_until(condition: Callable[[], object], seconds: float = 90.0) -> None:
    """Wait until a condition is true; fail after ``seconds``."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it never happened"
        time.sleep(0.25)  # the condition often runs a Slurm command
