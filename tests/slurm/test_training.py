"""Training on two nodes recovers from faults, with the same training curve as without faults."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import psutil
import pytest

from helpers.clusters import wait_until
from helpers.tiny_runs import change, do, make_run
from magicseg.run import Run

TRAINING = (
    *("plan.samples=64", "plan.shard_size=16", "generate.size=32", "evaluate.scenes=8"),
    *("train.steps=100", "train.batch_size=8", "train.log_every=1", "train.checkpoint_every=10"),
    *("train.loader_workers=0", "train.warmup_steps=4"),
)
ON_TWO = ("--profile", "cpu", "--nodes", 2, "--set", "slurm.stages.train.processes=1")
TWO_BY_TWO = (*ON_TWO[:-1], "slurm.stages.train.processes=2")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A run with a finished data set."""
    run = make_run(tmp_path_factory.mktemp("data") / "run", *TRAINING)
    do(run)
    return run


@pytest.fixture
def untrained(data, tmp_path):
    """A copy of the run with a finished data set."""
    shutil.copytree(data.path, tmp_path / "run")
    return Run.open(tmp_path / "run")


@pytest.fixture(scope="module")
def undisturbed():
    """The training curve of the script without submit, for the next test."""
    return {}


def curve(run):
    rows = [json.loads(line) for line in (run.path / "train.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"], row["learning_rate"]) for row in rows]


def step_of(run):
    try:
        return curve(run)[-1][0]
    except (FileNotFoundError, IndexError, ValueError):
        return 0


def ranks(run):
    """Return the training processes on all nodes: torchrun's children."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if line[-2:] == ["train", str(run.path)] and "torch.distributed.run" not in line:
            found.append(process)
    return found


def check(run, undisturbed):
    assert [step for step, *_ in curve(run)] == list(range(1, 101))
    assert curve(run) == undisturbed["curve"]
    card = json.loads((run.path / "model/model.json").read_bytes())
    assert card["weights_digest"] == undisturbed["weights"]


def test_two_nodes_with_two_processes_each_train_together(on_cluster, untrained):
    change(untrained, "train.steps", 20)
    result = on_cluster.patiently("submit", "train", untrained.path, *TWO_BY_TWO, "--wait")
    assert result.code == 0, result.err + on_cluster("logs", untrained.path, "train", "--failed").out
    card = json.loads((untrained.path / "model/model.json").read_bytes())
    assert [step for step, *_ in curve(untrained)] == list(range(1, 21))
    assert card["provenance"]["world_size"] == 4
    again = on_cluster("submit", "train", untrained.path, *TWO_BY_TWO)
    assert again.code == 0
    assert "train: done" in again.err


def test_the_training_script_works_without_submit(on_cluster, slurm, untrained, tmp_path, undisturbed):
    script = Path(__file__).parents[2] / "slurm/train.sbatch"
    environment = {**on_cluster.environment, "MAGICSEG_PROCESSES": "1"}
    options = ("--nodes=2", "--cpus-per-task=2", "--mem=1900M", "--time=10", "-o", str(tmp_path / "log"))
    done = subprocess.run(
        ["sbatch", "--parsable", *options, script, untrained.path],
        env=environment,
        check=True,
        text=True,
        capture_output=True,
    )
    assert done.stdout.strip().isdigit()
    wait_until(lambda: not slurm.queued(), 200)
    assert (untrained.path / "model/model.json").exists(), (tmp_path / "log").read_text()
    card = json.loads((untrained.path / "model/model.json").read_bytes())
    assert card["provenance"]["world_size"] == 2
    undisturbed |= {"curve": curve(untrained), "weights": card["weights_digest"]}


def test_the_training_curve_is_the_same_after_kills_node_loss_time_limit_and_cancellation(
    on_cluster, slurm, untrained, undisturbed
):
    """In sequence: a rank is killed, a node is lost, the time limit comes near, the job is cancelled."""
    command = on_cluster.start("submit", "train", untrained.path, *ON_TWO, "--wait")
    wait_until(lambda: step_of(untrained) > 15)
    # torchrun restarts the ranks in the same job.
    killed = ranks(untrained)[-1]
    killed.kill()
    wait_until(lambda: step_of(untrained) > 35)
    assert restarts(slurm) == 0
    # Slurm requeues the job.
    nodes = slurm.run("squeue", "-h", "-t", "RUNNING", "-o", "%N").strip()
    last = slurm.run("scontrol", "show", "hostnames", nodes).split()[-1]
    slurm.kill_node(last)
    slurm.start_node(last)
    wait_until(lambda: step_of(untrained) > 55)
    assert restarts(slurm) == 1
    # The ranks stop after one step, and the job script requeues the job.
    slurm.run("scancel", "--signal=USR2", job_of(slurm))
    wait_until(lambda: restarts(slurm) == 2)
    assert "training was interrupted after step" in logs(untrained)
    wait_until(lambda: step_of(untrained) > 75)
    # Cancelled work is resumed only by submit.
    assert on_cluster("cancel", untrained.path).code == 0
    out, err = command.communicate(timeout=60)
    assert command.returncode == 1, (out, err)
    assert f"again: magicseg submit train {untrained.path}" in err
    assert slurm.queued() == []
    assert not (untrained.path / "model/model.json").exists()
    result = on_cluster.patiently("submit", "train", untrained.path, *ON_TWO, "--wait")
    assert result.code == 0, result.err + logs(untrained)
    check(untrained, undisturbed)


def job_of(slurm):
    return slurm.run("squeue", "-h", "-o", "%A").strip()


def restarts(slurm):
    found = re.search(r"Restarts=(\d+)", slurm.run("scontrol", "-o", "show", "job", job_of(slurm)))
    return int(found[1])


def logs(run):
    return "".join(path.read_text() for path in run.path.glob("jobs/*/*_log.out"))
