"""Record the item that a process works on, before the work begins.

    with Attempts(folder) as attempts:
        if (left := attempts.killed(name, key)) is None:
            with attempts.on(name, key):
                ...

The out-of-memory killer leaves no message. A record that outlives its process names the item that the process worked
on, so that the next process can skip it. A process that ends in any other way removes its record. A process that
receives a stop signal removes it at once (`forget_attempts`), since it may be killed soon after.

FOLDER/attempts/PID-TOKEN.json   the process, as in a claim (`magicseg.run.claims`), and its item
"""

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from typing_extensions import TypedDict

from magicseg.core.documents import read_json
from magicseg.core.errors import DataError
from magicseg.core.files import write_atomic
from magicseg.core.text import command
from magicseg.run.claims import HEARTBEAT_SECONDS, is_live, owner

_BYTES = 1 << 16
_TRIES = 100
_OPEN: set[Path] = set()


class _AttemptFile(TypedDict):
    """The fields of a record that are read. ``item``: the digest of the item's name and key."""

    item: str


class Attempts:
    """The attempts in a folder. As a context manager, it refreshes the heartbeat of this process's own attempt."""

    def __init__(self, folder: Path) -> None:
        """Read the attempts of dead processes. Other files are ignored."""
        self._folder = folder / "attempts"
        self._path = self._folder / f"{os.getpid()}-{os.urandom(8).hex()}.json"
        self._ended = threading.Event()
        self._left: dict[str, Path] = {}
        try:
            names = sorted(os.listdir(self._folder))
        except FileNotFoundError:
            names = []
        for path in [self._folder / name for name in names if name.endswith(".json")]:
            with contextlib.suppress(FileNotFoundError, DataError):
                item = read_json(path, _AttemptFile, limit=_BYTES)["item"]
                if not is_live(path):
                    self._left[item] = path

    def __enter__(self) -> Self:
        threading.Thread(target=self._beat, name="attempt", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        with contextlib.suppress(OSError):
            self._folder.rmdir()  # fails if it is not empty

    def killed(self, name: str, key: str) -> Path | None:
        """Return the attempt of a process that died while it worked on an item, or None.

        Args: key: the inputs of the work besides the item's name. Attempts with another key are ignored.
        """
        return self._left.get(_digest(name, key))

    @contextlib.contextmanager
    def on(self, name: str, key: str) -> Iterator[None]:
        """Record the item while the block runs."""
        shown = name.encode(errors="backslashreplace").decode()
        content = {**owner(), "image": shown, "item": _digest(name, key)}
        _OPEN.add(self._path)
        try:
            self._write(json.dumps(content).encode())
            yield
        finally:
            _OPEN.discard(self._path)
            self._path.unlink(missing_ok=True)

    def _write(self, content: bytes) -> None:
        # Another process that ends may remove the folder between the two steps, as long as it is empty.
        for left in reversed(range(_TRIES)):
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                write_atomic(self._path, content)
            except (FileNotFoundError, FileExistsError):
                if not left:
                    raise
            else:
                return

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(OSError):
                os.utime(self._path)


def forget_attempts() -> None:
    """Remove this process's attempts, because it was asked to stop."""
    for path in tuple(_OPEN):
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def told(attempt: Path) -> str:
    """Return a sentence on why an item is skipped, and how to retry it."""
    return (
        "an earlier process died while it processed this image, probably out of memory; to try it again: "
        + command("rm", attempt)
    )


def _digest(name: str, key: str) -> str:
    return hashlib.sha256(b"\0".join((os.fsencode(name), key.encode()))).hexdigest()
