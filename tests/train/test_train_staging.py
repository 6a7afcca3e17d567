"""Staging to a node's own disk: whole, resumable, once."""

import errno
import fcntl
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from magicseg.core.errors import ConfigError, StoreError
from magicseg.data.kept_samples import KeptSamples
from magicseg.data.mixture import open_sources
from magicseg.data.staging import staged

KEY = "0123456789abcdef0123"


def files(folder):
    return {
        str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns, path.stat().st_ino)
        for path in folder.rglob("*")
        if path.is_file() and path.name != "lock"
    }


def same(one, other):
    for indices in (one.indices[:3], one.indices[one.indices < 16]):
        for left, right in zip(one.read(indices), other.read(indices), strict=True):
            assert all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


def test_staged_samples_equal_the_originals_and_do_not_need_them(finished, tmp_path):
    samples = KeptSamples.of(finished)
    copy = staged(samples, str(tmp_path / "disk"), key=KEY)
    assert copy.path == tmp_path / "disk" / "magicseg-0123456789abcdef"
    same(samples, copy)
    away = finished.path / "dataset.zarr"
    expected = samples.read(samples.indices[:2])[0]
    away.rename(away.with_name("away"))
    fresh = KeptSamples(copy.path, samples.indices, samples.shard_size, samples.image_size)
    assert np.array_equal(fresh.read(samples.indices[:2])[0], expected)


def test_only_shards_with_kept_samples_and_only_what_training_reads_is_copied(finished, tmp_path):
    samples = KeptSamples.of(finished)
    few = KeptSamples(samples.path, samples.indices[samples.indices < 20], samples.shard_size, samples.image_size)
    copy = staged(few, str(tmp_path), key=KEY)
    shards = sorted(name for name in files(copy.path) if not name.endswith("zarr.json"))
    assert shards == [
        f"{array}/{shard}.0.0{end}"
        for array, end in (("generate/counterfactual", ".0"), ("generate/image", ".0"), ("mask/mask", ""))
        for shard in (0, 1)
    ]


def test_a_finished_copy_is_used_again_and_a_partial_file_is_copied_anew(finished, tmp_path):
    samples = KeptSamples.of(finished)
    copy = staged(samples, str(tmp_path), key=KEY)
    before = files(copy.path)
    staged(samples, str(tmp_path), key=KEY)
    assert files(copy.path) == before
    victim = copy.path / "mask/mask/1.0.0"
    victim.write_bytes(victim.read_bytes()[:-9])
    (copy.path / "mask/mask/2.0.0").unlink()
    (copy.path / "mask/mask/3.0.0.partial").write_bytes(b"left by a killed process")
    staged(samples, str(tmp_path), key=KEY)
    after = files(copy.path)
    assert {name for name in after if after[name] != before.get(name)} == {"mask/mask/1.0.0", "mask/mask/2.0.0"}
    assert after.keys() == before.keys()
    same(samples, staged(samples, str(tmp_path), key=KEY))


def test_a_disk_without_room_is_an_error_that_says_how_much_is_needed(finished, small_disk):
    samples = KeptSamples.of(finished)
    (small_disk / "filler").write_bytes(b"x" * (4 * 2**20 - 64 * 1024))
    with pytest.raises(StoreError, match=r"needs \d+ kB more, but [\d.]+ kB are free") as caught:
        staged(samples, str(small_disk), key=KEY)
    assert "train.stage_to: null" in caught.value.hint
    (small_disk / "filler").unlink()
    same(samples, staged(samples, str(small_disk), key=KEY))


def test_a_disk_that_fills_up_in_the_middle_is_an_error_too(finished, small_disk, monkeypatch):
    samples = KeptSamples.of(finished)
    (small_disk / "filler").write_bytes(b"x" * (4 * 2**20 - 200 * 1024))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(2**40, 0, 2**40))
    with pytest.raises(StoreError, match="cannot be written: No space left") as caught:
        staged(samples, str(small_disk), key=KEY)
    assert "train.stage_to: null" in caught.value.hint


def _stage(samples, folder, results):
    results.put(staged(samples, folder, key=KEY).path)


def test_processes_of_one_node_copy_once_between_them(finished, tmp_path):
    samples = KeptSamples.of(finished)
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=_stage, args=(samples, str(tmp_path), results)) for _ in range(3)]
    for process in processes:
        process.start()
    paths = {results.get(timeout=60) for _ in processes}
    for process in processes:
        process.join()
    assert len(paths) == 1
    assert not list(tmp_path.rglob("*.partial"))


SLOW = """
import shutil, sys, time
from pathlib import Path
from magicseg.run import Run
from magicseg.data.kept_samples import KeptSamples
from magicseg.data.staging import staged
copy = shutil.copyfile
def slow(source, target):
    Path(target).write_bytes(Path(source).read_bytes()[:100])
    time.sleep(0.05)
    return copy(source, target)
shutil.copyfile = slow
staged(KeptSamples.of(Run.open(Path(sys.argv[1]))), sys.argv[2], key=sys.argv[3])
"""


def test_a_killed_copy_is_resumed(finished, tmp_path):
    samples = KeptSamples.of(finished)
    process = subprocess.Popen([sys.executable, "-c", SLOW, str(finished.path), str(tmp_path), KEY])
    folder = tmp_path / "magicseg-0123456789abcdef"
    while len(list(folder.rglob("*.0.0*"))) < 4:
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = {name: state for name, state in files(folder).items() if not name.endswith(".partial")}
    copy = staged(samples, str(tmp_path), key=KEY)
    after = files(copy.path)
    assert done.items() <= after.items()
    assert not [name for name in after if name.endswith(".partial")]
    same(samples, copy)


def test_variables_in_the_folder_are_those_of_the_node(finished, tmp_path, monkeypatch):
    samples = KeptSamples.of(finished)
    monkeypatch.setenv("NODE_DISK", str(tmp_path))
    assert staged(samples, "$NODE_DISK/cache", key=KEY).path.parent == tmp_path / "cache"
    monkeypatch.delenv("NODE_DISK")
    with pytest.raises(ConfigError, match=r"but \$NODE_DISK is not set"):
        staged(samples, "$NODE_DISK/cache", key=KEY)


def test_a_training_whose_settings_say_so_reads_the_copy(finished, tmp_path):
    train = finished.config.train.model_copy(update={"stage_to": str(tmp_path / "disk")})
    run = type(finished)(finished.path, finished.config.model_copy(update={"train": train}))
    sources = open_sources(run)
    assert sources.samples.sources[0].path.parent == tmp_path / "disk"
    assert sources.fingerprint == finished.fingerprints["mask"].digest


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP])
def test_a_disk_without_locks_is_staged_to_all_the_same(finished, tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    samples = KeptSamples.of(finished)
    (tmp_path / f"magicseg-{KEY[:16]}/mask/mask").mkdir(parents=True)
    others = tmp_path / f"magicseg-{KEY[:16]}/mask/mask/3.0.0.7.ab.partial"
    others.write_bytes(b"of a process that may be copying")
    copy = staged(samples, str(tmp_path), key=KEY)
    same(samples, copy)
    assert others.exists(), "without the lock nobody knows that it is left over"
