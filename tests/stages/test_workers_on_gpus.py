"""Workers on GPUs: each sees its own, deaths and lack of memory cost a slot, bytes stay the same.

No GPU is needed. The devices exist in ``CUDA_VISIBLE_DEVICES`` or in the output of a stand-in for nvidia-smi only,
and the back end raises torch's error for a lack of memory itself: both are fault injections.
"""

import json
import time
from collections import Counter

import pytest

from helpers.tiny_runs import do, make_run
from magicseg.run import Run
from magicseg.run.digest import logical_digest

pytestmark = pytest.mark.usefixtures("faulty")


@pytest.fixture
def started(tmp_path):
    """Return a function that makes a run whose captions are done, and whose generator records its GPU."""
    (tmp_path / "log").mkdir()

    def start(name="run", **options):
        sets = [f"generate.options.{key}={value}" for key, value in {"log": tmp_path / "log", **options}.items()]
        run = make_run(tmp_path / name, "generate.backend=gpu-recorder", "plan.shard_size=8", *sets)
        do(run, "describe")
        return run

    return start


@pytest.fixture
def records(tmp_path):
    """Return a function that reads the records of all batches."""

    def read():
        files = sorted((tmp_path / "log").glob("worker-*"))
        return [json.loads(line) for path in files for line in path.read_text().splitlines()]

    return read


def overlapping(batches):
    """Return whether two processes were at work on one device at the same time."""
    return any(
        one["pid"] != other["pid"] and one["from"] < other["to"] and other["from"] < one["to"]
        for one in batches
        for other in batches
    )


@pytest.mark.slow
def test_each_inherited_gpu_is_used_by_one_worker_at_a_time(magicseg, started, records):
    run = started(seconds=0.05)
    magicseg.environment["CUDA_VISIBLE_DEVICES"] = "4,MIG-1111,7"
    result = magicseg("generate", run.path, "--shards-per-job", 1)
    assert result.code == 0, result.err
    assert "  generate: 3 workers on GPUs 4,7,MIG-1111\n" in f"  {result.err}"
    batches = records()
    assert {batch["CUDA_VISIBLE_DEVICES"] for batch in batches} == {"4", "MIG-1111", "7"}
    assert not any(batch["torch"] for batch in batches), "torch was imported before the back end"
    for gpu in ("4", "MIG-1111", "7"):
        assert not overlapping([batch for batch in batches if batch["CUDA_VISIBLE_DEVICES"] == gpu])


@pytest.mark.slow
def test_workers_are_spread_evenly_over_the_gpus_of_nvidia_smi(magicseg, started, records, tmp_path):
    script = tmp_path / "bin" / "nvidia-smi"
    script.parent.mkdir()
    script.write_text('#!/bin/sh\nfor n in 0 1 2; do echo "GPU $n: NVIDIA H100 (UUID: GPU-$n)"; done\n')
    script.chmod(0o755)
    magicseg.environment["PATH"] = f"{script.parent}:{magicseg.environment['PATH']}"
    magicseg.environment.pop("CUDA_VISIBLE_DEVICES", None)
    result = magicseg("generate", started().path, "--gpus", "0,GPU-2", "--workers", 3)
    assert result.code == 0, result.err
    assert "generate: 3 workers on GPUs 0,2" in result.err
    used = Counter(gpu for gpu, _ in {(batch["CUDA_VISIBLE_DEVICES"], batch["pid"]) for batch in records()})
    assert used == {"0": 2, "2": 1}
    assert {batch["CUDA_DEVICE_ORDER"] for batch in records()} == {"PCI_BUS_ID"}


@pytest.mark.slow
def test_the_worker_that_replaces_a_dead_one_gets_its_gpu(magicseg, started, records):
    run = started(kill_on="['1']", seconds=0.05)
    magicseg.environment["CUDA_VISIBLE_DEVICES"] = "0,1"
    result = magicseg("generate", run.path)
    assert result.code == 0, result.err
    assert len(run.ledger("generate").commits()) == 12
    batches = records()
    assert {batch["CUDA_VISIBLE_DEVICES"] for batch in batches} == {"0", "1"}
    for gpu in "01":
        assert not overlapping([batch for batch in batches if batch["CUDA_VISIBLE_DEVICES"] == gpu])


@pytest.mark.slow
@pytest.mark.parametrize("at_start", ["true", "false"])
def test_out_of_memory_on_one_gpu_of_four_does_not_stop_the_others(magicseg, started, records, at_start):
    run = started(full="['2']", full_at_start=at_start)
    magicseg.environment["CUDA_VISIBLE_DEVICES"] = "0,1,2,3"
    result = magicseg("generate", run.path)
    assert result.code == 0, result.err
    assert result.err.count("CUDA out of memory") == 1
    (line,) = [line for line in result.err.splitlines() if "CUDA out of memory" in line]
    assert "generate: a worker on GPU 2 stopped, the others do its shards: " in line
    assert ("check generate.options" if at_start == "true" else "set generate.batch_size to 8") in result.err
    assert {batch["CUDA_VISIBLE_DEVICES"] for batch in records()} == {"0", "1", "3"}
    assert len(run.ledger("generate").commits()) == 12


@pytest.mark.slow
def test_out_of_memory_on_every_gpu_stops_the_stage_with_the_setting_to_change(magicseg, started):
    run = started(full="['0', '1']")
    magicseg.environment["CUDA_VISIBLE_DEVICES"] = "0,1"
    result = magicseg("generate", run.path)
    assert result.code == 2
    assert "error: generate.batch_size is 16: the device is out of memory: CUDA out of memory." in result.err
    assert "hint:  set generate.batch_size to 8" in result.err
    assert run.ledger("generate").claimed() == []


@pytest.mark.slow
def test_the_number_of_gpus_changes_no_byte_and_no_fingerprint(magicseg, started):
    digests = set()
    for name, gpus in (("one", "0"), ("four", "0,1,2,3")):
        run = started(name)
        magicseg.environment["CUDA_VISIBLE_DEVICES"] = gpus
        for stage in ("generate", "mask"):
            assert magicseg(stage, run.path).code == 0
        run = Run.open(run.path)
        digests.add((logical_digest(run), run.fingerprints["mask"].digest))
    assert len(digests) == 1


@pytest.mark.slow
def test_status_shows_who_works_on_which_gpu(magicseg, started):
    run = started(seconds=2)
    magicseg.environment["CUDA_VISIBLE_DEVICES"] = "0,3"
    process = magicseg.start("generate", run.path)
    until = time.monotonic() + 60
    workers = []
    while len(workers) < 2:
        assert time.monotonic() < until, workers
        workers = json.loads(magicseg("status", run.path, "--json").out)["workers"]
    assert {worker["gpu"] for worker in workers} == {"0", "3"}
    assert {tuple(worker) for worker in workers} == {("stage", "gpu", "host", "shard")}
    assert "generate: 2 workers on " in magicseg("status", run.path).out
    process.terminate()
    magicseg.finish(process)
    assert json.loads(magicseg("status", run.path, "--json").out)["workers"] == []


def test_a_gpu_that_is_not_inherited_is_refused(magicseg, started):
    run = started()
    magicseg.environment["CUDA_VISIBLE_DEVICES"] = "2,3"
    result = magicseg("generate", run.path, "--gpus", "0")
    assert result.code == 2
    assert "--gpus: CUDA_VISIBLE_DEVICES does not list GPU 0: it lists 2,3" in result.err
