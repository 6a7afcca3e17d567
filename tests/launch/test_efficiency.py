"""What jobs asked for and used, and that what is suggested for next time is possible."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stand_ins import record
from tiny_runs import do

from magicseg.launch.efficiency import bytes_of, efficiency, efficiency_lines
from magicseg.launch.grouping import contiguous_groups
from magicseg.launch.profile_files import load_profile

GIB = 2**30


@pytest.fixture
def done_by_slurm(fresh, monkeypatch):
    """A run whose first stage was done by the tasks 101_0 and 101_1, and a submission that says so."""
    for task, shards in (("0", [0, 1, 2]), ("1", [3, 4, 5])):
        monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "101")
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", task)
        do(fresh, "describe", shards=shards)
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID")
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID")
    record(fresh, "describe", ["0-2", "3-5"])
    return fresh


def rewritten(run, **values):
    """The run with other numbers in its commit records."""
    ledger = run.ledger("describe")
    for shard, found in ledger.commits().items():
        ledger.take_back([shard])
        ledger.commit(dataclasses.replace(found, **values), run.fingerprints["describe"])
    return run


def test_what_was_used_is_read_from_the_commit_records(done_by_slurm, slurm):
    rewritten(done_by_slurm, seconds=10.0, peak_memory=3 * GIB, peak_gpu_memory=0)
    (entry,) = efficiency(done_by_slurm)
    assert entry["stage"] == "describe"
    assert (entry["shards"], entry["tasks"]) == (6, 2)
    assert entry["seconds_per_shard"] == 10.0
    assert entry["peak_memory"] == 3 * GIB
    assert entry["peak_gpu_memory"] is None
    assert entry["asked"] == {"memory": 1900 * 2**20, "time": "1:00:00", "cpus": 2}


@pytest.mark.parametrize("accounting", ["missing", "disabled", "empty"])
def test_without_accounting_only_the_share_of_processors_and_the_start_are_unknown(done_by_slurm, slurm, accounting):
    if accounting == "missing":
        slurm.lacks("sacct")
    elif accounting == "disabled":
        slurm.fails("sacct", "Slurm accounting storage is disabled")
    (entry,) = efficiency(done_by_slurm)
    assert entry["overhead_seconds_per_task"] is None
    assert entry["cpu_share"] is None
    assert entry["suggested"]["shards_per_task"] >= 1
    assert len(efficiency_lines([entry], done_by_slurm)) == 4
    assert entry["longest_task_seconds"] > 0
    assert "s at most, of 1:00:00 asked" in efficiency_lines([entry], done_by_slurm)[1]


def test_with_accounting_they_are_known_from_one_call(done_by_slurm, slurm):
    rewritten(done_by_slurm, seconds=10.0)
    slurm.says("sacct", "101_0|00:00:50|01:00.250\n101_1|00:00:50|01:00.500\n101_2|Unknown|INVALID\n")
    (entry,) = efficiency(done_by_slurm)
    assert entry["overhead_seconds_per_task"] == 20.0
    assert entry["cpu_share"] == round(120 / (100 * 2), 3)
    assert len(slurm.calls("sacct")) == 1


def test_a_sacct_that_is_not_understood_is_as_good_as_none(done_by_slurm, slurm):
    slurm.says("sacct", "under maintenance\n")
    (entry,) = efficiency(done_by_slurm)
    assert entry["cpu_share"] is None


@pytest.mark.parametrize("seconds", [0.0, 0.001, 1.0, 700.0, 10_000.0])
def test_no_more_shards_are_suggested_for_a_task_than_the_run_has(done_by_slurm, slurm, seconds):
    rewritten(done_by_slurm, seconds=seconds)
    suggested = efficiency(done_by_slurm)[0]["suggested"]
    assert 1 <= suggested["shards_per_task"] <= done_by_slurm.plan.shards
    assert suggested["time_minutes"] * 60 > suggested["shards_per_task"] * seconds
    assert contiguous_groups(range(6), suggested["shards_per_task"])


@pytest.mark.parametrize("peak", [1, GIB - 1, GIB, 5 * GIB])
def test_what_is_suggested_has_room_and_is_a_profile(done_by_slurm, slurm, peak):
    rewritten(done_by_slurm, peak_memory=peak)
    report = efficiency(done_by_slurm)
    assert bytes_of(report[0]["suggested"]["memory"]) >= peak * 1.25
    words = efficiency_lines(report, done_by_slurm)[-1].split()
    overrides = [word for word in words if word.startswith("slurm.")]
    assert len(overrides) == 2
    profile = load_profile("cpu", overrides)
    assert profile.resources("describe").memory == report[0]["suggested"]["memory"]
    assert profile.resources("describe").minutes == report[0]["suggested"]["time_minutes"]


def test_work_that_was_not_done_by_slurm_is_not_reported(fresh, slurm):
    do(fresh, "describe")
    assert efficiency(fresh) == []
    record(fresh, "describe", ["0-5"])
    assert efficiency(fresh) == []
    assert efficiency_lines([], fresh) == ["no stage of this run was done by Slurm yet"]


def test_one_stage_can_be_asked_for(done_by_slurm, slurm):
    assert efficiency(done_by_slurm, "mask") == []
    assert len(efficiency(done_by_slurm, "describe")) == 1


@given(st.integers(1, 10**6), st.sampled_from("KMGT"))
def test_sizes_are_read_as_slurm_reads_them(number, unit):
    assert bytes_of(f"{number}{unit}") == number * 1024 ** ("KMGT".index(unit) + 1)
    assert bytes_of(str(number)) == bytes_of(f"{number}M")
