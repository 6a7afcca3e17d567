"""The output of ``magicseg estimate``."""

import json
import math

import pytest

from helpers.tiny_runs import change, make_run
from magicseg.run import STAGES
from magicseg.stages.placement import default_workers
from magicseg.stages.pool import default_shards_per_job


@pytest.mark.slow
def test_without_finished_shards_it_suggests_a_pilot_and_that_command_works(magicseg, fresh):
    nothing = magicseg("estimate", fresh.path)
    assert nothing.code == 1
    assert nothing.err.splitlines()[-1] == f"hint:  magicseg estimate {fresh.path} --pilot 1"
    shown = magicseg.typed(nothing.err.splitlines()[-1].removeprefix("hint:  "))
    assert shown.code == 0, shown.err
    assert [line for line in shown.err.splitlines() if line.startswith("pilot:")] == [
        f"pilot: {stage} shard 0, 16 samples" for stage in STAGES
    ]
    each = default_shards_per_job(5, default_workers())
    tasks = f"{math.ceil(5 / each)}, of {each} shard{'s' if each > 1 else ''} each"
    for words in ("describe", "CPU-hours", "wall time", "start of a task", tasks, "left: ", "the whole plan: "):
        assert words in shown.out
    assert "not included: training" in shown.out
    assert "by 1 shard of describe and of generate and of mask on " in shown.out
    report = json.loads(magicseg("estimate", fresh.path, "--json", "--parallel", 3).out)
    assert report["parallel"] == 3
    assert [entry["left"]["shards"] for entry in report["stages"]] == [5, 5, 5]
    assert magicseg("status", fresh.path).code == 0
    assert magicseg("verify", fresh.path).code == 0


def test_the_profile_comes_from_the_option_the_run_or_the_environment(magicseg, finished, tmp_path):
    def parallel(*options):
        return json.loads(magicseg("estimate", finished.path, "--json", *options).out)["parallel"]

    for name, number in (("option", 7), ("of-run", 8), ("environment", 9)):
        (tmp_path / f"{name}.yaml").write_text(f"parallel: {number}\n")
    magicseg.environment["MAGICSEG_PROFILE"] = "environment.yaml"
    assert parallel() == 9
    change(finished, "slurm.profile", str(tmp_path / "of-run.yaml"))
    assert parallel() == 8
    assert parallel("--profile", "option.yaml") == 7
    assert parallel("--profile", "option.yaml", "--parallel", 3) == 3


@pytest.mark.slow
def test_in_a_job_measurements_from_other_hardware_do_not_count(magicseg, fresh):
    """For example, the first pilot ran on a login node and the second pilot runs on a node with a GPU."""

    def measure():
        result = magicseg("estimate", fresh.path, "--pilot", 1, "--profile", "gpu", "--json")
        assert result.code == 0, result.err
        return json.loads(result.out)

    first = magicseg("estimate", fresh.path, "--pilot", 1, "--profile", "gpu")
    assert first.err.splitlines()[0].startswith("pilot: on this machine; to run it on a node of the profile: srun ")
    for _ in range(2):
        report = measure()
        assert "measured on CPU, but the profile requests a GPU" in report["warnings"][0]
        assert {entry["left"]["shards"] for entry in report["stages"]} == {5}, "outside of jobs it does not matter"
    magicseg.environment["SLURM_JOB_ID"] = "77"
    for _ in range(2):
        report = measure()
        assert report["warnings"] == []
        assert {entry["left"]["shards"] for entry in report["stages"]} == {4}
        assert {entry["measured"]["shards"] for entry in report["stages"]} == {1}, "only what was made there counts"


def test_an_imported_run_has_no_measurements_and_no_work_left(magicseg, finished, tmp_path):
    assert magicseg("export", finished.path, "--out", tmp_path / "all.h5").code == 0
    copy = make_run(tmp_path / "copy")
    assert magicseg("import", tmp_path / "all.h5", "--into", copy.path).code == 0
    result = magicseg("estimate", copy.path, "--pilot", 1)
    assert result.code == 0, result.err
    assert "nothing is left" in result.err


def test_invalid_options_exit_with_2_and_a_hint(magicseg, fresh, tmp_path):
    for arguments in (["nowhere"], [fresh.path, "--profile", "nosuch"]):
        result = magicseg("estimate", *arguments)
        assert result.code == 2
        assert "hint:" in result.err
    assert magicseg("estimate", fresh.path, "--pilot", "-1").code == 2
    assert list((fresh.path / "ledger").glob("*/commits/*")) == []
