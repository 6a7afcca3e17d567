"""Atomic file creation on file systems with missing operations, and messages of storage errors."""

import contextlib
import errno
import fcntl
import multiprocessing
import os
import time
from pathlib import Path

import pytest

from helpers.tiny_runs import do, make_run
from magicseg.core import files
from magicseg.core.errors import StoreError
from magicseg.core.files import TEMPORARY, fsync_path, lacking, storage_errors, write_atomic
from magicseg.doctor.machine_checks import disk
from magicseg.run.digest import logical_digest


def refusing(number):
    def refuse(*_arguments, **_options):
        raise OSError(number, os.strerror(number))

    return refuse


@pytest.fixture(params=[errno.EPERM, errno.ENOTSUP, errno.EXDEV, errno.EMLINK, errno.ENOSYS])
def without_links(request, monkeypatch):
    monkeypatch.setattr(os, "link", refusing(request.param))


@pytest.fixture
def without_renames(monkeypatch):
    """Disable hard links and exclusive renames, like some network file systems."""
    monkeypatch.setattr(os, "link", refusing(errno.EPERM))
    monkeypatch.setattr(files, "_rename_exclusively", refusing(errno.EINVAL))


def test_an_exclusive_file_is_written_once_where_links_are_refused(tmp_path, without_links):
    assert write_atomic(tmp_path / "a", b"first", exclusive=True)
    assert not write_atomic(tmp_path / "a", b"second", exclusive=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"first"}


def test_an_exclusive_file_is_written_once_with_only_plain_renames(tmp_path, without_renames):
    assert write_atomic(tmp_path / "a", b"first", exclusive=True)
    assert not write_atomic(tmp_path / "a", b"second", exclusive=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"first"}


def _race(folder, number, results, way):
    os.link = refusing(errno.EPERM)
    if way == "reserved":
        files._rename_exclusively = refusing(errno.EINVAL)
    won = [name for name in range(40) if write_atomic(folder / str(name), b"%d" % number, exclusive=True)]
    results.put((number, won))


@pytest.mark.parametrize("way", ["exclusive", "reserved"])
def test_without_links_one_of_several_writers_gets_each_name(tmp_path, way):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    writers = [context.Process(target=_race, args=(tmp_path, number, results, way)) for number in range(3)]
    for writer in writers:
        writer.start()
    won = dict(results.get(timeout=60) for _ in writers)
    for writer in writers:
        writer.join()
    assert sorted(name for names in won.values() for name in names) == list(range(40))
    for number, names in won.items():
        assert all((tmp_path / str(name)).read_bytes() == b"%d" % number for name in names)
    assert len(list(tmp_path.iterdir())) == 40


class Killed(BaseException):
    """Simulates a kill."""


def test_a_kill_before_the_rename_leaves_a_name_that_can_still_be_taken(tmp_path, without_renames, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(Killed))
        patch.setattr(Path, "unlink", lambda *_, **__: None)  # a killed process cleans up nothing
        with pytest.raises(Killed):
            write_atomic(tmp_path / "a", b"first", exclusive=True)
    assert not (tmp_path / "a").exists()
    assert all(path.name.endswith(TEMPORARY) for path in tmp_path.iterdir())
    monkeypatch.setattr(files, "_RESERVED_SECONDS", 0.05)
    assert write_atomic(tmp_path / "a", b"second", exclusive=True)
    assert (tmp_path / "a").read_bytes() == b"second"


def test_a_full_disk_that_refuses_links_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", refusing(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left") as caught:
        write_atomic(tmp_path / "a", b"x", exclusive=True)
    assert caught.value.filename == str(tmp_path / "a"), "not the temporary name"
    assert list(tmp_path.iterdir()) == []


def test_a_run_on_a_disk_without_links_holds_the_same_data(tmp_path, without_renames, expected_digest):
    run = make_run(tmp_path / "run")
    do(run)
    assert logical_digest(run) == expected_digest
    assert not list(run.path.rglob(f"*{TEMPORARY}"))


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_an_unsupported_fsync_is_ignored_for_folders_but_not_for_files(tmp_path, monkeypatch, number):
    monkeypatch.setattr(os, "fsync", refusing(number))
    fsync_path(tmp_path)
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(OSError, match=os.strerror(number)):
        fsync_path(tmp_path / "file")


def test_a_folder_that_fails_to_be_flushed_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", refusing(errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        fsync_path(tmp_path)


@pytest.mark.parametrize(
    ("number", "told", "advice"),
    [
        (errno.ENOSPC, "cannot be written: No space left", "free some space"),
        (errno.EDQUOT, "cannot be written: Disk quota exceeded", "quota"),
        (errno.EROFS, "cannot be written: Read-only", "read-only"),
        (errno.EACCES, "Permission denied", "permission"),
        (errno.EPERM, "Operation not permitted", "permission"),
        (errno.ENAMETOOLONG, "File name too long", "shorter names"),
        (errno.ENOLCK, "No locks available", "no file locks"),
        (errno.EMFILE, "Too many open files", "ulimit -n"),
        (errno.EIO, "Input/output error", "failing"),
        (errno.ESTALE, "Stale file handle", "failing"),
        (errno.EISDIR, "Is a directory", "that path is a folder"),
        (errno.ENOTDIR, "Not a directory", "a file is used as a folder"),
        (errno.ENOENT, "No such file", "deleted"),
    ],
)
def test_every_storage_error_has_a_specific_hint(tmp_path, number, told, advice):
    with pytest.raises(StoreError) as caught, storage_errors(tmp_path, "magicseg run r"):
        raise OSError(number, os.strerror(number), "the file")
    assert caught.value.message.startswith("the file: ")
    assert told in caught.value.message
    assert advice in caught.value.hint
    assert caught.value.hint.endswith("; then: magicseg run r")
    assert ("free some space" in caught.value.hint) == (number == errno.ENOSPC)


def test_a_file_name_too_long_for_the_disk_is_an_error_with_a_hint(tmp_path):
    with pytest.raises(StoreError, match="File name too long") as caught, storage_errors(tmp_path, "x"):
        write_atomic(tmp_path / ("é" * 150), b"x")
    assert "shorter names" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_names_of_any_bytes_are_written(tmp_path):
    path = tmp_path / os.fsdecode(b"\xff\xfe" + b"a" * 250)
    with contextlib.suppress(OSError):  # refused by file systems with Unicode names
        write_atomic(path, b"x", exclusive=True)
        assert path.read_bytes() == b"x"


def test_missing_operations_of_a_file_system_are_named(tmp_path, monkeypatch):
    assert lacking(tmp_path) == []
    monkeypatch.setattr(os, "link", refusing(errno.EPERM))
    monkeypatch.setattr(fcntl, "flock", refusing(errno.ENOLCK))
    monkeypatch.setattr(os, "fsync", refusing(errno.EINVAL))
    assert lacking(tmp_path) == ["file locks", "hard links", "directory fsync"]
    assert "not supported: file locks, hard links" in disk(tmp_path).seen
    assert list(tmp_path.iterdir()) == []


def test_workers_start_where_the_path_of_temporary_files_is_too_long_for_sockets(magicseg, fresh, tmp_path):
    folder = tmp_path / ("x" * 110)
    folder.mkdir()
    magicseg.environment["TMPDIR"] = str(folder)
    before = {path.name for path in Path("/tmp").glob("magicseg-*")}
    result = magicseg("describe", fresh.path, "--workers", 2)
    assert result.code == 0, result
    until = time.monotonic() + 10
    while {path.name for path in Path("/tmp").glob("magicseg-*")} - before and time.monotonic() < until:
        time.sleep(0.1)
    assert list(folder.iterdir()) == []
