"""Estimates, compared with the real cost of the run and with computed numbers."""

import dataclasses
import json

import pytest

from helpers.tiny_runs import change, do, make_run
from magicseg.core.errors import PlanMismatch
from magicseg.core.files import to_json
from magicseg.core.signals import StopFlag
from magicseg.core.text import size_text
from magicseg.estimate.measurements import pilot
from magicseg.estimate.run_estimate import estimate
from magicseg.estimate.wording import duration, hours_text, summary_lines, tasks_text
from magicseg.launch.profile import Profile
from magicseg.launch.profile_files import load_profile
from magicseg.run import STAGES, Run

GIB = 2**30


def data_files(run):
    """Return the store's data files and the commit records that are not compacted yet."""
    store = [path for path in (run.path / "dataset.zarr").rglob("*") if path.is_file() and path.name != "zarr.json"]
    return store, list((run.path / "ledger").glob("*/commits/*.json"))


def measure_as(run, *, start=None, **values):
    """Replace numbers in the run's commit records, and set a measured startup time."""
    starts = {}
    for stage in STAGES:
        ledger = run.ledger(stage)
        for shard, record in ledger.commits().items():
            ledger.take_back([shard])
            ledger.commit(dataclasses.replace(record, **values), run.fingerprints[stage])
        device = values.get("versions", {}).get("gpu", "CPU")
        starts[stage] = {
            "seconds": start,
            "device": device,
            "host": "n1",
            "fingerprint": run.fingerprints[stage].digest,
        }
    if start is not None:
        (run.path / "estimate.json").write_bytes(to_json({"starts": starts}))
    return run


@pytest.fixture
def one_done(fresh):
    """A run with one of six shards of each stage, measured as 10 seconds and 1 GiB after a startup of 5 seconds."""
    do(fresh, shards=[0])
    return measure_as(fresh, start=5.0, seconds=10.0, peak_memory=GIB)


def entries(report):
    return {entry["stage"]: entry for entry in report["stages"]}


def test_a_pilot_of_one_shard_predicts_the_run_s_cost(fresh):
    pilot(fresh, 1, gpu=lambda stage: None, report=lambda *_: None, stop=StopFlag())
    report = estimate(fresh, None)
    do(fresh)  # in this process, which does not compact records
    files, records = data_files(fresh)
    whole = report["total"]["whole"]
    assert whole["bytes"] == pytest.approx(sum(path.stat().st_size for path in files), rel=0.05)
    assert whole["files"] == len(files) + len(records)
    for stage, entry in entries(report).items():
        commits = fresh.ledger(stage).commits().values()
        assert entry["whole"]["kept"] == pytest.approx(sum(record.kept_count for record in commits), rel=0.05)
        assert entry["left"]["shards"] == 5
        assert entry["memory"]["peak"] > 10 * 2**20
    after = estimate(fresh, None)
    assert after["total"]["left"] == {"gpu_hours": 0.0, "cpu_hours": 0.0, "wall_seconds": 0.0, "bytes": 0, "files": 0}
    assert after["total"]["whole"]["bytes"] == sum(path.stat().st_size for path in files), "nothing left to guess"


def test_tasks_are_laid_out_as_submit_would(one_done):
    profile = Profile(parallel=2, cpus=4, shards_per_task=2, memory="8G")
    report = estimate(one_done, profile)
    for entry in report["stages"]:
        left = entry["left"]
        # Five shards in tasks of 2, 2 and 1, two tasks at a time.
        assert (left["tasks"], left["shards_per_task"]) == (3, 2)
        assert left["longest_task_seconds"] == 25.0
        assert left["wall_seconds"] == 25.0 + 15.0
        assert left["device_hours"] == pytest.approx((3 * 5 + 5 * 10) * 4 / 3600, abs=1e-6)
        assert entry["whole"]["wall_seconds"] == 50.0
        assert entry["unit"] == "CPU"
    assert report["total"]["left"]["wall_seconds"] == 3 * 40.0, "one stage after the other"
    assert report["total"]["left"]["cpu_hours"] == pytest.approx(3 * 65 * 4 / 3600, abs=1e-5)
    assert report["total"]["left"]["gpu_hours"] == 0.0


@pytest.mark.usefixtures("faulty")
def test_without_a_profile_a_stage_on_gpus_has_one_worker_per_visible_gpu(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4")  # a stand-in: there is no such device
    run = make_run(tmp_path / "run", "generate.backend=gpu-recorder", f"generate.options.log={tmp_path}")
    assert estimate(run, None)["parallel"] == 5
    assert estimate(run, None, parallel=2)["parallel"] == 2


def test_the_parallel_option_overrides_the_profile(one_done):
    profile = Profile(parallel=2, shards_per_task=1)
    assert estimate(one_done, profile, parallel=5)["stages"][0]["left"]["wall_seconds"] == 15.0
    assert estimate(one_done, profile, per_task=5)["stages"][0]["left"]["wall_seconds"] == 55.0
    # On this machine there is one process per worker, which starts once.
    assert estimate(one_done, None, parallel=1)["stages"][0]["left"]["wall_seconds"] == 5 + 50.0
    assert estimate(one_done, None, parallel=5)["parallel"] == 5


def test_work_on_a_gpu_is_counted_in_gpu_hours(fresh):
    do(fresh, shards=[0])
    measure_as(fresh, start=0.0, seconds=720.0, versions={"gpu": "Big GPU"}, peak_gpu_memory=7 * GIB)
    report = estimate(fresh, Profile(parallel=1, gpus=2, cpus=8, shards_per_task=5, time="10:00:00"))
    assert report["total"]["left"]["gpu_hours"] == pytest.approx(3 * 5 * 720 * 2 / 3600)
    assert report["total"]["left"]["cpu_hours"] == 0.0
    assert report["stages"][0]["peak_gpu_memory"] == 7 * GIB
    assert report["warnings"] == []
    line = summary_lines(report)[0]
    assert line.startswith("estimate: 5 shards of describe, 5 shards of generate, 5 shards of mask: 6 GPU-hours, ")
    assert "3 h 00 min with 1 at a time" in line


@pytest.mark.parametrize(
    ("asked", "gpus"),
    [
        ({"gpus": 2}, 2),
        ({"gres": "gpu"}, 1),
        ({"gres": "gpu:4"}, 4),
        ({"gres": "gpu:a100:3"}, 3),
        ({"gres": "gpu:a100"}, 1),
        ({"gres": "gpu:a100:2,gpu:v100:1,tmp:50G"}, 3),
    ],
)
@pytest.mark.parametrize("versions", [{"gpu": "Big GPU"}, {}])
def test_all_gpus_that_a_task_holds_are_counted(fresh, asked, gpus, versions):
    do(fresh, shards=[0])
    measure_as(fresh, start=0.0, seconds=720.0, versions=versions, job="101_0")
    report = estimate(fresh, Profile(parallel=1, cpus=8, shards_per_task=5, time="10:00:00", **asked))
    assert report["total"]["left"]["gpu_hours"] == pytest.approx(3 * 5 * 720 * gpus / 3600)
    assert report["total"]["left"]["cpu_hours"] == 0.0


def test_a_gpu_of_this_machine_is_not_counted_for_cpu_tasks(fresh):
    do(fresh, shards=[0])
    measure_as(fresh, start=0.0, seconds=720.0, versions={"gpu": "Big GPU"})
    profile = Profile(parallel=1, cpus=8, shards_per_task=5, time="10:00:00")
    left = estimate(fresh, profile)["total"]["left"]
    assert (left["gpu_hours"], left["cpu_hours"]) == (0.0, pytest.approx(3 * 5 * 720 * 8 / 3600))
    measure_as(fresh, start=0.0, seconds=720.0, versions={"gpu": "Big GPU"}, job="101_0")
    left = estimate(fresh, profile)["total"]["left"]
    assert (left["gpu_hours"], left["cpu_hours"]) == (pytest.approx(3 * 5 * 720 / 3600), 0.0), "the site gave one"


def test_a_short_last_shard_costs_less(tmp_path):
    run = make_run(tmp_path / "run", "plan.samples=88")
    do(run, "describe", shards=[0])
    measure_as(run, start=0.0, seconds=16.0)
    left = estimate(run, Profile(parallel=1, shards_per_task=1))["stages"][0]["left"]
    assert (left["shards"], left["samples"]) == (5, 72)
    assert left["wall_seconds"] == 72.0
    assert left["kept"] == 72


def test_several_shards_give_the_median_and_the_spread(finished):
    ledger = finished.ledger("mask")
    for shard, record in ledger.commits().items():
        ledger.take_back([shard])
        if shard < 3:
            ledger.commit(
                dataclasses.replace(record, seconds=[8.0, 16.0, 48.0][shard]), finished.fingerprints["mask"]
            )
    (entry,) = estimate(finished, Profile(parallel=1, shards_per_task=3), stages=["mask"])["stages"]
    assert entry["measured"]["shard_seconds"] == {"median": 16.0, "min": 8.0, "max": 48.0}
    assert entry["measured"]["start_seconds"] is None
    assert entry["left"]["wall_seconds"] == 48.0
    low, high = entry["left"]["device_hours_range"]
    assert (low, high) == (pytest.approx(24 / 3600, abs=1e-6), pytest.approx(144 / 3600, abs=1e-6))


def test_measurements_on_other_hardware_give_a_warning_with_a_command(one_done):
    profile = load_profile("gpu")
    report = estimate(one_done, profile, reference="gpu")
    (warning,) = report["warnings"]
    assert warning.startswith("describe, generate, mask: measured on CPU, but the profile requests a GPU")
    command = warning.split("measure there: ")[1]
    assert command.startswith("srun --partition=gpu --gpus-per-node=1 --cpus-per-task=8 --mem=48G ")
    assert command.endswith(f"magicseg estimate {one_done.path} --pilot 1 --profile gpu")
    assert estimate(one_done, load_profile("cpu"))["warnings"] == []
    measure_as(one_done, job="101_0", start=5.0)
    assert estimate(one_done, profile)["warnings"] == [], "made in a job, on what the job had"


def test_with_a_container_profile_the_suggested_pilot_runs_in_the_container(one_done):
    profile = load_profile("gpu", ["slurm.container.image=/images/magicseg.sif"])
    (warning,) = estimate(one_done, profile)["warnings"]
    assert (
        f"apptainer exec --nv --bind {one_done.path} /images/magicseg.sif python3 -P -m magicseg estimate" in warning
    )


def test_insufficient_memory_and_time_give_warnings_with_sufficient_values(one_done):
    profile = load_profile("cpu", ["slurm.memory=2G", "slurm.time=1", "slurm.shards_per_task=5"])
    measure_as(one_done, start=5.0, peak_memory=3 * GIB)
    texts = estimate(one_done, profile)["warnings"]
    assert len(texts) == 6
    assert all(": shards used 3 GiB of memory, but the profile requests 2 GiB: " in text for text in texts[1::2])
    assert all("a task of 5 shards takes longer than its time limit" in text for text in texts[::2])
    words = " ".join(texts).replace(",", "").split()
    mended = load_profile("cpu", [word for word in words if word.startswith("slurm.")] + ["slurm.shards_per_task=5"])
    assert estimate(one_done, mended)["warnings"] == []
    slow = measure_as(one_done, start=0.0, seconds=3000.0)
    assert "describe: one shard takes 50 min, but tasks are stopped after" in estimate(slow, profile)["warnings"][0]


def test_unmeasured_stages_are_in_no_sum(fresh):
    do(fresh, "describe", shards=[0])
    report = estimate(fresh, None)
    assert report["unmeasured"] == ["generate", "mask"]
    assert list(entries(report)) == ["describe"]
    assert "no estimate yet for generate, mask: magicseg estimate" in summary_lines(report)[-1]
    assert estimate(fresh, None, stages=["generate"])["stages"] == []


def test_training_is_estimated_from_its_log(one_done):
    assert estimate(one_done, None)["train"] is None
    change(one_done, "train.steps", 100)
    change(one_done, "train.batch_size", 10)
    run = Run.open(one_done.path)
    rows = [
        {"step": 10, "samples_per_second": 50.0},
        {"step": 20, "samples_per_second": 20.0},
        {"step": 30, "samples_per_second": 5.0},
    ]
    (run.path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 4')
    report = estimate(run, None, parallel=1)
    assert report["train"] == {
        "step": 30, "steps": 100, "samples_per_second": 20.0, "left_seconds": 35.0, "whole_seconds": 50.0,
    }  # fmt: skip
    assert report["total"]["left"]["wall_seconds"] == 3 * 55.0 + 35.0
    (run.path / "model").mkdir()
    (run.path / "model/model.json").write_text("{}")
    assert estimate(run, None)["train"]["left_seconds"] == 0.0


def test_shards_of_other_settings_are_refused(one_done):
    change(one_done, "describe.batch_size", 5)
    with pytest.raises(PlanMismatch, match=r"describe\.batch_size"):
        estimate(Run.open(one_done.path), None)


def test_numbers_are_short():
    assert [duration(value) for value in (0.25, 42, 200, 18_420, 300_000)] == [
        *("0.25 s", "42 s", "3 min 20 s", "5 h 07 min", "3 d 11 h"),
    ]
    assert [size_text(value) for value in (0, 999, 1_234_000, 5e12, 1e16)] == [
        "0 B",
        "999 B",
        "1.23 MB",
        "5 TB",
        "10,000 TB",
    ]
    assert [size_text(value, binary=True) for value in (1000, 1023.7, 3 * GIB, 1536 * 2**20)] == [
        *("1000 B", "1 KiB", "3 GiB", "1.5 GiB"),
    ]
    assert [hours_text(value) for value in (0.00123, 12.345, 12_345.6)] == ["0.00123", "12.3", "12,346"]
    assert [hours_text(value) for value in (6e-6, 0.0)] == ["<0.001", "0"]
    assert [tasks_text(*each) for each in ((3, 1), (3, 2), (0, 2))] == [
        "3, of 1 shard each", "3, of 2 shards each", "0",
    ]  # fmt: skip
