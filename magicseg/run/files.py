"""Atomic, durable files: temporary name, flush to disk, rename."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from magicseg.errors import MagicsegError, StoreError

TEMPORARY = ".partial"


def fsync_path(path: Path) -> None:
    """Flush a file's data, or a directory's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, data: bytes, *, exclusive: bool = False) -> bool:
    """Write a whole file or nothing.

    With ``exclusive`` an existing file is left alone and False is returned.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.{os.urandom(4).hex()}{TEMPORARY}")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if exclusive:
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
        else:
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_path(path.parent)
    return True


def to_json(value: Any) -> bytes:
    """Canonical JSON: sorted keys, no spaces, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


@contextlib.contextmanager
def storage_errors(path: Path, hint: str) -> Iterator[None]:
    """Turn the operating system's complaints about storage (full, read-only, denied) into a `StoreError`."""
    try:
        yield
    except MagicsegError:
        raise
    except OSError as error:
        name = error.filename or path
        raise StoreError(f"{name}: cannot be written: {error.strerror or error}", hint=hint) from error
