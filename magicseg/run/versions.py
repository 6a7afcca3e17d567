"""What ran: versions of the libraries that decide bytes."""

import platform
from importlib.metadata import PackageNotFoundError, version

_DISTRIBUTIONS = ("magicseg", "numpy", "pillow", "zarr", "torch", "diffusers", "transformers")


def library_versions() -> dict[str, str]:
    """Python, kind of machine, and every library of ours that is installed."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
