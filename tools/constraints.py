"""Check the pinned versions, and write their hashes.

    python tools/constraints.py audit    check that pins, ranges, hashes and installed packages agree
    python tools/constraints.py lock     write requirements.lock (needs uv: pip install uv)

pyproject.toml has the version ranges. constraints.txt has the exact versions. requirements.lock has the same versions
with the SHA-256 of each of their files from the package index, for every platform and Python version.
"""

import argparse
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from importlib.metadata import distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

TOP = Path(__file__).resolve().parents[1]
CONSTRAINTS, LOCK = "constraints.txt", "requirements.lock"
EXTRAS = ("models", "original", "dev")
INSTALLERS = ("pip", "setuptools")  # only in the lock: they install the other packages
_PIN = re.compile(r"(?P<name>[\w.-]+)==(?P<version>[\w.!+]+)", re.ASCII)
_LOCKED = re.compile(rf"{_PIN.pattern}(?P<hashes>(?: --hash=sha256:[0-9a-f]{{64}})*)", re.ASCII)
_HEAD = "# Written by: python tools/constraints.py lock\n"


def faults(top: Path, installed: Mapping[str, str]) -> Iterator[str]:
    """Yield a sentence for each disagreement in a checkout. Args: installed: versions by distribution name."""
    missing = [name for name in (CONSTRAINTS, LOCK) if not (top / name).is_file()]
    if missing:
        yield f"{missing[0]} is missing"
        return
    pins, locked = {}, {}
    for line in _lines(top / CONSTRAINTS):
        match = _PIN.fullmatch(line)
        if match is None:
            yield f"{CONSTRAINTS}: {line!r} is not an exact version"
        elif canonicalize_name(match["name"]) in pins:
            yield f"{CONSTRAINTS}: {match['name']} is there twice"
        else:
            pins[canonicalize_name(match["name"])] = match["version"]
    for line in _lines(top / LOCK):
        match = _LOCKED.fullmatch(line)
        if match is None:
            yield f"{LOCK}: {line!r} is not an exact version with hashes"
            continue
        locked[canonicalize_name(match["name"])] = match["version"]
        if not match["hashes"]:
            yield f"{LOCK}: {match['name']} has no hash"
    for name in sorted(pins.keys() | locked.keys() - set(INSTALLERS)):
        if pins.get(name) != locked.get(name):
            yield f"{name} is {pins.get(name)} in {CONSTRAINTS} and {locked.get(name)} in {LOCK}"
    for requirement in _requirements(top):
        pin = pins.get(canonicalize_name(requirement.name))
        if pin is None:
            yield f"{requirement.name} is in pyproject.toml and not in {CONSTRAINTS}"
        elif not requirement.specifier.contains(pin, prereleases=True):
            yield f"{requirement.name}=={pin} is outside of pyproject.toml's {requirement.specifier}"
    for package, version in sorted(installed.items()):
        name = canonicalize_name(package)
        if name in {"magicseg", "wheel", *INSTALLERS}:
            continue
        pin = pins.get(name)
        if pin is None:
            yield f"{name} {version} is installed and not in {CONSTRAINTS}"
        elif Version(version).public != Version(pin).public:  # torch's builds differ in the local version, after '+'
            yield f"{name} {version} is installed, and {CONSTRAINTS} has {pin}"


def lock(top: Path) -> None:
    """Write requirements.lock. Raises CalledProcessError if uv fails."""
    wanted = "\n".join([*_lines(top / CONSTRAINTS), *INSTALLERS])
    command = ["uv", "pip", "compile", "--no-deps", "--generate-hashes", "--no-annotate", "--no-header", "-"]
    compiled = subprocess.run(command, input=wanted, check=True, text=True, stdout=subprocess.PIPE).stdout
    # One line per package: the Makefile extracts pip's line by its name.
    (top / LOCK).write_text(_HEAD + re.sub(r" *\\\n *", " ", compiled))


def _lines(file: Path) -> list[str]:
    lines = (line.partition("#")[0].strip() for line in file.read_text().splitlines())
    return [line for line in lines if line]


def _requirements(top: Path) -> list[Requirement]:
    project = tomllib.loads((top / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    return [
        Requirement(text) for text in [*project["dependencies"], *(each for name in EXTRAS for each in extras[name])]
    ]


def main() -> int:
    """Run the command. Return 1 if there is a disagreement, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["audit", "lock"])
    if parser.parse_args().command == "lock":
        lock(TOP)
    installed = {each.metadata["Name"]: each.version for each in distributions()}
    found = list(faults(TOP, installed))
    print("\n".join(found) or f"{len(_lines(TOP / CONSTRAINTS))} pinned versions fit")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
