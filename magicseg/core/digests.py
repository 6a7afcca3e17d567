"""SHA-256 of files and of plain data."""

import hashlib
from pathlib import Path
from typing import Any

from magicseg.core.files import to_json


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_sha256(value: Any) -> str:
    """Return the SHA-256 of the canonical JSON of plain data, as 64 hexadecimal digits."""
    return hashlib.sha256(to_json(value)).hexdigest()
