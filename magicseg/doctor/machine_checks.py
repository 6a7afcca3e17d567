"""Check this machine: Python, packages, devices, disks, Slurm, containers. Imports no library that it checks."""

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

from magicseg.core.checks import Check, Status, ask, attempt
from magicseg.core.files import lacking
from magicseg.core.signals import SOCKET_FOLDER
from magicseg.core.storage_errors import complaint, remedy
from magicseg.core.text import size_text
from magicseg.data.shared_memory import check_shared_memory, default_need
from magicseg.launch.slurm import SlurmError, call, installed, partitions, release
from magicseg.weights.cache import hub_cache, seen_cache
from magicseg.weights.hub import is_offline

_LITTLE_SPACE = 5e9  # bytes
_FEW_FILES = 10_000
_SLURM = ("sbatch", "squeue", "scontrol", "scancel", "sinfo", "sacct")
_TORCH_SECONDS = 120.0
_TORCH = """
import json, torch
devices = []
for number in range(torch.cuda.device_count()):
    free, total = torch.cuda.mem_get_info(number)
    devices.append([torch.cuda.get_device_name(number), free, total])
print(json.dumps({"version": torch.__version__, "cuda": torch.version.cuda, "devices": devices}))
"""


def machine_checks(folder: Path) -> Iterator[Check]:
    """Run all checks of this machine. Args: folder: the folder whose disk is checked."""
    yield python()
    yield packages()
    yield torch_devices()
    yield attempt("hub cache", hub)
    yield attempt("disk", lambda: disk(folder))
    yield quota(folder)
    yield attempt("temporary files", temporary_files)
    yield attempt("shared memory", lambda: check_shared_memory(default_need()))
    yield attempt("Slurm", slurm)
    yield container()


def python() -> Check:
    """Report the Python interpreter. Jobs use the same interpreter, unless they run in a container."""
    return Check("Python", Status.OK, f"{platform.python_version()}, {sys.executable}")


def packages() -> Check:
    """Check the versions of installed packages against magicseg's requirements."""
    found: list[str] = []
    base: list[str] = []
    models: list[str] = []
    for text in [f"magicseg=={version('magicseg')}", *(requires("magicseg") or ())]:
        wanted = Requirement(text)
        extra = "extra" in str(wanted.marker or "")
        if extra and not wanted.marker.evaluate({"extra": "models"}):  # type: ignore[union-attr]
            continue
        there = installed_version(wanted.name)
        if there is not None:
            found.append(f"{wanted.name} {there}")
        if there is None or not wanted.specifier.contains(there, prereleases=True):
            (models if extra else base).append(f"{wanted.name}{wanted.specifier}")
    seen = ", ".join(found)
    if base:
        return Check("packages", Status.FAILED, f"missing: {', '.join(base)}; {seen}", "pip install magicseg")
    if models:
        return Check(
            "packages",
            Status.NOTE,
            f"missing: {', '.join(models)}: enough to submit jobs, but not to run models; {seen}",
            "where models run (or in the image): pip install 'magicseg[models]'",
        )
    return Check("packages", Status.OK, seen)


def installed_version(name: str) -> str | None:
    """Return a distribution's version; None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def torch_devices() -> Check:
    """Check torch and its GPUs in a separate process."""
    if installed_version("torch") is None:
        return Check("torch", Status.NOTE, "not installed here")
    try:
        done = subprocess.run(
            [sys.executable, "-c", _TORCH],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TORCH_SECONDS,
        )
        found = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        return Check(
            "torch", Status.FAILED, f"its import takes more than {_TORCH_SECONDS:.0f} s", "is the disk slow?"
        )
    except ValueError:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return Check(
            "torch", Status.FAILED, f"cannot be imported: {last}", "pip install --force-reinstall torch torchvision"
        )
    seen = f"{found['version']}, CUDA {found['cuda'] or 'not built in'}"
    devices = [f"{name}, {size_text(free)} of {size_text(total)} free" for name, free, total in found["devices"]]
    if devices:
        return Check("torch", Status.OK, f"{seen}; {'; '.join(devices)}")
    code, gpus = ask(["nvidia-smi", "-L"])
    if code == 0:
        return Check(
            "torch",
            Status.WARNING,
            f"{seen}; sees no GPU, but the driver does: {gpus[:200]}",
            "install a torch built for this driver's CUDA, or unset CUDA_VISIBLE_DEVICES",
        )
    return Check("torch", Status.NOTE, f"{seen}; no GPU here, as on most login nodes")


def hub() -> Check:
    """Check the weights cache, which `magicseg fetch` fills and stages read."""
    cache = hub_cache()
    free = shutil.disk_usage(_existing(cache)).free
    token = "a token is set" if os.environ.get("HF_TOKEN") else "no HF_TOKEN"
    seen = f"{cache}, {size_text(free)} free, {token}{', HF_HUB_OFFLINE is set' if is_offline() else ''}"
    if not os.access(_existing(cache), os.W_OK):
        return Check(
            "hub cache",
            Status.WARNING,
            f"{seen}; you cannot write there ({seen_cache()})",
            "export HF_HOME=DIRECTORY   # a folder that you can write to",
        )
    if free < _LITTLE_SPACE:
        return Check("hub cache", Status.WARNING, f"{seen}: low", "export HF_HOME=DIRECTORY   # on a larger disk")
    return Check("hub cache", Status.OK, seen)


def disk(folder: Path) -> Check:
    """Check free space, free inodes and file system features at the folder of a run."""
    state = os.statvfs(folder)
    free = state.f_bavail * state.f_frsize
    inodes = f"{state.f_favail} more files" if state.f_files else "files are not counted"
    seen = f"{folder}: {size_text(free)} free, {inodes}"
    if not os.access(folder, os.W_OK):
        return Check(
            "disk", Status.FAILED, f"{seen}; you cannot write there", f"chmod u+w {folder}, or use another folder"
        )
    if free < _LITTLE_SPACE or (state.f_files and state.f_favail < _FEW_FILES):
        return Check(
            "disk", Status.WARNING, f"{seen}: low", f"free some space: du -sh {folder}/*, or use another folder"
        )
    try:
        absent = lacking(folder)
    except OSError as error:
        return Check(
            "disk", Status.FAILED, f"{seen}; a file there {complaint(error)}", remedy(error) or "use another folder"
        )
    if absent:
        seen = f"{seen}; not supported: {', '.join(absent)}; fallbacks are used"
    return Check("disk", Status.OK, seen)


def quota(folder: Path) -> Check:
    """Check the user's disk quota, from Lustre or else from the system."""
    user = str(os.getuid())
    for command in (["lfs", "quota", "-h", "-u", user, str(folder)], ["quota", "-s"]):
        if not installed(command[0]):
            continue
        code, output = ask(command)
        if code and "*" not in output:
            continue
        if "*" in output:  # both commands mark exceeded limits by '*'
            return Check("quota", Status.WARNING, output[:300], "free some space, or ask for more")
        return Check("quota", Status.OK, output[:300] or "none set")
    return Check("quota", Status.NOTE, "unknown: neither lfs quota nor quota is available")


def temporary_files() -> Check:
    """Check the folder of temporary files."""
    with tempfile.TemporaryFile() as file:
        file.write(b"x")
        file.flush()
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    seen = f"{folder}, {size_text(free)} free"
    if len(os.fsencode(folder)) > SOCKET_FOLDER:
        return Check(
            "temporary files", Status.WARNING, f"{seen}: its path is too long for sockets", "export TMPDIR=/tmp"
        )
    if free < 1e9:
        return Check(
            "temporary files", Status.WARNING, f"{seen}: low", "export TMPDIR=DIRECTORY   # on a larger disk"
        )
    return Check("temporary files", Status.OK, seen)


def slurm() -> Check:
    """Check that Slurm's commands are installed and its daemons answer."""
    lacking = [name for name in _SLURM if not installed(name)]
    if len(lacking) == len(_SLURM):
        return Check("Slurm", Status.NOTE, "not installed here; without it: magicseg run RUN")
    if set(lacking) - {"sacct"}:
        return Check(
            "Slurm", Status.FAILED, f"missing: {', '.join(lacking)}", "load the site's module, or correct the PATH"
        )
    try:
        version, found = release(), partitions()
        call(["squeue", "--noheader", "--me", "--format=%i"])
    except SlurmError as error:
        return Check(
            "Slurm",
            Status.FAILED,
            " ".join(error.message.split()),
            "on a login node of the cluster, these commands must work: sinfo; squeue --me",
        )
    seen = f"{version}; partitions (name, state, time limit, nodes): {'; '.join(found) or 'none'}"
    trouble = attempt("Slurm", _accounting, Status.WARNING) if not lacking else None
    if lacking or (trouble and trouble.status is not Status.OK):
        why = trouble.seen if trouble else "sacct is not installed"
        return Check("Slurm", Status.WARNING, f"{seen}; no accounting: {why}", "status shows less about ended jobs")
    return Check("Slurm", Status.OK, seen)


def _accounting() -> Check:
    call(["sacct", "-X", "-n", "-P", "--format=JobID", "--starttime=now-1hour"])
    return Check("Slurm", Status.OK, "")


def container() -> Check:
    """Check the container runtime, which profiles with an image need."""
    for name in ("apptainer", "singularity"):
        if installed(name):
            code, output = ask([name, "--version"])
            if code == 0:
                return Check("container", Status.OK, output)
            return Check("container", Status.WARNING, f"{name}: {output[:200]}", "load the site's module")
    return Check("container", Status.NOTE, "neither apptainer nor singularity: use profiles without an image")


def _existing(path: Path) -> Path:
    """Return the path, or its nearest parent folder that exists."""
    while not path.exists():
        path = path.parent
    return path
