"""The estimate that submit prints before it queues jobs."""

import json

import pytest

from magicseg.launch.jobs import submissions


@pytest.fixture
def estimated(described, magicseg):
    """A run with the first stage finished and one shard of the others, made by processes with a job's memory."""
    for stage in ("generate", "mask"):
        assert magicseg(stage, described.path, "--shards", "0", "--workers", "1").code == 0
    return described


def estimate_of(result):
    return [
        line for line in result.err.splitlines() if line.startswith(("estimate", "no estimate", "  by", "warning"))
    ]


@pytest.mark.slow
def test_submit_shows_the_estimate_of_the_missing_work(on_cluster, slurm, estimated):
    result = on_cluster("submit", "all", estimated.path, "--profile", "cpu")
    assert result.code == 0, result.err
    first, second = estimate_of(result)
    assert first.startswith("estimate: 5 shards of generate, 5 shards of mask: ")
    assert "CPU-hours" in first
    assert second.startswith("  by 1 shard of generate and of mask on ")
    assert result.err.splitlines()[0] == first, "before anything is queued"
    assert len(slurm.calls("scontrol")) == 1, "the site is not asked once more for it"


@pytest.mark.slow
def test_the_estimate_s_tasks_equal_the_submitted_tasks(on_cluster, slurm, estimated):
    report = json.loads(on_cluster("estimate", estimated.path, "--profile", "cpu", "--json").out)
    assert on_cluster("submit", "all", estimated.path, "--profile", "cpu").code == 0
    made = {one.stage: one for one in submissions(estimated)}
    for entry in report["stages"]:
        if entry["left"]["shards"]:
            assert len(made[entry["stage"]].tasks) == entry["left"]["tasks"]


def test_without_measurements_submit_suggests_a_pilot(on_cluster, slurm, fresh):
    result = on_cluster("submit", "all", fresh.path, "--profile", "cpu")
    assert estimate_of(result) == [f"no estimate yet: magicseg estimate {fresh.path} --pilot 1"]


def test_a_dry_run_also_shows_the_estimate(on_cluster, slurm, estimated):
    result = on_cluster("submit", "mask", estimated.path, "--profile", "cpu", "--dry-run", "--shards-per-task", "1")
    assert estimate_of(result)[0].startswith("estimate: 5 shards of mask: ")
    assert "estimate" not in result.out
    assert submissions(estimated) == []


def test_no_estimate_is_shown_for_finished_stages_and_for_training(on_cluster, slurm, finished):
    for stage in ("all", "describe", "train"):
        assert estimate_of(on_cluster("submit", stage, finished.path, "--profile", "cpu", "--dry-run")) == []
