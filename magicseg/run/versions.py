"""What ran: versions of the libraries that decide bytes."""

import functools
import platform
from importlib.metadata import PackageNotFoundError, version

_DISTRIBUTIONS = ("magicseg", "numpy", "pillow", "zarr", "torch", "diffusers", "transformers", "tokenizers")


def library_versions() -> dict[str, str]:
    """Python, kind of machine, and every library of ours that is installed."""
    return dict(_library_versions())


@functools.cache
def _library_versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
