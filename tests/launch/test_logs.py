"""Find the logs of tasks, read their last lines, and follow a log to its end."""

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
from magicseg.launch.queue_state import read_queue_state


@pytest.fixture
def queue(fresh, slurm):
    """Two submissions of describe, the first partly failed, and a pending training job."""
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
    return read_queue_state(fresh)


def found(queue, **wanted):
    choice = {"stage": None, "shard": None, "label": None, "failed": False} | wanted
    return [task.label for task, path in find_tasks(queue, **choice) if path.read_text()]


def test_all_logs_are_found_newest_last(queue):
    assert found(queue) == ["101_0", "101_1", "102"]


def test_logs_are_found_by_stage_by_shard_and_by_slurms_name(queue):
    assert found(queue, stage="describe") == ["101_0", "101_1", "102"]
    assert found(queue, shard=1) == ["101_0"]
    assert found(queue, shard=4) == ["101_1", "102"], "the task that had it last is last"
    assert found(queue, label="101_1") == ["101_1"]


def test_failed_shows_only_failed_tasks(queue):
    assert found(queue, failed=True) == ["101_1"]


def test_a_task_that_has_not_started_has_no_log_yet(queue):
    with pytest.raises(RunError, match="103 is pending") as caught:
        found(queue, stage="train")
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
def test_an_unknown_task_is_refused_with_a_list_of_known_tasks(queue, wanted, words):
    with pytest.raises(RunError, match=words) as caught:
        found(queue, **wanted)
    assert "101_0, 101_1, 102, 103" in caught.value.hint


def test_logs_of_a_run_without_jobs_suggest_submitting(fresh, slurm):
    with pytest.raises(RunError) as caught:
        find_tasks(read_queue_state(fresh), stage=None, shard=None, label=None, failed=False)
    assert "magicseg submit" in caught.value.hint


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(st.characters(min_codepoint=32, max_codepoint=0x2000), max_size=30), max_size=30))
def test_last_lines_returns_the_end_of_a_log(tmp_path, lines):
    log = tmp_path / "log"
    log.write_bytes("".join(f"{line}\n" for line in lines).encode())
    expected = log.read_bytes().decode().splitlines()
    for count in (1, 5, 20):
        assert last_lines(log, count) == expected[-count:]


def test_the_end_of_a_huge_line_is_shown(tmp_path):
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


def test_following_a_log_shows_the_task_s_last_output(tmp_path, monkeypatch):
    monkeypatch.setattr(logs, "_POLL_SECONDS", 0.01)
    log = tmp_path / "log"
    log.write_text("one\n")

    def is_active():
        with log.open("a") as file:
            file.write("last words\n")
        return False

    assert "".join(follow(log, is_active)) == "one\nlast words\n"


def test_following_a_log_does_not_query_the_queue_at_every_read(tmp_path, monkeypatch):
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
