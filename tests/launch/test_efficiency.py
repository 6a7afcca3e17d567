"""Requested and used resources of jobs, and valid suggestions for the next submission."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.stand_ins import record
from helpers.tiny_runs import do
from magicseg.launch.efficiency import efficiency, efficiency_lines
from magicseg.launch.grouping import contiguous_groups
from magicseg.launch.jobs import submissions
from magicseg.launch.profile_files import load_profile
from magicseg.launch.quoting import bytes_of
from magicseg.launch.task_usage import TaskUsage, parse_usage

GIB = 2**30


@pytest.fixture
def done_by_slurm(fresh, monkeypatch):
    """A run whose first stage was finished by tasks 101_0 and 101_1, with the record of their submission."""
    for task, shards in (("0", [0, 1, 2]), ("1", [3, 4, 5])):
        monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "101")
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", task)
        do(fresh, "describe", shards=shards)
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID")
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID")
    record(fresh, "describe", ["0-2", "3-5"])
    return fresh


def rewritten(run, **values):
    """Replace numbers in the run's commit records."""
    ledger = run.ledger("describe")
    for shard, found in ledger.commits().items():
        ledger.take_back([shard])
        ledger.commit(dataclasses.replace(found, **values), run.fingerprints["describe"])
    return run


def test_time_and_memory_are_read_from_the_commit_records(done_by_slurm, slurm):
    rewritten(done_by_slurm, seconds=10.0, peak_memory=3 * GIB, peak_gpu_memory=0)
    (entry,) = efficiency(done_by_slurm)
    assert entry["stage"] == "describe"
    assert (entry["shards"], entry["tasks"]) == (6, 2)
    assert entry["seconds_per_shard"] == 10.0
    assert entry["peak_memory"] == 3 * GIB
    assert entry["peak_gpu_memory"] is None
    assert entry["asked"] == {"memory": 1900 * 2**20, "time": "1:00:00", "cpus": 2}


@pytest.mark.parametrize("accounting", ["missing", "disabled", "empty"])
def test_without_accounting_only_cpu_utilisation_and_startup_time_are_unknown(done_by_slurm, slurm, accounting):
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
    assert "s at most, of 1:00:00 requested" in efficiency_lines([entry], done_by_slurm)[1]


def test_with_accounting_one_sacct_call_gives_cpu_utilisation_and_startup_time(done_by_slurm, slurm):
    rewritten(done_by_slurm, seconds=10.0)
    slurm.says(
        "sacct",
        "101_0|COMPLETED|00:00:50|01:00.250|2||\n101_1|COMPLETED|00:00:50|01:00.500|2||\n"
        "101_2|PENDING|Unknown|INVALID|0||\n",
    )
    (entry,) = efficiency(done_by_slurm)
    assert entry["overhead_seconds_per_task"] == 20.0
    assert entry["cpu_share"] == round(120.75 / (100 * 2), 3)
    assert len(slurm.calls("sacct")) == 1


def test_unparsable_sacct_output_counts_as_no_accounting(done_by_slurm, slurm):
    slurm.says("sacct", "under maintenance\n")
    (entry,) = efficiency(done_by_slurm)
    assert entry["cpu_share"] is None


# Slurm 22.05.8: a task of an array, training on two nodes with two processes each, evaluation.
RECORDED = """\
101_0|COMPLETED|00:00:03|00:00.707|2||
101_0.batch|COMPLETED|00:00:03|00:00.014|2||energy=0
101_0.0|COMPLETED|00:00:03|00:00.693|2||energy=0
105|COMPLETED|00:01:16|00:51.503|4||
105.batch|COMPLETED|00:01:16|00:00.029|2|12500K|cpu=00:00:00,energy=0,fs/disk=81085,mem=12500K,pages=0,vmem=287736K
105.0|COMPLETED|00:01:16|00:51.473|4|2063340K|cpu=00:00:24,energy=0,fs/disk=149494817,mem=2060752K,pages=0,vmem=11982548K
106|COMPLETED|00:00:10|00:02.659|2||
106.batch|COMPLETED|00:00:10|00:00.013|2|12704K|cpu=00:00:00,energy=0,fs/disk=45230,mem=12704K,pages=0,vmem=221172K
106.0|COMPLETED|00:00:10|00:02.646|2|502976K|cpu=00:00:01,energy=0,fs/disk=22698224,mem=502976K,pages=3,vmem=3201896K
"""


@pytest.fixture
def learnt_by_slurm(fresh):
    """A run with the files and submission records of training by job 105 and evaluation by job 106."""
    record(fresh, "train", [""], jobs=("105",), asks={"nodes": 2})
    record(fresh, "evaluate", [""], jobs=("106",))
    (fresh.path / "model").mkdir()
    (fresh.path / "model/model.json").write_text('{"weights_digest": "w"}')
    (fresh.path / "results").mkdir()
    (fresh.path / "results/miniature.json").write_text(
        '{"benchmark": "miniature", "provenance": {"weights_digest": "w"}}'
    )
    return fresh


def test_usage_of_training_and_evaluation_comes_from_accounting(learnt_by_slurm, slurm):
    slurm.says("sacct", RECORDED)
    train, evaluate = efficiency(learnt_by_slurm)
    assert train == {
        "stage": "train",
        "tasks": 1,
        "longest_task_seconds": 76.0,
        "cpu_share": round(51.503 / (76 * 4), 3),
        "gpu_share": None,
        "asked": {"memory": 1900 * 2**20, "time": "1:00:00", "cpus": 2, "nodes": 2},
        "peak_memory": 2063340 * 1024,
        "suggested": {"memory": "3G", "time_minutes": 7},
    }
    assert (evaluate["stage"], evaluate["peak_memory"]) == ("evaluate", 502976 * 1024)
    assert efficiency_lines([train], learnt_by_slurm) == [
        "train: 2 nodes",
        "  time: 76 s at most, of 1:00:00 requested",
        "  memory: 1.97 GiB of 1.86 GiB requested; CPUs: 17% of 2 used",
        f"  next time: magicseg submit train {learnt_by_slurm.path} --set slurm.stages.train.memory=3G "
        "--set slurm.stages.train.time=7",
    ]
    assert len(slurm.calls("sacct")) == 1
    assert efficiency(learnt_by_slurm, "evaluate") == [evaluate]


@pytest.mark.parametrize("accounting", ["missing", "disabled"])
def test_without_accounting_usage_of_training_and_evaluation_is_reported_as_unknown(
    learnt_by_slurm, slurm, accounting
):
    if accounting == "missing":
        slurm.lacks("sacct")
    else:
        slurm.fails("sacct", "Slurm accounting storage is disabled")
    report = efficiency(learnt_by_slurm)
    assert [(entry["stage"], entry["longest_task_seconds"], entry["peak_memory"]) for entry in report] == [
        ("train", None, None),
        ("evaluate", None, None),
    ]
    assert efficiency_lines(report, learnt_by_slurm) == [
        "train: 2 nodes; usage is unknown: this site has no accounting (sacct)",
        "evaluate: 1 node; usage is unknown: this site has no accounting (sacct)",
    ]


def test_jobs_that_have_not_run_are_not_reported(fresh, slurm):
    record(fresh, "train", [""], jobs=("105",))
    slurm.says("sacct", "105|PENDING|00:00:00|00:00:00|0||\n")
    assert efficiency(fresh) == []
    slurm.fails("sacct", "Slurm accounting storage is disabled")
    assert efficiency(fresh) == []


def test_no_time_limit_is_suggested_after_an_interrupted_training(learnt_by_slurm, slurm):
    slurm.says("sacct", RECORDED.replace("105|COMPLETED", "105|CANCELLED by 0"))
    train = efficiency(learnt_by_slurm)[0]
    assert train["suggested"] == {"memory": "3G", "time_minutes": None}
    assert "time=" not in efficiency_lines([train], learnt_by_slurm)[-1]


def test_gpu_utilisation_is_reported_if_the_site_records_it(done_by_slurm, slurm):
    usage = "cpu=00:00:40,gres/gpumem=8120M,gres/gpuutil={},mem=9000K"
    slurm.says(
        "sacct",
        f"101_0|COMPLETED|00:00:50|00:40.000|2||\n101_0.0|COMPLETED|00:00:50|00:40.000|2|9000K|{usage.format(80)}\n"
        f"101_1|COMPLETED|00:00:50|00:40.000|2||\n101_1.0|COMPLETED|00:00:50|00:40.000|2|9000K|{usage.format(60)}\n",
    )
    (entry,) = efficiency(done_by_slurm)
    assert entry["gpu_share"] == 0.7
    assert "GPUs: 70% used" in efficiency_lines([entry], done_by_slurm)[2]


def test_memory_of_tasks_with_a_caption_server_comes_from_accounting_alone(done_by_slurm, slurm):
    rewritten(done_by_slurm, peak_memory=GIB)
    (submission,) = submissions(done_by_slurm)
    submission.server_log_path("101_0").write_text("loading")
    (entry,) = efficiency(done_by_slurm)
    assert entry["peak_memory"] is None
    assert "memory=" not in efficiency_lines([entry], done_by_slurm)[-1]
    slurm.says("sacct", "101_0|COMPLETED|00:00:50|00:40.000|2||\n101_0.0|COMPLETED|00:00:50|00:40.000|2|20G|\n")
    (entry,) = efficiency(done_by_slurm)
    assert entry["peak_memory"] == 20 * GIB
    assert entry["suggested"]["memory"] == "25G"


@pytest.mark.parametrize(
    ("text", "size"),
    [("2063340K", 2063340 * 1024), ("1.50G", 3 * 2**29), ("0", 0), ("512", 512), ("", None), ("16?", None)],
)
def test_memory_is_parsed_in_every_unit_of_sacct(text, size):
    lines = f"7|RUNNING|1-00:00:05|1-02:00:00|8||\n7.0|RUNNING|1-00:00:05|1-02:00:00|8|{text}|\n"
    account = parse_usage(lines)["7"]
    assert account == TaskUsage(
        elapsed=86405.0, processor=93600.0, cpus=8, completed=False, peak_memory=size, gpu_share=None
    )


@given(st.text(alphabet="0123456789|:.-KMG_ab\n", max_size=200))
def test_parsing_arbitrary_sacct_output_raises_no_error(text):
    parse_usage(text)


@pytest.mark.parametrize("seconds", [0.0, 0.001, 1.0, 700.0, 10_000.0])
def test_suggested_shards_per_task_never_exceed_the_run_s_shards(done_by_slurm, slurm, seconds):
    rewritten(done_by_slurm, seconds=seconds)
    suggested = efficiency(done_by_slurm)[0]["suggested"]
    assert 1 <= suggested["shards_per_task"] <= done_by_slurm.plan.shards
    assert suggested["time_minutes"] * 60 > suggested["shards_per_task"] * seconds
    assert contiguous_groups(range(6), suggested["shards_per_task"])


@pytest.mark.parametrize("peak", [1, GIB - 1, GIB, 5 * GIB])
def test_suggested_values_have_headroom_and_form_a_valid_profile(done_by_slurm, slurm, peak):
    rewritten(done_by_slurm, peak_memory=peak)
    report = efficiency(done_by_slurm)
    assert bytes_of(report[0]["suggested"]["memory"]) >= peak * 1.25
    words = efficiency_lines(report, done_by_slurm)[-1].split()
    overrides = [word for word in words if word.startswith("slurm.")]
    assert len(overrides) == 2
    profile = load_profile("cpu", overrides)
    assert profile.resources("describe").memory == report[0]["suggested"]["memory"]
    assert profile.resources("describe").minutes == report[0]["suggested"]["time_minutes"]


def test_work_done_without_slurm_is_not_reported(fresh, slurm):
    do(fresh, "describe")
    assert efficiency(fresh) == []
    record(fresh, "describe", ["0-5"])
    assert efficiency(fresh) == []
    assert efficiency_lines([], fresh) == ["Slurm has done no work for this run yet"]


def test_the_report_can_be_limited_to_one_stage(done_by_slurm, slurm):
    assert efficiency(done_by_slurm, "mask") == []
    assert len(efficiency(done_by_slurm, "describe")) == 1


@given(st.integers(1, 10**6), st.sampled_from("KMGT"))
def test_sizes_are_read_as_slurm_reads_them(number, unit):
    assert bytes_of(f"{number}{unit}") == number * 1024 ** ("KMGT".index(unit) + 1)
    assert bytes_of(str(number)) == bytes_of(f"{number}M")
