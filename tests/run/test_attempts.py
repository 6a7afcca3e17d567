"""Attempts: an image that killed a process is skipped and named; interrupts and live processes are no such case."""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from magicseg.run.attempts import Attempts
from magicseg.stages.mask.image_labelling import label_images

CODE = """
import os, signal, sys
from pathlib import Path
import numpy as np
from magicseg.core.signals import StopFlag, on_signals
from magicseg.stages.mask.image_labelling import label_images
from magicseg.run.attempts import forget_attempts

folder, out, *numbers = sys.argv[1:]

def label(image):
    if image.shape[0] == 50:
        for number in numbers:
            os.kill(os.getpid(), int(number))
    return np.zeros(image.shape[:2], np.uint16), {}

files = {path.name: path for path in sorted(Path(folder).iterdir())}
with on_signals(StopFlag(), then=forget_attempts) as stop:
    label_images(
        files, Path(out), "record.jsonl", {}, lambda: label, classes=1, relief="give less", should_stop=stop
    )
"""


def images(folder, heights):
    folder.mkdir()
    for name, height in heights.items():
        Image.fromarray(np.zeros((height, 30, 3), np.uint8)).save(folder / name)
    return folder


def killed_by(folder, out, *numbers):
    """Label images in a process that sends itself signals at the image of 50 rows. Returns: its exit code."""
    words = [sys.executable, "-c", CODE, str(folder), str(out), *(str(int(number)) for number in numbers)]
    return subprocess.run(words, check=False, capture_output=True).returncode


def labelled(folder, out):
    """Label images in this process. Returns: the message of each image, and the heights of processed images."""
    seen = []

    def label(image):
        seen.append(image.shape[0])
        return np.zeros(image.shape[:2], np.uint16), {}

    files = {path.name: path for path in sorted(Path(folder).iterdir())}
    done = label_images(files, out, "record.jsonl", {}, lambda: label, classes=1, relief="give less")
    return {one.name: one.entry for one in done}, seen


def test_an_image_that_killed_a_process_is_skipped_by_name_until_its_attempt_is_removed(tmp_path):
    folder, out = images(tmp_path / "in", {"a.png": 20, "b.png": 50, "c.png": 30}), tmp_path / "out"
    assert killed_by(folder, out, signal.SIGKILL) == -signal.SIGKILL
    for expected in ([30], []):  # each time, a is finished and b is skipped
        entries, seen = labelled(folder, out)
        assert seen == expected
        assert [entry["status"] for entry in entries.values()] == ["kept", "failed", "kept"]
        assert entries["b.png"]["reason"] == "killed"
    lines = [json.loads(line) for line in (out / "record.jsonl").read_text().splitlines()[1:]]
    assert [line["image"] for line in lines if line["status"] == "failed"] == ["b.png", "b.png"]
    words = shlex.split(entries["b.png"]["detail"].partition("try it again: ")[2])
    subprocess.run(words, check=True)
    assert labelled(folder, out)[1] == [50]
    assert not (out / "attempts").exists()


def test_a_replaced_image_is_attempted_again(tmp_path):
    folder, out = images(tmp_path / "in", {"a.png": 50}), tmp_path / "out"
    killed_by(folder, out, signal.SIGKILL)
    Image.fromarray(np.zeros((25, 30, 3), np.uint8)).save(folder / "a.png")
    entries, seen = labelled(folder, out)
    assert seen == [25]
    assert entries["a.png"]["status"] == "kept"


@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupt_leaves_no_attempt_even_if_a_kill_follows(tmp_path, asked):
    folder, out = images(tmp_path / "in", {"a.png": 50}), tmp_path / "out"
    assert killed_by(folder, out, asked, signal.SIGKILL) == -signal.SIGKILL
    entries, seen = labelled(folder, out)
    assert seen == [50]
    assert entries["a.png"]["status"] == "kept"


def test_an_error_leaves_no_attempt(tmp_path):
    with Attempts(tmp_path) as attempts, contextlib.suppress(ZeroDivisionError), attempts.on("a", "1"):
        assert len(list((tmp_path / "attempts").iterdir())) == 1
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_the_attempt_of_a_live_process_is_respected(tmp_path):
    code = (
        "import sys; from pathlib import Path; from magicseg.run.attempts import Attempts\n"
        "with Attempts(Path(sys.argv[1])) as attempts, attempts.on('a', '1'): print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        other.stdout.readline()
        assert Attempts(tmp_path).killed("a", "1") is None
        other.kill()
        other.wait()
    left = Attempts(tmp_path).killed("a", "1")
    assert json.loads(left.read_bytes())["image"] == "a"
    assert Attempts(tmp_path).killed("a", "2") is None
    assert Attempts(tmp_path).killed("b", "1") is None


def test_processes_of_another_machine_live_as_long_as_they_touch_their_attempt(tmp_path):
    with Attempts(tmp_path) as attempts, attempts.on("a", "1"):
        (path,) = (tmp_path / "attempts").iterdir()
        content = path.read_bytes()
    path.parent.mkdir()
    path.write_text(json.dumps(json.loads(content) | {"namespace": "elsewhere"}))
    assert Attempts(tmp_path).killed("a", "1") is None
    os.utime(path, (1, 1))
    assert Attempts(tmp_path).killed("a", "1") == path


def test_an_ending_process_does_not_remove_the_folder_of_a_starting_process(tmp_path):
    def work(_):
        for number in range(100):
            with Attempts(tmp_path) as attempts, attempts.on(f"{number}.png", "1"):
                pass

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(4))) == [None] * 4
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"[]", b'{"item": 5}', b'{"item": "\x00', b'{"pid": -1}', b"[" * 9000])
def test_files_that_are_not_attempts_are_ignored(tmp_path, content):
    (tmp_path / "attempts").mkdir()
    (tmp_path / "attempts" / "x.json").write_bytes(content)
    os.utime(tmp_path / "attempts" / "x.json", (1, 1))
    with Attempts(tmp_path) as attempts:
        assert attempts.killed("a", "1") is None
    assert (tmp_path / "attempts" / "x.json").read_bytes() == content
