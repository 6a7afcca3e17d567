"""The pool of worker processes: deaths, pieces, two commands at once."""

import resource
import subprocess
import sys

import pytest

from helpers.tiny_runs import TINY, make_run
from magicseg.run import Run
from magicseg.run.digest import logical_digest


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "per_job"), [(1, 6), (3, 1)])
def test_workers_and_shards_per_job_change_no_byte(magicseg, fresh, expected_digest, workers, per_job):
    for stage in ("describe", "generate", "mask"):
        result = magicseg(stage, fresh.path, "--workers", workers, "--shards-per-job", per_job)
        assert result.code == 0, result.err
        assert "96/96 samples" in result.err
    assert magicseg("digest", fresh.path).out.strip() == expected_digest
    assert list((fresh.path / "ledger/mask/commits").iterdir()) == [], "a whole stage is compacted"


@pytest.mark.slow
def test_pieces_in_any_order_make_the_whole(magicseg, fresh, expected_digest):
    for stage in ("describe", "generate", "mask"):
        for piece in ("4-5,0", "3", "0-3"):
            assert magicseg(stage, fresh.path, "--shards", piece, "--workers", 2).code == 0
        assert set(fresh.ledger(stage).commits()) == set(range(6))
    assert logical_digest(Run.open(fresh.path)) == expected_digest


@pytest.mark.slow
def test_two_commands_at_once_share_the_work_and_both_succeed(magicseg, finished, expected_digest):
    finished.reset("generate")
    first, second = (magicseg.start("generate", finished.path, "--workers", 2, "--shards-per-job", 1) for _ in "ab")
    results = [magicseg.finish(first), magicseg.finish(second)]
    assert [result.code for result in results] == [0, 0], results
    assert finished.ledger("generate").claimed() == []
    assert len(finished.ledger("generate").commits()) == 6
    assert magicseg("mask", finished.path).code == 0
    assert logical_digest(Run.open(finished.path)) == expected_digest


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "cause"), [("kill", "SIGKILL"), ("exit", "exit code 3")])
def test_a_shard_at_which_workers_die_is_failed_and_the_others_are_done(magicseg, tmp_path, fault, cause):
    run = tmp_path / "run"
    sets = [f"describe.options.fault={fault}", "describe.options.at=[20]", "describe.backend=faulty"]
    assert magicseg("init", run, "--preset", "painted", *_sets(*sets)).code == 0
    result = magicseg("describe", run, "--workers", 2, "--shards-per-job", 3)
    assert result.code == 1
    assert "1 shards of describe are not done: 1" in result.err
    assert f"3 workers died at it, the last by {cause}" in result.err
    assert f"hint:  magicseg describe {run}" in result.err
    status = magicseg("status", run, "--json")
    assert '"failed": 1' in status.out
    assert '"committed": 5' in status.out


def test_what_the_stage_before_has_not_done_is_what_the_hint_asks_for(magicseg, fresh):
    result = magicseg("mask", fresh.path)
    assert result.code == 1
    assert "needs generate, which has not done it" in result.err
    assert f"hint:  magicseg describe {fresh.path}" in result.err


def test_a_back_end_that_cannot_start_is_told_once(magicseg, tmp_path):
    run = tmp_path / "run"
    sets = ["describe.backend=faulty", "describe.options.fault=start"]
    assert magicseg("init", run, "--preset", "painted", *_sets(*sets)).code == 0
    result = magicseg("describe", run, "--workers", 2)
    assert result.code == 2
    assert result.err.count("no such device") == 1


def _sets(*more):
    return [word for pair in (*TINY, *more) for word in ("--set", pair)]


def test_too_few_open_files_are_told_in_one_sentence(magicseg, tmp_path):
    run = make_run(tmp_path / "run", "plan.shard_size=4")
    ended = subprocess.run(
        [sys.executable, "-m", "magicseg", "describe", str(run.path), "--workers", "24"],
        env=magicseg.environment,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (48, 48)),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    assert "error: no process can be started: Too many open files, of 48 allowed" in ended.stderr
    assert "ulimit -n" in ended.stderr
