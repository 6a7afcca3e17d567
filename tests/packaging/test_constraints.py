"""Pinned versions, their hashes, the ranges of pyproject.toml and the installed packages are consistent."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools.constraints import CONSTRAINTS, LOCK, TOP, faults


@pytest.fixture
def top(tmp_path):
    """Return a copy of the checkout's files that a test may modify."""
    for name in (CONSTRAINTS, LOCK, "pyproject.toml"):
        shutil.copy(TOP / name, tmp_path / name)
    return tmp_path


def replaced(file: Path, old, new):
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_constraints_match_pyproject_and_the_installed_packages():
    command = [sys.executable, str(TOP / "tools" / "constraints.py"), "audit"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "pinned versions fit" in done.stdout


@pytest.mark.parametrize(
    ("name", "old", "new", "fault"),
    [
        (CONSTRAINTS, "zarr==", "zarr>=", "is not an exact version"),
        (CONSTRAINTS, "zarr==", "zarr==3.1.2\nzarr==", "zarr is there twice"),
        (CONSTRAINTS, "zarr==", "zarr-python==", "zarr is in pyproject.toml and not in"),
        (CONSTRAINTS, "requests==", "requests==0.", "requests is 0."),
        (LOCK, " --hash=sha256:", " #", "has no hash"),
        (LOCK, " --hash=sha256:", " --hash=md5:", "is not an exact version with hashes"),
        (LOCK, "zarr==", "zarr==0.", "zarr is"),
        ("pyproject.toml", '"zarr>=3.1.3,<4"', '"zarr>=3.1.3,<3.1.4"', "is outside of"),
        (
            "pyproject.toml",
            '"zarr>=3.1.3,<4"',
            '"no-such-package"',
            "no-such-package is in pyproject.toml",
        ),
    ],
)
def test_an_inconsistent_constraint_is_named(top, name, old, new, fault):
    assert not list(faults(top, {}))
    replaced(top / name, old, new)
    assert any(fault in each for each in faults(top, {}))


def test_installed_packages_are_pinned(top):
    assert list(faults(top, {"zarr": "0.1", "left-over": "1.0", "pip": "1", "magicseg": "1"})) == [
        f"left-over 1.0 is installed and not in {CONSTRAINTS}",
        f"zarr 0.1 is installed, and {CONSTRAINTS} has {pinned(top, 'zarr')}",
    ]


def pinned(top, name):
    lines = (top / CONSTRAINTS).read_text().splitlines()
    return next(line.partition("==")[2] for line in lines if line.startswith(f"{name}=="))


def test_a_local_build_suffix_of_a_version_is_ignored(top):
    assert not list(faults(top, {"torch": f"{pinned(top, 'torch')}+cpu"}))
