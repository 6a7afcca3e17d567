"""Full and read-only disks: an error message, no incomplete commits, and resumption when there is space."""

import contextlib
import subprocess

import pytest

from helpers.tiny_runs import make_run
from magicseg.run import STAGES
from magicseg.run.verify import inspect


def fill(folder, *, leave=0):
    filler = folder / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)
    with filler.open("r+b") as file:
        file.truncate(max(0, filler.stat().st_size - leave))
    return filler


def remount(folder, how):
    subprocess.run(["mount", "-o", f"remount,{how}", str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "leave"), [("describe", 0), ("generate", 12_288), ("generate", 81_920), ("mask", 0)]
)
def test_a_full_disk_is_an_error_and_commits_nothing_incomplete(magicseg, small_disk, expected_digest, stage, leave):
    run = make_run(small_disk / "run")
    for name in STAGES[: STAGES.index(stage)]:
        assert magicseg(name, run.path).code == 0
    filler = fill(small_disk, leave=leave)
    result = magicseg(stage, run.path, "--workers", 2)
    if result.code == 0:
        assert leave > 0
    else:
        assert result.code == 1, result
        assert "No space left on device" in result.err
        assert f"magicseg {stage} {run.path}" in result.err or "free some space" in result.err
    assert inspect(run).sound
    filler.unlink()
    for name in STAGES[STAGES.index(stage) :]:
        again = magicseg(name, run.path)
        assert again.code == 0, again
    assert magicseg("digest", run.path).out.strip() == expected_digest


@pytest.mark.parametrize("leave", [0, 20_480])
def test_a_run_that_does_not_fit_on_the_disk_is_not_created_and_can_be_created_later(magicseg, small_disk, leave):
    filler = fill(small_disk, leave=leave)
    result = magicseg("init", small_disk / "run", "--preset", "painted", "--set", "plan.samples=100000")
    assert result.code == 1, result
    assert "No space left on device" in result.err
    assert magicseg("status", small_disk / "run").code == 2
    filler.unlink()
    assert magicseg("init", small_disk / "run", "--preset", "painted", "--set", "plan.samples=100000").code == 0


def test_an_export_to_a_full_disk_leaves_no_file(magicseg, small_disk, finished):
    out = small_disk / "data.h5"
    filler = fill(small_disk, leave=65_536)
    result = magicseg("export", finished.path, "--out", out)
    assert result.code == 1, result
    assert "hint" in result.err
    assert list(small_disk.iterdir()) == [filler]


@pytest.mark.slow
def test_a_read_only_run_can_be_read_and_refuses_work(magicseg, small_disk, expected_digest):
    run = make_run(small_disk / "run")
    for stage in STAGES[:2]:
        assert magicseg(stage, run.path).code == 0
    remount(small_disk, "ro")
    for command in ("status", "verify", "describe", "generate"):
        result = magicseg(command, run.path)
        assert result.code == 0, (command, result)
    result = magicseg("mask", run.path)
    assert result.code == 1
    assert "Read-only file system" in result.err
    for arguments in (["reset", "generate", run.path, "--yes"], ["init", small_disk / "b", "--preset", "painted"]):
        result = magicseg(*arguments)
        assert result.code == 1, result
        assert "Read-only file system" in result.err
    remount(small_disk, "rw")
    assert magicseg("mask", run.path).code == 0
    assert magicseg("digest", run.path).out.strip() == expected_digest


def test_a_read_only_run_with_a_claim_of_another_machine_still_has_a_status(magicseg, small_disk):
    run = make_run(small_disk / "run")
    run.ledger("describe").claim_path(0).write_text('{"namespace": "elsewhere"}')
    remount(small_disk, "ro")
    assert magicseg("status", run.path, "--json").code == 0
    remount(small_disk, "rw")
