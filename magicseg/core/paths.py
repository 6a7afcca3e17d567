"""Paths as users write them in settings."""

import os
from pathlib import Path


def absolute(path: str | Path) -> str:
    """Return the absolute path, with ``~`` expanded: jobs start in other folders.

    The ``~`` of an unknown user stays as it is. Links and ``..`` are kept.
    """
    return str(Path(os.path.expanduser(path)).absolute())
