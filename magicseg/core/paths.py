"""Paths as users write them in settings."""

import os
from pathlib import Path


def absolute(path: str | Path) -> str:
    """Return the absolute path, with ``~`` expanded, because jobs start in other directories.

    A ``~`` with an unknown user name is kept. Symlinks and ``..`` are not resolved.
    """
    return str(Path(os.path.expanduser(path)).absolute())
