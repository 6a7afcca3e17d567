"""Run Python as an unprivileged user, with readable libraries."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pydantic
import pytest

NOBODY = ("runuser", "-u", "nobody", "--")


def everybody_may(*command):
    return subprocess.run([*NOBODY, *command], check=False, capture_output=True).returncode == 0


def python_for_everybody():
    """Return an interpreter of this minor version that an unprivileged user may start: this one, or the system's."""
    version = f"import sys; sys.exit(sys.version_info[:2] != {sys.version_info[:2]})"
    for python in (sys.executable, "/usr/bin/python3"):
        if everybody_may(python, "-c", version):
            return python
    reason = "no Python of this minor version can be started by an unprivileged user"
    return pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)


def readable_libraries(folder):
    """Return paths of this checkout and its libraries that all users may read. Copies them if necessary."""
    checkout, site = Path(__file__).parents[2], Path(pydantic.__file__).parents[1]
    if all(everybody_may("test", "-r", file) for file in (checkout / "magicseg/__init__.py", pydantic.__file__)):
        return checkout, site
    # Libraries take gigabytes, so hard links are used on the same file system.
    if folder.stat().st_dev == site.stat().st_dev:
        subprocess.run(["cp", "-rl", site, folder / "site"], check=True)
    else:
        shutil.copytree(site, folder / "site")
    shutil.copytree(checkout / "magicseg", folder / "checkout/magicseg")
    return folder / "checkout", folder / "site"
