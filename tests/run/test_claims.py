"""Claims: one writer per shard, and claims of dead processes are taken over."""

import contextlib
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import time

import pytest

from magicseg.run.claims import STALE_SECONDS, Claimant, claimant, claiming_job, is_live, try_claim


@pytest.fixture
def path(tmp_path):
    return tmp_path / "00000001.json"


def foreign(path, *, age, empty=False):
    path.write_text("" if empty else json.dumps({"token": "t", "pid": 1, "started": 0.0, "namespace": "elsewhere"}))
    touched = time.time() - age
    os.utime(path, (touched, touched))


def in_a_child(path, ending):
    code = (
        "import os, signal, sys, time; from pathlib import Path; from magicseg.run.claims import try_claim\n"
        f"claim = try_claim(Path({str(path)!r})); claim.__enter__(); print('claimed', flush=True); {ending}"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "claimed\n"
    return child


def test_a_claim_is_removed_on_release(path):
    with try_claim(path) as claim:
        assert claim is not None
        assert is_live(path)
        assert try_claim(path) is None
    assert not path.exists()
    assert not is_live(path)


def test_a_claim_of_a_living_process_is_respected_however_old_it_looks(path):
    child = in_a_child(path, "sys.stdin.read()")
    try:
        os.utime(path, (0, 0))
        assert is_live(path)
        assert try_claim(path) is None
    finally:
        child.communicate()


def test_the_claim_of_a_killed_process_is_taken_over_at_once(path):
    child = in_a_child(path, "os.kill(os.getpid(), signal.SIGKILL)")
    child.wait()
    assert path.exists()
    began = time.monotonic()
    with try_claim(path) as claim:
        assert claim is not None
    assert time.monotonic() - began < 5


def test_the_claim_of_a_zombie_is_taken_over(path):
    child = in_a_child(path, "os.kill(os.getpid(), signal.SIGKILL)")
    time.sleep(0.2)  # the child is dead but not reaped
    assert not is_live(path)
    child.wait()


def test_a_process_that_reuses_a_dead_owners_pid_is_not_the_owner(path):
    child = in_a_child(path, "sys.stdin.read()")
    data = json.loads(path.read_text())
    path.write_text(json.dumps(data | {"started": data["started"] - 1000}))
    assert not is_live(path)
    child.communicate()


def test_a_foreign_claim_is_stale_by_its_age(path):
    foreign(path, age=STALE_SECONDS / 2)
    assert try_claim(path) is None
    foreign(path, age=STALE_SECONDS * 2)
    with try_claim(path) as claim:
        assert claim is not None
        assert json.loads(path.read_text())["pid"] == os.getpid()


def test_an_empty_claim_holds_a_shard_only_shortly(path):
    foreign(path, age=0, empty=True)
    assert try_claim(path) is None
    foreign(path, age=STALE_SECONDS, empty=True)
    assert not is_live(path)


def test_a_claim_that_was_taken_over_is_not_removed_by_its_old_owner(path):
    with try_claim(path):
        foreign(path, age=0)
    assert json.loads(path.read_text())["namespace"] == "elsewhere"


def test_claims_leave_no_other_files_in_the_folder(path):
    foreign(path, age=STALE_SECONDS * 2)
    with try_claim(path):
        pass
    assert list(path.parent.iterdir()) == []


def _race(path, start, results):
    start.wait()
    claim = try_claim(path)
    results.put(claim is not None)
    start.wait()  # hold the claim while the others try


@pytest.mark.parametrize("stale", [False, True])
def test_one_of_several_simultaneous_claimants_gets_the_claim(path, stale):
    context = multiprocessing.get_context("fork")
    for _ in range(5):
        path.unlink(missing_ok=True)
        if stale:
            foreign(path, age=STALE_SECONDS * 2)
        start, results = context.Barrier(4), context.Queue()
        racers = [context.Process(target=_race, args=(path, start, results)) for _ in range(4)]
        for racer in racers:
            racer.start()
        got = [results.get(timeout=30) for _ in racers]
        for racer in racers:
            racer.join()
        assert sum(got) == 1


def test_a_full_disk_leaves_no_empty_claim(small_disk):
    with contextlib.suppress(OSError), (small_disk / "filler").open("wb", buffering=0) as filler:
        while True:
            filler.write(b"x" * 4096)
    with pytest.raises(OSError, match="No space"):
        try_claim(small_disk / "claim")
    assert not (small_disk / "claim").exists()


@pytest.fixture
def in_slurm(monkeypatch):
    """Return a function that sets the environment of a requeued Slurm task."""

    def become(job, restarts):
        array, _, index = job.partition("_")
        for name, value in (
            ("SLURM_ARRAY_JOB_ID", array if index else ""),
            ("SLURM_ARRAY_TASK_ID", index),
            ("SLURM_JOB_ID", array),
            ("SLURM_RESTART_COUNT", restarts),
        ):
            monkeypatch.delenv(name, raising=False)
            if value:
                monkeypatch.setenv(name, value)

    become("", "")
    return become


def left_by(path, job, restarts):
    """Write a recent claim of another machine."""
    data = {"token": "t", "pid": 1, "started": 0.0, "namespace": "elsewhere", "job": job, "restarts": restarts}
    path.write_text(json.dumps(data))


@pytest.mark.parametrize("job", ["123_4", "123"])
def test_a_claim_of_the_same_job_before_it_went_back_into_the_queue_is_taken_over_at_once(path, in_slurm, job):
    left_by(path, job, 0)
    in_slurm(job, "1")
    assert not is_live(path)
    with try_claim(path) as claim:
        assert claim is not None
        assert json.loads(path.read_text()) | {"job": job, "restarts": 1} == json.loads(path.read_text())


@pytest.mark.parametrize(
    ("job", "restarts", "own", "own_restarts"),
    [
        ("123_4", 1, "123_4", "1"),  # another node of the same job
        ("123_4", 2, "123_4", "1"),  # the same job after a later requeue
        ("123_4", 0, "123_5", "1"),  # another task of the array
        ("123_4", 0, "999_4", "3"),
        ("123", 0, "123_4", "3"),
        ("", 0, "", ""),  # without a job
        ("", 0, "", "3"),
        ("123_4", 0, "123_4", "many"),
        ("123_4", None, "123_4", ""),
    ],
)
def test_a_claim_of_any_other_job_is_respected_while_it_is_young(path, in_slurm, job, restarts, own, own_restarts):
    left_by(path, job, restarts)
    in_slurm(own, own_restarts)
    assert is_live(path)
    assert try_claim(path) is None
    os.utime(path, (0, 0))
    assert not is_live(path)


def test_a_claim_records_its_job(path, in_slurm):
    assert claiming_job(path) == ""
    for job in ("123_4", "123", ""):
        in_slurm(job, "")
        with try_claim(path):
            assert claiming_job(path) == job


def test_a_claim_records_host_and_gpu_and_older_claims_have_no_gpu(path):
    assert claimant(path) is None
    with try_claim(path, gpu="MIG-1"):
        assert claimant(path) == Claimant(socket.gethostname(), "MIG-1")
    with try_claim(path):
        assert claimant(path) == Claimant(socket.gethostname(), None)
    foreign(path, age=0)
    assert claimant(path) == Claimant("", None)
