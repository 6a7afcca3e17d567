"""SIGKILL, SIGTERM and Ctrl-C at any moment: commits are kept, and the same command resumes."""

import os
import random
import re
import signal
import time
from pathlib import Path

import psutil
import pytest
from kill_many import SLOW, check, disturb

from helpers.tiny_runs import make_run
from magicseg.run import STAGES
from magicseg.run.claims import is_live

pytestmark = [pytest.mark.usefixtures("faulty"), pytest.mark.slow]


@pytest.fixture
def slow(tmp_path):
    """Return a run of twelve slow shards."""
    return make_run(tmp_path / "run", *SLOW)


def wait_for(condition, seconds=60.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it never happened"
        time.sleep(0.02)


def at_work(run, stage):
    ledger = run.ledger(stage)
    return lambda: any(is_live(ledger.claim_path(shard)) for shard in ledger.claimed())


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_kills_at_random_moments_change_nothing(slow, expected_digest, seed):
    rng = random.Random(seed)
    kills = 0
    for stage in STAGES:
        kills += disturb(slow, stage, 8, rng).total()
    assert kills >= 6
    check(slow, expected_digest)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("whole_group", [True, False])
def test_a_stop_signal_ends_cleanly_and_the_same_command_resumes(
    magicseg, slow, expected_digest, number, whole_group
):
    for stage in STAGES:
        process = magicseg.start(stage, slow.path, "--workers", 2, "--shards-per-job", 2)
        wait_for(at_work(slow, stage))
        (os.killpg if whole_group else os.kill)(process.pid, number)
        result = magicseg.finish(process)
        assert result.code == 1, result
        assert f"interrupted: {slow.path}" in result.err
        assert f"hint:  magicseg {stage} {slow.path}" in result.err
        assert slow.ledger(stage).claimed() == []
        assert len(slow.ledger(stage).commits()) < 12
        assert magicseg.typed(f"magicseg {stage} {slow.path}").code == 0
    check(slow, expected_digest)


def test_workers_block_stop_signals_from_their_start(magicseg, slow):
    """Workers inherit the blocked signals from the fork server, and unblock SIGTERM when they are ready for it."""
    process = magicseg.start("describe", slow.path, "--workers", 2)
    wait_for(at_work(slow, "describe"))
    children = psutil.Process(process.pid).children(recursive=True)
    started = [child for child in children if "resource_tracker" not in " ".join(child.cmdline())]
    assert len(started) >= 2, "the fork server and a worker at work"
    deaf = {signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2}
    for child in started:
        (blocked,) = re.findall(r"SigBlk:\s+(\w+)", Path(f"/proc/{child.pid}/status").read_text())
        heard = {number for number in {*deaf, signal.SIGTERM} if not int(blocked, 16) >> number - 1 & 1}
        if child.ppid() == process.pid:
            assert heard == set(), "the fork server"
        else:
            assert heard <= {signal.SIGTERM}
    process.terminate()
    assert f"interrupted: {slow.path}" in magicseg.finish(process).err


def test_workers_whose_command_was_killed_stop_by_themselves(magicseg, slow):
    process = magicseg.start("describe", slow.path, "--workers", 2)
    wait_for(at_work(slow, "describe"))
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    magicseg.finish(process)
    wait_for(lambda: slow.ledger("describe").claimed() == [], 30)
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert alive == []


@pytest.mark.slow
def test_a_killed_command_does_not_block_the_next_command(magicseg, slow):
    process = magicseg.start("describe", slow.path, "--workers", 2)
    wait_for(at_work(slow, "describe"))
    os.killpg(process.pid, signal.SIGKILL)
    magicseg.finish(process)
    assert slow.ledger("describe").claimed() != []
    began = time.monotonic()
    assert magicseg("describe", slow.path, "--workers", 2).code == 0
    assert time.monotonic() - began < 30
