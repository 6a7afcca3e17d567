"""An array task as a plain process: exit codes, log, reaction to signals."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import magicseg as package
from helpers.stand_ins import claim
from helpers.tiny_runs import do, make_run
from magicseg.launch import task as launch_task
from magicseg.run import Run
from magicseg.run.claims import STALE_SECONDS
from magicseg.run.digest import logical_digest
from magicseg.run.verify import inspect

CODE = "import json, sys; from magicseg.launch.task import run_task; run_task(**json.loads(sys.argv[1]))"


@pytest.fixture
def task(magicseg):
    """Start a task as submitit does: with plain values, in a separate process."""

    def start(run, stage, shards, *, version=package.__version__, delay=0.0, **variables):
        call = {"run": str(run.path), "stage": stage, "shards": shards, "version": version, "delay": delay}
        return subprocess.Popen(
            [sys.executable, "-c", CODE, json.dumps(call)],
            env=magicseg.environment | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start


def ended(process, before=""):
    """Wait for a task. Return its exit code and its whole log."""
    try:
        text, _ = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        text, _ = process.communicate()
        raise AssertionError(f"a task hangs: {before}{text}") from None
    assert "Traceback" not in text, text
    return process.returncode, before + text


def read_until(process, words):
    """Read a task's log up to a line that contains ``words``."""
    text = ""
    for line in process.stdout:
        text += line
        if words in line:
            return text
    raise AssertionError(f"{words!r} never came: {text}")


def until_it_listens(process):
    """Wait until a task handles SIGUSR2."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        status = Path(f"/proc/{process.pid}/status").read_text()
        if int(re.search(r"SigCgt:\s*(\w+)", status)[1], 16) >> (signal.SIGUSR2 - 1) & 1:
            return
        time.sleep(0.02)
    raise AssertionError("a task does not listen")


def events(text, outcome):
    return [int(shard) for shard in re.findall(rf"shard (\d+): {outcome}", text)]


@pytest.fixture
def slow(tmp_path, faulty):
    """A run whose captioner sleeps 0.2 s before each of the four batches of a shard."""
    return make_run(tmp_path / "slow", "describe.backend=faulty", "describe.options={seconds: 0.2}")


def test_a_task_completes_exactly_its_shards_and_exits_with_0(fresh, task):
    code, text = ended(task(fresh, "describe", "0-1,4", SLURM_ARRAY_JOB_ID="7", SLURM_ARRAY_TASK_ID="2"))
    assert code == 0, text
    commits = fresh.ledger("describe").commits()
    assert set(commits) == {0, 1, 4}
    assert {record.job for record in commits.values()} == {"7_2"}
    assert events(text, "committed") == [0, 1, 4]
    assert "3 of 3 shards" in text


@pytest.mark.slow
def test_a_task_with_two_gpus_does_its_shards_with_a_worker_on_each(tmp_path, faulty, task):
    (tmp_path / "log").mkdir()
    options = f"{{log: {tmp_path / 'log'}, kill_on: ['1']}}"
    run = make_run(tmp_path / "run", "generate.backend=gpu-recorder", f"generate.options={options}")
    do(run, "describe")
    job = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"}
    code, text = ended(task(run, "generate", "0-3", CUDA_VISIBLE_DEVICES="0,1", **job))
    assert code == 0, text
    assert "generate: 2 workers on GPUs 0-1\n" in text
    assert events(text, "died") == [2], "the worker on GPU 1 has the second half of the shards"
    assert sorted(events(text, "committed")) == [0, 1, 2, 3]
    assert {record.job for record in run.ledger("generate").commits().values()} == {"7_2"}
    lines = [json.loads(path.read_text().splitlines()[0]) for path in (tmp_path / "log").glob("worker-*")]
    assert {line["CUDA_VISIBLE_DEVICES"] for line in lines} == {"0", "1"}


def test_a_task_whose_shards_are_committed_does_nothing(fresh, task):
    do(fresh, "describe", shards=[0, 1])
    code, text = ended(task(fresh, "describe", "0-1"))
    assert code == 0
    assert events(text, "started") == []


def test_another_version_of_magicseg_does_not_touch_the_run(fresh, task):
    code, text = ended(task(fresh, "describe", "0-1", version="0.0.1"))
    assert code == 2
    assert "submitted by magicseg 0.0.1" in text
    assert package.__version__ in text
    assert "hint:  install the same version" in text
    assert fresh.ledger("describe").commits() == {}


def test_a_task_exits_with_2_if_settings_changed_after_submission(fresh, task):
    do(fresh, "describe", shards=[0])
    file = fresh.path / "magicseg.yaml"
    file.write_text(file.read_text().replace("seed: 0", "seed: 1", 1))
    code, text = ended(task(fresh, "describe", "0-1"))
    assert code == 2
    assert "hint:" in text


def test_a_task_exits_with_2_if_the_run_is_gone(fresh, task):
    (fresh.path / "magicseg.yaml").unlink()
    code, text = ended(task(fresh, "describe", "0-1"))
    assert code == 2
    assert "is not a run" in text


def test_a_task_without_its_input_exits_with_1_and_lists_its_missing_shards(fresh, task):
    code, text = ended(task(fresh, "generate", "2-3"))
    assert code == 1
    assert events(text, "blocked") == [2, 3]
    assert "2 shards of this task are not done: 2-3" in text


def test_a_shard_that_fails_is_noted_and_does_not_stop_the_others(tmp_path, faulty, task):
    at = list(range(16, 32))
    run = make_run(tmp_path / "run", "describe.backend=faulty", f"describe.options={{fault: raise, at: {at}}}")
    code, text = ended(task(run, "describe", "0-2"))
    assert code == 1
    assert set(run.ledger("describe").commits()) == {0, 2}
    assert set(run.ledger("describe").failures()) == {1}
    assert events(text, "failed") == [1]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGUSR2, 75), (signal.SIGUSR1, 75), (signal.SIGTERM, 1)])
def test_a_signal_during_work_leaves_complete_shards_and_no_claim(slow, task, number, code):
    process = task(slow, "describe", "0-5")
    text = read_until(process, "shard 1: started")
    process.send_signal(number)
    began = time.monotonic()
    found, text = ended(process, text)
    assert found == code, text
    assert time.monotonic() - began < 10
    ledger = slow.ledger("describe")
    assert set(ledger.commits()) == {0}
    assert events(text, "abandoned") == [1]
    assert ledger.claimed() == []
    assert ledger.failures() == {}
    assert ("has to run again" in text) == (code == 75)
    assert (inspect(slow).damage, inspect(slow).leftovers) == ([], [])


@pytest.mark.slow
def test_a_task_that_runs_again_after_a_warning_gives_the_same_data(tmp_path, faulty, task, expected_digest):
    slow = make_run(tmp_path / "slow", "describe.backend=faulty", "describe.options={seconds: 0.05}")
    process = task(slow, "describe", "0-5")
    text = read_until(process, "shard 2: started")
    process.send_signal(signal.SIGUSR2)
    assert ended(process, text)[0] == 75
    left = [shard for shard in range(6) if slow.ledger("describe").committed(shard) is None]
    code, text = ended(task(slow, "describe", "0-5", SLURM_RESTART_COUNT="1"))
    assert code == 0, text
    assert events(text, "started") == left
    do(slow, "generate", "mask")
    assert logical_digest(Run.open(slow.path)) == expected_digest


@pytest.mark.parametrize(("warned", "code"), [(True, 75), (False, 2)])
def test_an_error_after_the_warning_puts_the_task_back_into_the_queue(warned, code):
    with pytest.raises(SystemExit) as ending:
        launch_task._exit(launch_task._Signals(warned=warned), 2)
    assert ending.value.code == code


def test_a_warning_before_the_first_shard_ends_a_task_at_once(slow, task):
    process = task(slow, "describe", "0-5", delay=30.0)
    until_it_listens(process)
    process.send_signal(signal.SIGUSR2)
    code, text = ended(process)
    assert code == 75
    assert events(text, "started") == []


def test_sigcont_does_not_end_a_task(slow, task):
    process = task(slow, "describe", "0")
    text = read_until(process, "shard 0: started")
    process.send_signal(signal.SIGCONT)
    assert ended(process, text)[0] == 0


def test_shards_that_failed_or_killed_an_earlier_task_come_last(fresh, task):
    ledger = fresh.ledger("describe")
    ledger.fail(1, "WorkerDied", "task 7_0 ended while it was working on this shard")
    os.utime(claim(fresh, "describe", 0, "7_0"), (0, 0))
    code, text = ended(task(fresh, "describe", "0-3"))
    assert code == 0
    assert events(text, "started") == [2, 3, 0, 1]
    assert ledger.failures() == {}


def test_a_requeued_task_does_not_wait_for_its_own_claims(fresh, task):
    claim(fresh, "describe", 1, "7_2")  # recent, by an earlier start of this task
    began = time.monotonic()
    code, text = ended(
        task(fresh, "describe", "0-1", SLURM_ARRAY_JOB_ID="7", SLURM_ARRAY_TASK_ID="2", SLURM_RESTART_COUNT="1")
    )
    assert code == 0, text
    assert time.monotonic() - began < STALE_SECONDS / 4
    assert set(fresh.ledger("describe").commits()) == {0, 1}


def test_a_task_waits_for_a_shard_claimed_by_another_process_until_it_is_warned(fresh, task):
    claim(fresh, "describe", 0, "8_0")
    process = task(fresh, "describe", "0-1")
    text = read_until(process, "shard 0: busy")
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGUSR2)
    code, text = ended(process, text)
    assert code == 75
    assert set(fresh.ledger("describe").commits()) == {1}
    assert fresh.ledger("describe").claimed() == [0], "the other's claim stays"


def test_a_shard_that_another_process_releases_is_completed(fresh, task):
    path = claim(fresh, "describe", 0, "8_0")
    process = task(fresh, "describe", "0-1")
    text = read_until(process, "shard 0: busy")
    os.utime(path, (0, 0))
    code, text = ended(process, text)
    assert code == 0, text
    assert set(fresh.ledger("describe").commits()) == {0, 1}


@pytest.mark.slow
def test_evaluation_without_a_model_ends_with_1_and_a_hint(fresh, task):
    code, text = ended(task(fresh, "evaluate", ""))
    assert code == 1
    assert "magicseg train" in text
