"""Atomic, durable files: temporary name, flush to disk, rename."""

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from magicseg.core.errors import MagicsegError, StoreError
from magicseg.core.storage_errors import UNSUPPORTED, complaint, remedy

TEMPORARY = ".partial"
_RESERVED_SECONDS = 10.0  # after so long, the process that reserved a name has been killed
_AT_FDCWD, _RENAME_NOREPLACE = -100, 1


def fsync_path(path: Path) -> None:
    """Call fsync on a file or directory. Does nothing on file systems without directory fsync."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNSUPPORTED or not path.is_dir():
            error.filename = str(path)
            raise
    finally:
        os.close(descriptor)


def write_atomic(path: Path, data: bytes, *, exclusive: bool = False) -> bool:
    """Write a whole file or nothing.

    With ``exclusive`` an existing file is left alone and False is returned. Raises: OSError that names ``path``.
    """
    temporary = temporary_beside(path)
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if exclusive:
            if not publish(temporary, path):
                return False
        else:
            temporary.replace(path)
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise
    finally:
        with contextlib.suppress(OSError):  # the error was already reported
            temporary.unlink(missing_ok=True)
    fsync_path(path.parent)
    return True


def temporary_beside(path: Path) -> Path:
    """Return a new, unpredictable name in the same folder. It is short, since ``path`` may be long."""
    return path.with_name(f"{path.name[:40]}.{os.getpid()}.{os.urandom(8).hex()}{TEMPORARY}")


def publish(temporary: Path, path: Path) -> bool:
    """Rename a complete file to its final name, unless the name is taken; then ``temporary`` may be left over.

    It uses a hard link. On file systems without hard links it uses a rename that does not replace files. On file
    systems without both, a reservation file keeps other processes from renaming at the same time. A killed process
    leaves either no file or the complete file at ``path``. A reservation that it leaves expires after
    `_RESERVED_SECONDS`.

    Returns: False if the name was taken.
    """
    for attempt in (os.link, _rename_exclusively, _rename_reserved):
        try:
            attempt(temporary, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in UNSUPPORTED or attempt is _rename_reserved:
                raise
        else:
            return True
    raise AssertionError("the last attempt returns or raises")


def _rename_exclusively(temporary: Path, path: Path) -> None:
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), str(path))
    if rename(_AT_FDCWD, os.fsencode(temporary), _AT_FDCWD, os.fsencode(path), _RENAME_NOREPLACE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(path))


def _rename_reserved(temporary: Path, path: Path) -> None:
    """Rename a file while this process holds the reservation of the name."""
    reservation = path.with_name(f".{path.name}{TEMPORARY}")
    until = time.monotonic() + _RESERVED_SECONDS
    while True:
        try:
            os.close(os.open(reservation, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            if path.exists():
                raise
            if time.monotonic() > until:
                reservation.unlink(missing_ok=True)
            time.sleep(0.02)
            continue
        try:
            if path.exists():
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
            temporary.replace(path)
        finally:
            reservation.unlink(missing_ok=True)
        return


def to_json(value: Any) -> bytes:
    """Return canonical JSON: sorted keys, no spaces, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


@contextlib.contextmanager
def storage_errors(path: Path, then: str) -> Iterator[None]:
    """Convert an OSError about storage to a `StoreError` that names the file.

    The hint starts with the remedy for the error's number.

    Args: path: named in the message if the OSError names no file. then: the command to type, or what to do, after
    the remedy.
    """
    try:
        yield
    except MagicsegError:
        raise
    except OSError as error:
        first = remedy(error)
        raise StoreError(
            f"{error.filename or path}: {complaint(error)}", hint=then if first is None else f"{first}; then: {then}"
        ) from error


def lacking(folder: Path) -> list[str]:
    """Return the operations that a folder's file system lacks, as text; fallbacks are used for them.

    Raises: OSError if files cannot be written there at all.
    """
    found = []
    trial = temporary_beside(folder / "trial")
    copy = temporary_beside(folder / "trial")
    try:
        with trial.open("xb") as file:
            file.write(b"x")
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError:
                found.append("file locks")
        try:
            os.link(trial, copy)
        except OSError:
            found.append("hard links")
            trial.replace(copy)
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError:
            found.append("directory fsync")
        finally:
            os.close(descriptor)
    finally:
        trial.unlink(missing_ok=True)
        copy.unlink(missing_ok=True)
    return found
