"""Commands and their child processes never run Python files from the current directory."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.tiny_runs import change, make_run
from magicseg.launch.planning import Request
from magicseg.launch.submit import submit
from magicseg.run import Run

PLANTED = ("numpy", "psutil", "torch", "zarr", "PIL", "submitit", "cloudpickle", "yaml")
SBATCH = "#!/bin/sh\necho 7\n"
SQUEUE = "#!/bin/sh\necho 'magicseg|HEADER'\n"
SCONTROL = "#!/bin/sh\ncase $2 in hostnames) echo n1 ;; *) echo MaxArraySize=1001 ;; esac\n"
# Job scripts call srun. This fake runs the command directly.
SRUN = '#!/bin/bash\nwhile [[ $1 == -* ]]; do [[ $1 == --output ]] && shift; shift; done\nexec "$@"\n'


@pytest.fixture
def planted(tmp_path):
    """Return a folder with modules that record their import, and a function that returns the record."""
    folder = tmp_path / "planted"
    folder.mkdir()
    said = tmp_path / "said"
    for name in PLANTED:
        (folder / f"{name}.py").write_text(
            f"open({str(said)!r}, 'a').write('{name} ')\nraise ImportError('planted')\n"
        )
    return folder, lambda: said.read_text() if said.exists() else ""


def in_folder(folder, *command, **variables):
    environment = {name: value for name, value in os.environ.items() if name not in {"PYTHONSAFEPATH", "PYTHONPATH"}}
    environment |= {"OMP_NUM_THREADS": "1", "NO_COLOR": "1", **variables}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


MAGICSEG = (Path(sys.executable).with_name("magicseg"),)
MODULE = (sys.executable, "-m", "magicseg")


@pytest.mark.parametrize(
    ("command", "variables"),
    [(MAGICSEG, {}), (MAGICSEG, {"PYTHONPATH": ":"}), (MODULE, {}), (MODULE, {"PYTHONPATH": "."})],
)
def test_workers_of_describe_import_nothing_from_the_current_directory(planted, tmp_path, command, variables):
    folder, said = planted
    run = make_run(tmp_path / "run", "plan.samples=32")
    done = in_folder(folder, *command, "describe", run.path, "--workers", "2", **variables)
    assert (done.returncode, said()) == (0, ""), done.stderr
    assert len(Run.open(run.path).ledger("describe").commits()) == run.plan.shards


def test_a_folder_that_pythonpath_names_explicitly_is_still_importable(tmp_path):
    (tmp_path / "plugin_of_mine.py").write_text("")
    code = "from magicseg.core.safe_path import forget_present_folder as forget; forget(); import plugin_of_mine"
    assert in_folder(tmp_path, sys.executable, "-c", code, PYTHONPATH=f"{tmp_path}:").returncode == 0
    assert in_folder(tmp_path, sys.executable, "-c", code, PYTHONPATH=":").returncode == 1


@pytest.mark.slow
def test_readers_and_torchrun_import_nothing_from_the_current_directory(planted, finished_run, tmp_path):
    folder, said = planted
    run = tmp_path / "run"
    shutil.copytree(finished_run.path, run)
    opened = Run.open(run)
    for name, value in {"steps": 1, "batch_size": 2, "checkpoint_every": 1, "loader_workers": 1}.items():
        change(opened, f"train.{name}", value)
    torchrun = Path(sys.executable).with_name("torchrun")
    done = in_folder(folder, torchrun, "--standalone", "--nproc-per-node=1", "-m", "magicseg", "train", run)
    assert (done.returncode, said()) == (0, ""), done.stderr
    assert (run / "model/model.json").exists()


@pytest.fixture
def site(tmp_path, monkeypatch):
    """Install fake Slurm commands."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, text in {"sbatch": SBATCH, "squeue": SQUEUE, "scontrol": SCONTROL, "srun": SRUN}.items():
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize("python_path", [None, "/nowhere:"])
def test_a_job_imports_nothing_from_the_directory_of_its_submission(planted, tmp_path, python_path):
    folder, said = planted
    run = make_run(tmp_path / "run", "plan.samples=16")
    (made,) = submit(run, Request(stage="describe", profile="cpu")).submissions
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1", "SLURM_NODEID": "0", "SLURM_LOCALID": "0"}
    job |= {"SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1", "SLURM_PROCID": "0", "SLURM_CPUS_PER_TASK": "1"}
    variables = job if python_path is None else {**job, "PYTHONPATH": python_path}
    done = in_folder(folder, "bash", made.folder / "7_submission.sh", **variables)
    assert (done.returncode, said()) == (0, ""), done.stdout + done.stderr
    assert len(run.ledger("describe").commits()) == 1
