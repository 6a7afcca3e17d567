"""Reader processes that end, hang, cannot send or find no shared memory: training ends with the reason."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from helpers.coloured_squares import SETTINGS, VOCABULARY, Squares
from magicseg.config.training_data import DataSettings
from magicseg.core.checks import Status
from magicseg.core.waiting import bounded
from magicseg.data import loader
from magicseg.data.dataset import SampleDataset, SampleOrder, Steps
from magicseg.data.loader import ReadersLost, load_batches
from magicseg.data.shared_memory import check_shared_memory, needed_bytes
from magicseg.train.loop import train

PLAIN = DataSettings(crop=None, photometric=False)


@dataclass(frozen=True)
class Killed(Squares):
    """A reader process is killed when it reads sample ``last``, but not before the file ``after`` exists."""

    last: int = 0
    after: Path = Path("/")

    def read(self, indices):
        if multiprocessing.parent_process() is not None and self.last in np.asarray(indices).tolist():
            while not self.after.exists():
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(indices)


@dataclass(frozen=True)
class Stuck(Squares):
    """A reader process reads for ever, as from a file server that is gone."""

    def read(self, indices):
        time.sleep(600)
        return super().read(indices)


@dataclass(frozen=True)
class Mute(Squares):
    """A reader process cannot send what it has read."""

    def read(self, indices):
        def refuse(*_arguments, **_options):
            raise OSError(24, "Too many open files")

        multiprocessing.reduction.ForkingPickler.dumps = refuse
        return super().read(indices)


@dataclass(frozen=True)
class NoFiles(Squares):
    """A reader process may open no more files."""

    def read(self, indices):
        raise OSError(24, "Too many open files", "store/0000.zip")


def batches(samples, **options):
    order = SampleOrder(samples.indices, shard_size=4, window=2, seed=0)
    dataset = SampleDataset(samples, PLAIN, seed=0)
    return load_batches(dataset, Steps(order, batch_size=4, start=0, stop=6), **{"workers": 1, **options})


@pytest.mark.slow
def test_a_killed_reader_ends_training_with_its_number_and_its_signal():
    with pytest.raises(ReadersLost, match=r"reader process \d+ was killed by SIGKILL") as caught:
        list(batches(Killed(np.arange(16), last=5), workers=2))
    assert "memory" in caught.value.hint
    assert caught.value.exit_code == 1


@pytest.mark.slow
def test_a_reader_that_cannot_send_ends_training_instead_of_losing_the_batch():
    with pytest.raises(ReadersLost, match="could not hand over its batch"):
        list(batches(Mute(np.arange(16))))


def test_a_reader_that_is_stuck_ends_training_after_the_time_that_the_settings_give():
    with pytest.raises(ReadersLost, match="delivered no batch within 1 s") as caught:
        list(batches(Stuck(np.arange(16)), patience=1.0))
    assert "train.loader_timeout" in caught.value.hint


def test_a_stop_is_heard_while_a_batch_is_waited_for(monkeypatch):
    monkeypatch.setattr(loader, "_STOP_GRACE_SECONDS", 0.0)
    with pytest.raises(ReadersLost, match="interrupted while it waited for a batch"):
        list(batches(Stuck(np.arange(16)), should_stop=lambda: True))


@pytest.mark.slow
def test_an_error_of_the_operating_system_in_a_reader_is_raised_as_it_is():
    with pytest.raises(OSError, match="Too many open files") as caught:
        list(batches(NoFiles(np.arange(16))))
    assert caught.value.errno == 24


@pytest.mark.slow
def test_training_that_loses_a_reader_keeps_the_steps_it_has_done(tmp_path):
    order = SampleOrder(np.arange(24), shard_size=4, window=2, seed=0)
    first = {pick.sample for step in range(2) for pick in order.batch(step, 5)}
    last = next(pick.sample for pick in order.batch(2, 5) if pick.sample not in first)
    settings = SETTINGS.model_copy(update={"loader_workers": 1, "paste": 0.0, "loader_cache_mib": 0})
    marker = tmp_path / "two steps were done"
    with pytest.raises(ReadersLost):
        train(
            Killed(np.arange(24), last=last, after=marker),
            VOCABULARY,
            settings,
            tmp_path,
            seed=0,
            data_fingerprint="data",
            progress=lambda state: marker.touch(),
        )
    assert [path.name for path in (tmp_path / "checkpoints").glob("step-*")] == ["step-00000002.safetensors"]
    done = train(Squares(np.arange(24)), VOCABULARY, settings, tmp_path, seed=0, data_fingerprint="data")
    never = train(Squares(np.arange(24)), VOCABULARY, settings, tmp_path / "never", seed=0, data_fingerprint="data")
    assert done.weights_digest == never.weights_digest


SMALL = """
import numpy as np, os, torch
from helpers.coloured_squares import Squares
from magicseg.data.dataset import SampleDataset, SampleOrder, Steps
from magicseg.config.training_data import DataSettings
from magicseg.data.loader import load_batches

if __name__ == "__main__":
    samples = Squares(np.arange(16), image_size=160)
    order = SampleOrder(samples.indices, shard_size=4, window=2, seed=0)
    dataset = SampleDataset(samples, DataSettings(crop=None, photometric=False), seed=0)
    whole, read = (
        list(load_batches(dataset, Steps(order, batch_size=8, start=0, stop=8), workers=workers))
        for workers in (0, 2)
    )
    assert len(whole) == len(read) == 8
    assert all(torch.equal(a, b) for one, other in zip(whole, read) for a, b in zip(one, other))
    print("all the same")
"""


@pytest.mark.slow
def test_batches_that_do_not_fit_into_shared_memory_go_through_pipes(tmp_path, monkeypatch):
    """A batch has 2 MB, and /dev/shm 3 MB: some fit, others do not."""
    small = "mount -t tmpfs -o size=3m tmpfs /dev/shm && exec "
    if (
        shutil.which("unshare") is None
        or subprocess.run(
            ["unshare", "-m", "bash", "-c", f"{small}true"], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("a mount namespace cannot be made here")
    (tmp_path / "program.py").write_text(SMALL)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    ended = subprocess.run(
        ["unshare", "-m", "bash", "-c", f"{small}{sys.executable} {tmp_path / 'program.py'}"],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert (ended.stdout, ended.returncode) == ("all the same\n", 0), ended.stderr
    assert "Traceback" not in ended.stderr


def test_shared_memory_that_is_too_small_is_told_with_what_is_needed():
    needed = needed_bytes(batch_size=16, side=512, readers=2)
    batch = 16 * 512 * 512 * (3 + 3 + 4)
    assert 2 * 2 * batch < needed < 8 * batch
    assert needed_bytes(batch_size=16, side=512, readers=0) == 0
    small = check_shared_memory(needed, free=64 * 2**20)
    assert small.status is Status.WARNING
    assert "64 MiB free" in small.seen
    assert f"need {needed / 2**20:.0f} MiB" in small.seen
    assert "--shm-size=1g" in small.remedy
    assert check_shared_memory(needed, free=2**30).status is Status.OK


def test_a_bounded_call_gives_what_the_call_gives_and_ends_when_the_look_says_so():
    assert bounded(lambda: 5, lambda waited: None) == 5
    with pytest.raises(ZeroDivisionError):
        bounded(lambda: 1 / 0, lambda waited: None)

    def enough(waited):
        raise TimeoutError(waited)

    with pytest.raises(TimeoutError):
        bounded(lambda: time.sleep(60), enough)
