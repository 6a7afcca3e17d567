"""Build the image: check this machine, and choose a build command that works on it."""

import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from magicseg.container.runtime import (
    OLDEST,
    Flag,
    Runtime,
    find_runtime,
    has_subordinate_ids,
    named_runtime,
    namespaces_work,
    privileges,
)
from magicseg.core.checks import Check, Status, ask, attempt
from magicseg.core.errors import ContainerError
from magicseg.core.package import PACKAGE
from magicseg.core.text import size_text

DEFINITION = "Apptainer.def"
Variant = Literal["cuda", "rocm", "cpu"]
# Bytes for two unpacked stages and the packed image, measured for cpu with torch's CUDA build (docs/containers.md).
NEEDED = {"cuda": 20e9, "rocm": 40e9, "cpu": 20e9}
_NETWORKED = ("nfs", "lustre", "gpfs", "beegfs", "cifs", "smb", "ceph", "afs", "fhgfs", "panfs")
_ELSEWHERE = "or build on another machine: containers/README.md"


@dataclass(frozen=True, kw_only=True)
class Build:
    """What to build.

    ``base``: a SIF file, an unpacked root file system, or a registry reference; None for the definition's default.
    ``torch``: a package index or folder with torch's wheels; None for the variant's default. ``binds``: folders to
    bind during the build, for pip.
    """

    checkout: Path
    image: Path
    base: str | None = None
    variant: Variant = "cuda"
    torch: str | None = None
    binds: tuple[str, ...] = ()
    replace: bool = False


def find_checkout(given: Path | None) -> Path:
    """Return the checkout to build from: the given one, else this package's checkout, else the current folder.

    Raises ContainerError if there is no definition file in them.
    """
    folders = [given] if given else [PACKAGE.parent, Path.cwd()]
    for folder in folders:
        if (folder / DEFINITION).is_file():
            return folder.absolute()
    raise ContainerError(
        f"{' and '.join(map(str, folders))}: there is no {DEFINITION}",
        hint="git clone the repository, then: magicseg container build --source CHECKOUT",
    )


def temporary_folder() -> Path:
    """Return the folder in which Apptainer unpacks images during a build."""
    names = ("APPTAINER_TMPDIR", "SINGULARITY_TMPDIR", "TMPDIR")
    return Path(next((os.environ[name] for name in names if os.environ.get(name)), "/tmp"))


def build_checks(build: Build, runtime: Runtime) -> Iterator[Check]:
    """Check this machine's version, rights, sources and disk space for a build."""
    yield _version(runtime)
    yield _rights(runtime, local=build.base is not None and Path(build.base).exists())
    yield attempt("base and wheels", lambda: _sources(build))
    yield attempt("temporary space", lambda: _space(temporary_folder(), NEEDED[build.variant]))
    yield attempt("the image's place", lambda: _image_folder(build))


def _version(runtime: Runtime) -> Check:
    oldest = ".".join(map(str, OLDEST[runtime.name]))
    seen = f"{runtime.path}: {runtime.shown}"
    if runtime.builds:
        return Check("version", Status.OK, seen)
    return Check(
        "version",
        Status.FAILED,
        f"{seen}; the definition needs {oldest} or newer",
        f"load a newer module, {_ELSEWHERE}",
    )


def _sources(build: Build) -> Check:
    name, base, torch = "base and wheels", build.base, build.torch
    if base and not Path(base).exists() and (base.endswith((".sif", ".img")) or base[0] in "/.~"):
        return Check(
            name, Status.FAILED, f"--base {base}: there is no such file", "a SIF file, a folder or a reference"
        )
    if torch and "://" in torch:
        if urlsplit(torch).username is not None:
            return Check(
                name,
                Status.FAILED,
                "--torch: the address contains a user name, which anyone could read in the image",
                "put it into a netrc file or a pip.conf, and --bind that",
            )
    elif torch:
        folder = Path(torch).absolute()
        seen = [Path((bind.split(":") * 2)[1]).absolute() for bind in build.binds]  # SOURCE[:TARGET[:ro]]
        if not any(folder.is_relative_to(target) for target in seen):
            return Check(
                name,
                Status.WARNING,
                f"--torch {torch}: is not bound, so the build sees it only if the base has it",
                f"--bind {shlex.quote(str(folder))}",
            )
    return Check(name, Status.OK, f"base {base or 'of the definition'}, torch from {torch or 'the usual index'}")


def _rights(runtime: Runtime, *, local: bool) -> Check:
    name = "rights"
    root, capable = privileges()
    if root and capable:
        return Check(name, Status.OK, "root")
    who = "root without CAP_SYS_RESOURCE" if root else "an ordinary user"
    trouble = namespaces_work()
    if trouble:
        settings = (
            "user.max_user_namespaces > 0, kernel.unprivileged_userns_clone=1, and on Ubuntu an AppArmor profile for "
            "Apptainer, or kernel.apparmor_restrict_unprivileged_userns=0"
        )
        return Check(
            name,
            Status.WARNING if runtime.may_work_without_namespaces else Status.FAILED,
            f"{who}; user namespaces cannot be made: {trouble}",
            f"ask your administrator for (sysctl) {settings}, {_ELSEWHERE}",
        )
    ids = has_subordinate_ids()
    if ids and shutil.which("newuidmap"):
        return Check(name, Status.OK, f"{who}; user namespaces work; ids in /etc/subuid and /etc/subgid")
    if ids:
        return Check(name, Status.FAILED, f"{who}; newuidmap is missing", f"ask for the package uidmap, {_ELSEWHERE}")
    ask_for = f"ask for: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {_user()}   # {_ELSEWHERE}"
    # The fakeroot command cannot unpack a local image, because its files have owners. It can unpack registry images.
    if not root and not local and shutil.which("fakeroot"):
        return Check(
            name,
            Status.WARNING,
            f"{who}; no ids in /etc/subuid and /etc/subgid: the build has to use the fakeroot command",
            ask_for,
        )
    return Check(name, Status.FAILED, f"{who}; no ids in /etc/subuid and /etc/subgid", ask_for)


def _user() -> str:
    code, output = ask(["id", "--user", "--name"])
    return output if code == 0 else str(os.getuid())


def _no_folder(name: str, folder: Path) -> Check:
    return Check(name, Status.FAILED, f"{folder}: there is no such folder", f"mkdir -p {shlex.quote(str(folder))}")


def _space(folder: Path, needed: float) -> Check:
    name = "temporary space"
    if not folder.is_dir():
        return _no_folder(name, folder)
    free = shutil.disk_usage(folder).free
    seen = f"{folder}: {size_text(free)} free, about {size_text(needed)} needed"
    if not os.access(folder, os.W_OK):
        return Check(name, Status.FAILED, f"{seen}; you cannot write there", "export APPTAINER_TMPDIR=FOLDER")
    if free < needed:
        return Check(
            name, Status.FAILED, f"{seen}: not enough", "export APPTAINER_TMPDIR=FOLDER   # on a large local disk"
        )
    code, kind = ask(["stat", "--file-system", "--format=%T", str(folder)])
    if code == 0 and kind.startswith(_NETWORKED):
        return Check(
            name,
            Status.WARNING,
            f"{seen}; its file system is {kind}, on which builds are slow and may fail",
            "export APPTAINER_TMPDIR=FOLDER   # on a local disk",
        )
    return Check(name, Status.OK, seen)


def _image_folder(build: Build) -> Check:
    name = "the image's place"
    if build.image.exists() and not build.replace:
        return Check(name, Status.FAILED, f"{build.image} exists", "--force replaces it")
    folder = build.image.absolute().parent
    if not folder.is_dir():
        return _no_folder(name, folder)
    free = shutil.disk_usage(folder).free
    seen = f"{folder}: {size_text(free)} free"
    if not os.access(folder, os.W_OK):
        return Check(
            name, Status.FAILED, f"{seen}; you cannot write there", "use another path: magicseg container build IMAGE"
        )
    if free < NEEDED[build.variant] / 4:
        return Check(name, Status.FAILED, f"{seen}: not enough", "use another path: magicseg container build IMAGE")
    return Check(name, Status.OK, seen)


def build_flags(runtime: Runtime) -> list[Flag]:
    """Return the build flags that work on this machine, with reasons."""
    root, capable = privileges()
    flags = []
    if root and capable:
        pass
    elif has_subordinate_ids():
        flags.append(Flag(("--fakeroot",), "root only inside the build, with the ids of /etc/subuid"))
    else:
        flags.append(Flag(("--fakeroot",), "no ids in /etc/subuid: the fakeroot command emulates root"))
    if runtime.packs:
        packing = "-comp zstd -Xcompression-level 3"
        flags.append(Flag(("--mksquashfs-args", packing), "packs several times faster than gzip, and reads faster"))
    return flags


def build_command(build: Build, runtime: Runtime, flags: list[Flag]) -> list[str]:
    """Return the build command, to be run in the checkout."""
    values = {"VARIANT": build.variant, "COMMIT": commit_of(build.checkout)}
    if build.base is not None:
        local = Path(build.base).exists()
        values |= {
            "BOOTSTRAP": "localimage" if local else "docker",
            "BASE": str(Path(build.base).absolute()) if local else build.base.removeprefix("docker://"),
        }
    if build.torch is not None:
        values["TORCH"] = build.torch if "://" in build.torch else str(Path(build.torch).absolute())
    return [
        *(runtime.path, "build", *(["--force"] if build.replace else [])),
        *(word for flag in flags for word in flag.words),
        *(word for bind in build.binds for word in ("--bind", bind)),
        *(word for name, value in sorted(values.items()) for word in ("--build-arg", f"{name}={value}")),
        *(str(build.image.absolute()), DEFINITION),
    ]


def commit_of(checkout: Path) -> str:
    """Return the checkout's commit, with suffix "-changed" if tracked files differ from it; "unknown" without git."""
    code, commit = ask(["git", "-C", str(checkout), "rev-parse", "HEAD"])
    if code:
        return "unknown"
    code, changes = ask(["git", "-C", str(checkout), "status", "--porcelain", "--untracked-files=no"])
    return f"{commit}-changed" if code or changes else commit


def prepare(
    build: Build, executable: str | None, report: Callable[[str], None], *, dry_run: bool = False
) -> list[str]:
    """Check this machine and return the build command.

    Args: dry_run: the command is only shown, so a container runtime need not be installed.
    Raises ContainerError at the first failed check.
    """
    runtime = named_runtime(executable) if dry_run else find_runtime(executable)
    for check in build_checks(build, runtime):
        report(f"{check.status}: {check.name}: {check.seen}")
        # Without a runtime here, the image is built on another machine, so the rights on this machine do not matter.
        if check.status is Status.FAILED and (check.name != "rights" or shutil.which(runtime.path)):
            raise ContainerError(f"{check.name}: {check.seen}", hint=check.remedy)
        if check.remedy:
            report(f"  {check.remedy}")
    flags = build_flags(runtime)
    for flag in flags:
        report(f"flag {' '.join(flag.words)}: {flag.why}")
    return build_command(build, runtime, flags)


def run_build(build: Build, command: list[str]) -> None:
    """Run the build command. Raises ContainerError if it fails; then no image is written."""
    code = subprocess.run(command, cwd=build.checkout, stdin=subprocess.DEVNULL, check=False).returncode
    if code:
        raise ContainerError(
            f"the build ended with {code}, and there is no new image",
            hint="see the output above, usually the first line with ERROR, FATAL or error",
        )
