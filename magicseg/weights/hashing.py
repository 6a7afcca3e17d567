"""Digests of weights on disk: of whole files, each hashed once."""

import contextlib
import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

from pydantic import Field

from magicseg.core.digests import file_sha256, json_sha256
from magicseg.core.documents import read_json
from magicseg.core.errors import BackendError, DataError
from magicseg.core.files import to_json, write_atomic
from magicseg.weights.pinned import ELSE_READ, READ, Weights

_Memory = dict[str, tuple[tuple[int, int], Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]]]


def path_identity(weights: Weights, where: str) -> str:
    """Return ``sha256:...`` of weights with a path: of one file's content, or of a folder's names and contents.

    Each file is hashed once. The user's cache keeps digests by path, size and modification time, so that a task costs
    a few calls of stat. Args: where: the setting, for messages.
    Raises BackendError if the weights are missing or cannot be read.
    """
    place = weights.path
    try:
        if place.is_file():
            return f"sha256:{_digests(place.parent, [place.name])[place.name]}"
        digests = _digests(place, folder_files(weights, where))
    except OSError as error:
        raise BackendError(
            f"{where}: {error.filename or place} cannot be read: {error.strerror or error}",
            hint="mend the path, or its permissions",
        ) from None
    return f"sha256:{files_digest(digests)}"


def folder_files(weights: Weights, where: str) -> list[str]:
    """Return the names of the files of a folder that are read. Raises BackendError if the folder has no such file."""
    folder = weights.path
    if not folder.is_dir():
        raise BackendError(f"{where}: {folder}: there is no such folder or file", hint="mend the path")
    names = _listing(folder, weights.depth)
    lacking = weights.lacking(names)
    if lacking:
        raise BackendError(
            f"{where}: {folder} lacks {lacking[0]!r}", hint=f"there are: {', '.join(names[:20]) or 'no files'}"
        )
    chosen = weights.chosen(names)
    if not chosen:
        raise BackendError(
            f"{where}: {folder} holds no weights", hint=f"looked for: {', '.join(weights.files or READ + ELSE_READ)}"
        )
    return chosen


def files_digest(digests: Mapping[str, str]) -> str:
    """Return the SHA-256 over the names and digests of files."""
    return json_sha256(digests)


def _listing(folder: Path, depth: int) -> list[str]:
    """Return a folder's files, ``depth`` levels deep, by relative path."""
    names: list[str] = []
    for entry in sorted(folder.iterdir()):
        if entry.is_file():
            names.append(entry.name)
        elif depth > 1 and entry.is_dir():
            names += [f"{entry.name}/{name}" for name in _listing(entry, depth - 1)]
    return names


def _digests(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """Return the SHA-256 of files by name. Digests of unchanged files come from a cache."""
    stamps = {name: _stamp(folder / name) for name in names}
    remembered = _remembered(folder)
    digests = {name: remembered[name][1] for name in names if remembered.get(name, (None,))[0] == stamps[name]}
    unknown = [name for name in names if name not in digests]
    if unknown:
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:  # hashing lets go of the interpreter's lock
            digests.update(zip(unknown, pool.map(lambda name: file_sha256(folder / name), unknown), strict=True))
        _remember(folder, remembered | {name: (stamps[name], digests[name]) for name in names})
    return digests


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _memory(folder: Path) -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(
        base, "magicseg", "weights", hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:32] + ".json"
    )


def _remembered(folder: Path) -> dict[str, tuple[list[int], str]]:
    with contextlib.suppress(OSError, RuntimeError, DataError):  # then the files are hashed again
        return {name: (list(stamp), digest) for name, (stamp, digest) in read_json(_memory(folder), _Memory).items()}
    return {}


def _remember(folder: Path, digests: Mapping[str, tuple[list[int], str]]) -> None:
    with contextlib.suppress(OSError, RuntimeError):  # a cache: nothing depends on it
        path = _memory(folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, to_json(digests))
