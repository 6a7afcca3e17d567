"""The installed package: its version and its directory."""

import functools
from importlib.metadata import version
from pathlib import Path

PACKAGE = Path(__file__).parents[1]


@functools.cache
def package_version() -> str:
    """Return the version of magicseg. It takes milliseconds: the metadata of all packages is searched."""
    return version("magicseg")
