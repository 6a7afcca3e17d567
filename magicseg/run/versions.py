"""The environment of a commit: versions of the libraries that decide bytes, the image, and the machine."""

import functools
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from magicseg.run.container_image import present_image

_DISTRIBUTIONS = (
    "magicseg",
    "numpy",
    "scipy",
    "pillow",
    "zarr",
    "torch",
    "torchvision",
    "diffusers",
    "transformers",
    "tokenizers",
    "gguf",
    "openai",
    "segment-anything",
    "groundingdino-py",
    "open-clip-torch",
)
_CPU = Path("/proc/cpuinfo")


def library_versions() -> dict[str, str]:
    """Return Python's version, the kind of machine and CPU, the image, and the versions of installed libraries."""
    return dict(_library_versions())


@functools.cache
def _library_versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "machine": platform.machine()}
    model = _cpu_model()
    if model:
        found["cpu"] = model
    image = present_image()
    if image:
        found["image"] = image
    for name in _DISTRIBUTIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _cpu_model() -> str | None:
    """Return the CPU's name, which decides the libraries' kernels and so the last bits; None if it is unknown."""
    try:
        text = _CPU.read_text(errors="replace")
    except OSError:
        return None
    match = re.search(r"^model name\s*:\s*(\S.*?)\s*$", text, re.MULTILINE)
    return match[1] if match else None
