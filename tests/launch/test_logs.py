"""Finding the logs of tasks, the last lines of one, and following one to its end."""

import itertools
import threading
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.stand_ins import accounted, queued, record
from magicseg.core.errors import RunError
from magicseg.launch import logs
from magicseg.launch.logs import find_tasks, follow, last_lines
from magicseg.launch.queue_state import board_of


@pytest.fixture
def board(fresh, slurm):
    """Two submissions of describe, of which the first failed in part, and training that waits."""
    old = record(fresh, "describe", ["0-2", "3-5"], jobs=("101",))
    new = record(fresh, "describe", ["3-5"], jobs=("102",))
    train = record(fresh, "train", [""], jobs=("103",))
    slurm.says("sacct", accounted(old.arrays[0], "101_0", "COMPLETED") + accounted(old.arrays[0], "101_1", "TIMEOUT"))
    slurm.says(
        "squeue",
        queued(new.arrays[0], "N/A", "RUNNING", job="102") + queued(train.arrays[0], "N/A", "PENDING", job="103"),
    )
    for one, label in ((old, "101_0"), (old, "101_1"), (new, "102")):
        one.log_path(label).write_text(f"log of {label}\n")
    return board_of(fresh)


def found(board, **wanted):
    choice = {"stage": None, "shard": None, "label": None, "failed": False} | wanted
    return [task.label for task, path in find_tasks(board, **choice) if path.read_text()]


def test_all_logs_are_found_newest_last(board):
    assert found(board) == ["101_0", "101_1", "102"]


def test_logs_are_found_by_stage_by_shard_and_by_slurms_name(board):
    assert found(board, stage="describe") == ["101_0", "101_1", "102"]
    assert found(board, shard=1) == ["101_0"]
    assert found(board, shard=4) == ["101_1", "102"], "the task that had it last is last"
    assert found(board, label="101_1") == ["101_1"]


def test_failed_tasks_are_those_that_did_not_end_well(board):
    assert found(board, failed=True) == ["101_1"]


def test_a_task_that_has_not_started_has_no_log_yet(board):
    with pytest.raises(RunError, match="103 is pending") as caught:
        found(board, stage="train")
    assert "magicseg status" in caught.value.hint


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"label": "999"}, "no such task"),
        ({"label": "101"}, "no such task"),
        ({"shard": 77}, "no such task"),
        ({"stage": "mask"}, "no such task of mask"),
        ({"stage": "train", "failed": True}, "no task failed of train"),
    ],
)
def test_a_task_that_is_not_there_is_told_with_those_that_are(board, wanted, words):
    with pytest.raises(RunError, match=words) as caught:
        found(board, **wanted)
    assert "101_0, 101_1, 102, 103" in caught.value.hint


def test_a_run_without_jobs_says_how_to_get_some(fresh, slurm):
    with pytest.raises(RunError) as caught:
        find_tasks(board_of(fresh), stage=None, shard=None, label=None, failed=False)
    assert "magicseg submit" in caught.value.hint


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(st.characters(min_codepoint=32, max_codepoint=0x2000), max_size=30), max_size=30))
def test_last_lines_are_the_last_lines(tmp_path, lines):
    log = tmp_path / "log"
    log.write_bytes("".join(f"{line}\n" for line in lines).encode())
    expected = log.read_bytes().decode().splitlines()
    for count in (1, 5, 20):
        assert last_lines(log, count) == expected[-count:]


def test_of_a_log_with_a_huge_line_the_end_is_shown(tmp_path):
    log = tmp_path / "log"
    log.write_bytes(b"first\n" + b"x" * 100_000 + b"\xff\nlast\n")
    *_, huge, last = last_lines(log, 5)
    assert last == "last"
    assert huge.startswith("xxx")
    assert len(huge) < 3000


def test_a_log_is_followed_as_it_grows_until_its_task_has_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(logs, "_POLL_SECONDS", 0.01)
    log = tmp_path / "log"
    log.write_text("one\n")
    ended = threading.Event()

    def work():
        for word in ("two", "three"):
            time.sleep(0.1)
            with log.open("a") as file:
                file.write(f"{word}\n")
        ended.set()

    worker = threading.Thread(target=work)
    worker.start()
    text = "".join(follow(log, lambda: not ended.is_set()))
    worker.join()
    assert text == "one\ntwo\nthree\n"


def test_what_a_task_says_at_its_very_end_is_shown(tmp_path, monkeypatch):
    monkeypatch.setattr(logs, "_POLL_SECONDS", 0.01)
    log = tmp_path / "log"
    log.write_text("one\n")

    def is_active():
        with log.open("a") as file:
            file.write("last words\n")
        return False

    assert "".join(follow(log, is_active)) == "one\nlast words\n"


def test_the_queue_is_not_asked_at_every_look(tmp_path, monkeypatch):
    monkeypatch.setattr(logs, "_POLL_SECONDS", 0.005)
    log = tmp_path / "log"
    log.write_text("")
    asked = []

    def is_active():
        asked.append(time.monotonic())
        return len(asked) < 3

    list(follow(log, is_active))
    assert len(asked) == 3
    assert all(b - a >= 0.1 for a, b in itertools.pairwise(asked))
