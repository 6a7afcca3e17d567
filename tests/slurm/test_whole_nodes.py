"""Tasks with several GPUs: a worker on each, one that dies, a stop signal, and the bytes of a local run.

The GPUs of a node are links to a character device, which Slurm allocates like real ones. The back end computes on the
CPU and records which GPU it was given.
"""

import json

import pytest

from helpers.clusters import wait_until
from helpers.tiny_runs import do, make_run
from magicseg.run.digest import logical_digest

SMALL = ("plan.samples=256", "plan.shard_size=8", "generate.size=32")


@pytest.fixture(scope="module")
def local_digest(tmp_path_factory):
    run = make_run(tmp_path_factory.mktemp("local") / "run", *SMALL, "plan.shard_size=128")
    do(run)
    return logical_digest(run)


@pytest.fixture
def recorded(tmp_path, faulty):
    """Return a function that makes a run whose captions are done, and whose generator records its GPU."""
    (tmp_path / "log").mkdir()

    def make(**options):
        sets = [f"generate.options.{key}={value}" for key, value in {"log": tmp_path / "log", **options}.items()]
        run = make_run(tmp_path / "run", *SMALL, "generate.backend=gpu-recorder", *sets)
        do(run, "describe")
        return run

    return make


def batches(tmp_path):
    """Return the records of all batches, by host and GPU."""
    found = {}
    for path in (tmp_path / "log").glob("worker-*"):
        for line in path.read_text().splitlines():
            batch = json.loads(line)
            found.setdefault((batch["host"], batch["CUDA_VISIBLE_DEVICES"]), []).append(batch)
    return found


def overlapping(work):
    """Return whether two processes were at work on one device at the same time."""
    return any(
        one["pid"] != other["pid"] and one["from"] < other["to"] and other["from"] < one["to"]
        for one in work
        for other in work
    )


@pytest.mark.parametrize("way", ["gpus=2", "gpus_per_task=2", "gres=gpu:2", "exclusive=true"])
def test_every_gpu_of_every_node_is_used_by_one_worker_at_a_time(
    on_cluster, slurm, tmp_path, local_digest, recorded, way
):
    run = recorded(kill_on="['1']", seconds=0.2)
    result = on_cluster.patiently(
        *("submit", "generate", run.path, "--profile", "cpu", "--set", f"slurm.stages.generate.{way}"),
        *("--set", "slurm.parallel=4", "--wait"),
    )
    assert result.code == 0, result.err
    assert "generate: 32 shards in 16 tasks, 2 each" in result.err
    assert ("2 workers per task" in result.err) == (way != "exclusive=true"), "how many GPUs a node has is not known"
    used = batches(tmp_path)
    assert {gpu for _, gpu in used} == {"0", "1"}
    assert {host for host, gpu in used if gpu == "0"} == {host for host, gpu in used if gpu == "1"}
    assert not any(overlapping(work) for work in used.values())
    logs = [log.read_text() for log in (run.path / "jobs").glob("*/*_log.out")]
    assert all("generate: 2 workers on GPUs 0-1\n" in log for log in logs)
    assert sum(log.count("died: a worker ended by SIGKILL, a new one goes on") for log in logs) == 1
    assert not any("Traceback" in log for log in logs)
    do(run, "mask")
    assert logical_digest(run) == local_digest


def test_workers_stop_before_the_time_limit_and_requeued_tasks_finish(
    on_cluster, slurm, tmp_path, local_digest, recorded
):
    run = recorded(seconds=1.0)
    command = on_cluster.start(
        *("submit", "generate", run.path, "--profile", "cpu", "--set", "slurm.stages.generate.gpus=2"),
        *("--shards-per-task", 8, "--wait"),
    )
    wait_until(lambda: len(run.ledger("generate").commits()) >= 8)
    state = json.loads(on_cluster("status", run.path, "--json").out)
    assert {worker["gpu"] for worker in state["workers"]} == {"0", "1"}
    (job,) = [job["id"] for job in state["jobs"] if job["stage"] == "generate"]
    slurm.run("scancel", "--signal=USR2", job)  # Slurm's warning, to every process of the job's steps
    out, err = command.communicate(timeout=200)
    assert command.returncode == 0, (out, err)
    logs = [log.read_text() for log in (run.path / "jobs").glob("*/*_log.out")]
    assert sum("stopped, because the time of this job ends" in log for log in logs) == 4
    assert not any("Traceback" in log for log in logs)
    do(run, "mask")
    assert logical_digest(run) == local_digest
    entry, *_ = json.loads(on_cluster("efficiency", run.path, "generate", "--json").out)
    assert entry["workers"] == 2
