"""SHA-256 of files and of plain data."""

import hashlib
from io import BufferedReader, FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from magicseg.core.files import to_json

if TYPE_CHECKING:
    from hashlib import _Hash

_BLOCK = 1 << 20  # bytes


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return stream_sha256(file)


def file_sha256_and_git_sha1(path: Path) -> tuple[str, str]:
    """Return a file's SHA-256 and the SHA-1 by which git knows its content, from one reading of the file.

    Git hashes ``blob``, the size in bytes, a NUL and the content.
    """
    sha256 = hashlib.sha256()
    with path.open("rb") as file:
        sha1 = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
        _update(file, sha256, sha1)
    return sha256.hexdigest(), sha1.hexdigest()


def stream_sha256(file: BufferedReader | FileIO) -> str:
    """Return the SHA-256 of the rest of an open file, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    _update(file, digest)
    return digest.hexdigest()


def json_sha256(value: Any) -> str:
    """Return the SHA-256 of the canonical JSON of plain data, as 64 hexadecimal digits."""
    return hashlib.sha256(to_json(value)).hexdigest()


def _update(file: BufferedReader | FileIO, *digests: "_Hash") -> None:
    """Feed the rest of an open file to the digests, block by block."""
    while block := file.read(_BLOCK):
        for digest in digests:
            digest.update(block)
