"""The whole pipeline on a real Slurm without faults: the same bytes as a local run, and the commands' output."""

import json
import shlex
import subprocess
import sys

import pytest

from helpers.clusters import wait_until
from helpers.tiny_runs import do, make_run
from magicseg.run import Run
from magicseg.run.digest import logical_digest

SMALL = (
    *("plan.samples=256", "plan.shard_size=8", "generate.size=32"),
    *("train.steps=12", "train.loader_workers=0", "train.checkpoint_every=4", "evaluate.scenes=8"),
)


@pytest.fixture(scope="module")
def local_digest(tmp_path_factory):
    run = make_run(tmp_path_factory.mktemp("local") / "run", *SMALL, "plan.shard_size=128")
    do(run)
    return logical_digest(run)


def test_submit_all_gives_the_bytes_of_a_local_run_and_a_trained_model(on_cluster, slurm, tmp_path, local_digest):
    run = make_run(tmp_path / "run", *SMALL)
    assert run.plan.shards == 32
    started = on_cluster.patiently("submit", "all", run.path, "--profile", "cpu", "--shards-per-task", 8, "--wait")
    assert started.code == 0, started.err
    assert logical_digest(run) == local_digest
    results = json.loads((run.path / "results/miniature.json").read_bytes())
    assert results["provenance"]["fingerprints"]["mask"] == run.fingerprints["mask"].digest
    state = json.loads(on_cluster("status", run.path, "--json").out)
    assert [(job["stage"], job["state"]) for job in state["jobs"]] == [
        *((stage, "completed") for stage in ("describe", "generate", "mask", "train", "evaluate", "follow-up")),
    ]
    assert [job["tasks"]["completed"] for job in state["jobs"]] == [4, 4, 4, 1, 1, 1]
    assert on_cluster("verify", run.path).code == 0
    jobs = {job["stage"]: job["id"] for job in state["jobs"]}
    for shard, record in run.ledger("generate").commits().items():
        assert record.job == f"{jobs['generate']}_{shard // 8}"
    # A user reads the follow-up job's report, the logs and the efficiency.
    report = on_cluster("logs", run.path, "follow-up", "--task", jobs["follow-up"])
    assert "all that was submitted is done" in report.out
    log = on_cluster("logs", run.path, "generate", "--shard", 9)
    assert f"{jobs['generate']}_1_0_log.out" in log.err
    assert "generate shard 9: committed, 8 samples" in log.out
    *stages, train, evaluate = json.loads(on_cluster("efficiency", run.path, "--json").out)
    assert [(entry["stage"], entry["shards"], entry["tasks"]) for entry in stages] == [
        (stage, 32, 4) for stage in ("describe", "generate", "mask")
    ]
    assert all(entry["overhead_seconds_per_task"] is not None for entry in stages)
    assert (train["stage"], evaluate["stage"]) == ("train", "evaluate")
    for entry in (*stages, train, evaluate):
        assert 0 < entry["longest_task_seconds"] < 600
        assert 0 < entry["cpu_share"] <= 1
        assert entry["gpu_share"] is None, "this site does not count it"
    # Slurm's accounting samples memory every few seconds, so it may have no value for jobs this short.
    assert all(entry["peak_memory"] is None or entry["peak_memory"] > 2**20 for entry in (train, evaluate))
    assert "train: 1 node" in on_cluster("efficiency", run.path, "train").out
    again = on_cluster("submit", "all", run.path, "--profile", "cpu")
    assert again.code == 0
    assert "nothing to submit: all is done" in again.err
    assert slurm.queued() == []


def test_a_pilot_in_a_job_gives_an_estimate(on_cluster, slurm, tmp_path):
    """The command that ``estimate`` prints on a login node, for a profile with GPUs, works unchanged."""
    run = make_run(tmp_path / "run", *SMALL)
    profile = tmp_path / "site.yaml"
    profile.write_text("gpus: 1\ncpus: 2\nmemory: 1900M\nshards_per_task: 4\n")
    options = ("estimate", run.path, "--profile", profile, "--json")
    (warning,) = json.loads(on_cluster(*options, "--pilot", 1).out)["warnings"]
    line = shlex.split(warning.split("measure there: ")[1])
    at = line.index("magicseg")
    typed = [*line[:at], sys.executable, "-m", *line[at:]]
    done = subprocess.run(typed, env=on_cluster.environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(on_cluster(*options).out)
    assert report["warnings"] == []
    assert all(entry["measured"]["hosts"][0] in {"n1", "n2", "n3", "n4"} for entry in report["stages"])
    assert all(entry["left"]["tasks"] == 8 for entry in report["stages"])
    started = on_cluster.patiently("submit", "describe", run.path, "--profile", profile, "--wait")
    assert started.code == 0, started.err
    assert "estimate: 30 shards of describe: " in started.err
    (job,) = (run.path / "jobs").glob("*-describe")
    describe = report["stages"][0]["left"]
    of_tasks = [*job.glob("*_log.out"), *job.glob("*.pkl")]
    records = len(run.ledger("describe").commits()) - 2
    assert len(of_tasks) + records + 2 * records == describe["files"]


def test_a_second_submit_skips_queued_work_unless_forced(on_cluster, slurm, tmp_path):
    run = make_run(tmp_path / "run", *SMALL, "describe.backend=faulty", "describe.options={seconds: 1.0}")
    options = ("--profile", "cpu", "--set", "slurm.parallel=2")
    assert on_cluster("submit", "describe", run.path, *options, "--shards-per-task", 8).code == 0
    again = on_cluster("submit", "describe", run.path, *options)
    assert again.code == 0, again.err
    assert "in the queue already" in again.err
    assert "nothing to submit: the rest is in the queue" in again.err
    assert len({line.split("_")[0] for line in slurm.queued()}) == 1
    # The next stage depends on the jobs that are already queued.
    assert on_cluster("submit", "generate", run.path, *options).code == 0
    wait_until(lambda: "Dependency" in slurm.run("squeue", "-h", "-o", "%r", "-t", "PENDING").split())
    assert on_cluster("submit", "describe", run.path, *options, "--force").code == 0
    assert len({line.split("_")[0] for line in slurm.queued()}) == 3
    cancelled = on_cluster("cancel", run.path)
    assert cancelled.code == 0, cancelled.err
    assert "again: magicseg submit all" in cancelled.err
    state = json.loads(on_cluster("status", run.path, "--json").out)
    assert not any(job["tasks"]["pending"] for job in state["jobs"])


def test_slurm_s_refusal_is_shown_with_a_remedy(on_cluster, slurm, tmp_path):
    run = make_run(tmp_path / "run", *SMALL)
    result = on_cluster("submit", "describe", run.path, "--profile", "cpu", "--set", "slurm.partition=nosuch")
    assert result.code == 2
    assert "invalid partition" in result.err
    assert "--set slurm.partition=NAME" in result.err
    assert "Traceback" not in result.err
    assert not list((run.path / "jobs").glob("0*"))
    result = on_cluster("submit", "describe", run.path, "--profile", "cpu", "--set", "slurm.gpus=9")
    assert result.code == 2
    assert "slurm.gpus" in result.err
    assert slurm.queued() == []


def test_status_watch_and_logs_follow_show_a_running_stage(on_cluster, tmp_path):
    run = make_run(tmp_path / "run", *SMALL, "describe.backend=faulty", "describe.options={seconds: 0.1}")
    assert on_cluster("submit", "describe", run.path, "--profile", "cpu", "--shards-per-task", 16).code == 0
    watched = on_cluster.patiently("status", run.path, "--watch")
    assert watched.code == 0
    assert "32/32" in watched.out
    followed = on_cluster.patiently("logs", run.path, "--shard", 31, "--follow")
    assert followed.code == 0
    assert "describe shard 31: committed" in followed.out
    assert len(Run.open(run.path).ledger("describe").commits()) == 32
