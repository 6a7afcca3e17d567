"""Fixtures for hostile inputs: the command line in the test's process, with limits."""

import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import psutil
import pytest

from helpers.tiny_runs import Result
from magicseg.cli import app, main
from magicseg.core.errors import MagicsegError

Typed = Callable[..., Result]


@pytest.fixture
def typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Typed:
    """Return a function that runs ``magicseg`` in a temporary folder. Any exception but SystemExit fails the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")

    def run(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["magicseg", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        shown = capsys.readouterr()
        return Result(code, shown.out, shown.err)

    return run


_SECONDS = 60
_BYTES = 3 << 30


@pytest.fixture
def bounded() -> Iterator[None]:
    """Kill a case that hangs, or allocates more than 3 GB of memory."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise AssertionError(f"still at it after {_SECONDS} seconds")

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(_SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + _BYTES, hard))
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.fixture
def fault_of(bounded: None) -> Callable[..., MagicsegError | None]:
    """Run a command and return the error that a user sees, or None. Other exceptions would be tracebacks."""

    def run(*arguments: object) -> MagicsegError | None:
        try:
            app([str(each) for each in arguments], standalone_mode=False)
        except MagicsegError as error:
            return error
        return None

    return run


@pytest.fixture
def put(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, str], None]:
    """Replace a file by a folder, a pipe, a device or an unreadable file."""

    def replace(path: Path, kind: str) -> None:
        if kind == "denied":
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            original = os.open

            def refuse(name: os.PathLike[str] | str, *arguments: int, **options: int) -> int:
                if os.fspath(name) == os.fspath(path):
                    raise PermissionError(13, "Permission denied", os.fspath(name))
                return original(name, *arguments, **options)

            monkeypatch.setattr(os, "open", refuse)
            return
        path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "folder":
            path.mkdir()
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind == "device":
            path.symlink_to("/dev/zero")
        else:
            path.write_bytes(CONTENTS[kind])

    return replace


CONTENTS = {
    "empty": b"",
    "deep": b"[" * 200_000,
    "bytes": bytes(range(256)),
    "list": b"[1, 2]\n",
    "nulls": b"\0" * 5000,
    "number": b"1" * 10_000,
}
