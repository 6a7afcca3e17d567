"""Run the commands of docs/cluster.md unchanged."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from helpers.clusters import wait_until

ROOT = Path(__file__).parents[2]
# The painter generates the images, because this tests the launch, and loading models takes seconds per process.
SMALL = (
    "--preset painted --set plan.samples=8 --set plan.shard_size=4 --set evaluate.scenes=8 "
    "--set train.steps=6 --set train.batch_size=8 --set train.loader_workers=0 "
)


def commands():
    """Return the guide's indented commands, without installation and comments."""
    lines = re.findall(r"^    (\S.*)$", (ROOT / "docs/cluster.md").read_text(encoding="utf-8"), re.MULTILINE)
    return [line.split("  #")[0].strip() for line in lines if line.startswith(("magicseg ", "sbatch "))]


def test_the_commands_of_the_cluster_guide_work(on_cluster, slurm, tmp_path):
    folder = tmp_path / "bin"
    folder.mkdir()
    # The script that pip would install beside Python, for test environments without it.
    (folder / "magicseg").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m magicseg "$@"\n')
    (folder / "magicseg").chmod(0o755)
    (tmp_path / "slurm").symlink_to(ROOT / "slurm")
    path = f"{folder}{os.pathsep}{on_cluster.environment['PATH']}"
    lines = commands()
    assert len(lines) >= 15
    assert {"profile", "init", "submit", "status", "logs", "cancel", "efficiency", "reset"} <= {
        line.split()[1] for line in lines
    }
    for line in lines:
        typed = f"{line} {SMALL}" if line.startswith("magicseg init") else line
        done = subprocess.run(
            ["bash", "-c", typed],
            cwd=tmp_path,
            env={**on_cluster.environment, "PATH": path},
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        if line.startswith("magicseg cancel"):
            assert slurm.queued() == [] or all("COMPLETING" in task for task in slurm.queued())
    wait_until(lambda: not slurm.queued(), 120)
    assert (tmp_path / "RUN/model/model.json").exists()
    assert (tmp_path / "RUN/results").is_dir() is False, "training anew dropped the score of the model before"
