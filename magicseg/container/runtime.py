"""Find Apptainer or Singularity on this machine, and the flags that work here, each with its reason."""

import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from magicseg.core.checks import ask
from magicseg.core.errors import ContainerError
from magicseg.core.safe_path import VARIABLE as SAFE_PATH

NAMES = ("apptainer", "singularity")
OLDEST = {"apptainer": (1, 2), "singularity": (4, 0)}  # the first versions with build arguments in definitions
_PACKS = (1, 4)  # the first Apptainer whose build has --mksquashfs-args; SingularityCE does not have it
_APPARMOR = (Path("/etc/apparmor.d/apptainer"), Path("/etc/apparmor.d/singularity-ce"))
FOREIGN = ("PYTHONPATH", "PYTHONHOME")  # these would put the host's libraries before the image's
_SYS_RESOURCE = 24  # CAP_SYS_RESOURCE in linux/capability.h
_STATUS = Path("/proc/self/status")
_NVIDIA = Path("/dev/nvidiactl")
_AMD = Path("/dev/kfd")


@dataclass(frozen=True)
class Runtime:
    """A program that runs images. ``version``: major and minor. ``shown``: output of ``--version``."""

    path: str
    name: str
    version: tuple[int, int]
    shown: str

    @property
    def builds(self) -> bool:
        """Return whether it is new enough to build `Apptainer.def`."""
        return self.version >= OLDEST[self.name]

    @property
    def packs(self) -> bool:
        """Return whether its ``build`` accepts ``--mksquashfs-args``."""
        return self.name == "apptainer" and self.version >= _PACKS

    @property
    def may_work_without_namespaces(self) -> bool:
        """Return whether it may work where ``unshare`` fails: it is setuid root, or has its own AppArmor rule."""
        code, output = ask([self.path, "buildcfg"])
        return (code == 0 and "SUID_INSTALL=1" in output) or any(rule.exists() for rule in _APPARMOR)


@dataclass(frozen=True)
class Flag:
    """Words of the command line, and the reason for them."""

    words: tuple[str, ...]
    why: str


def find_runtime(executable: str | None = None) -> Runtime:
    """Find the named program, else apptainer, else singularity. Raises ContainerError if none can be used."""
    for name in (executable,) if executable else NAMES:
        path = shutil.which(name)
        if path is None:
            continue
        code, output = ask([path, "--version"])
        match = re.search(r"(apptainer|singularity).*?(\d+)\.(\d+)", output)
        if code or match is None:
            raise ContainerError(
                f"{path}: does not print its version: {output[:200] or f'exit code {code}'}",
                hint="load the site's module, or repair the installation",
            )
        return Runtime(path, match[1], (int(match[2]), int(match[3])), output)
    raise ContainerError(
        f"{executable or ' and '.join(NAMES)}: not on the PATH",
        hint="load the site's module, or install it: https://apptainer.org/docs/admin/main/installation.html",
    )


def named_runtime(executable: str | None = None) -> Runtime:
    """Return the runtime of `find_runtime`, or a placeholder for Apptainer if none is installed, for dry runs."""
    try:
        return find_runtime(executable)
    except ContainerError:
        name = executable or NAMES[0]
        kind = "singularity" if "singularity" in Path(name).name else "apptainer"
        return Runtime(
            name,
            kind,
            _PACKS if kind == "apptainer" else OLDEST[kind],
            "not on this machine; assuming a recent version",
        )


def privileges() -> tuple[bool, bool]:
    """Return whether this process is root, and whether it has CAP_SYS_RESOURCE, which some machines withhold."""
    match = re.search(r"^CapEff:\s*([0-9a-f]+)", _STATUS.read_text(), re.MULTILINE)
    return os.geteuid() == 0, bool(match and int(match[1], 16) >> _SYS_RESOURCE & 1)


def namespaces_work() -> str | None:
    """Return why user namespaces cannot be created here; None if they can, or if it cannot be tested."""
    if shutil.which("unshare") is None:
        return None
    code, output = ask(["unshare", "--user", "--map-root-user", "true"])
    return None if code == 0 else output or f"unshare ends with {code}"


def has_subordinate_ids(folder: Path = Path("/etc")) -> bool:
    """Return whether the user has ranges of subordinate ids, by name or number, in both subuid and subgid."""
    number = str(os.getuid())
    try:
        names = {number, pwd.getpwuid(os.getuid()).pw_name}
    except KeyError:  # this machine has no entry for the user
        names = {number}
    for name in ("subuid", "subgid"):
        try:
            lines = (folder / name).read_text().splitlines()
        except OSError:
            return False
        if not names & {line.partition(":")[0] for line in lines}:
            return False
    return True


def start_flags(runtime: Runtime) -> list[Flag]:
    """Return the flags that exec, run, shell and test need on this machine."""
    flags = []
    root, capable = privileges()
    if root and not capable and runtime.name == "apptainer":
        flags.append(Flag(("--userns",), "root lacks CAP_SYS_RESOURCE here, so the image starts in a user namespace"))
    if _NVIDIA.exists():
        flags.append(Flag(("--nv",), f"{_NVIDIA}: there is an NVIDIA GPU"))
    if _AMD.exists():
        flags.append(Flag(("--rocm",), f"{_AMD}: there is an AMD GPU"))
    return flags


def command(
    runtime: Runtime,
    action: str,
    image: Path,
    arguments: Iterable[str] = (),
    *,
    binds: Iterable[str] = (),
    flags: Iterable[Flag] | None = None,
) -> list[str]:
    """Return a command line that starts ``image``. Args: binds: SOURCE[:TARGET[:ro]]."""
    chosen = start_flags(runtime) if flags is None else flags
    words = [word for flag in chosen for word in flag.words]
    bound = [word for bind in binds for word in ("--bind", bind)]
    return [runtime.path, action, *words, *bound, str(image.absolute()), *arguments]


def inside(runtime: Runtime, variables: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment without `FOREIGN`, with variables that override those inside the image."""
    prefix = f"{runtime.name.upper()}ENV_"
    host = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    return {**host, **{prefix + name: value for name, value in {SAFE_PATH: "1", **variables}.items()}}


def call(
    words: list[str], environment: Mapping[str, str] | None = None, seconds: float = 600.0
) -> "subprocess.CompletedProcess[str]":
    """Run a command and capture its output. Raises ContainerError if it does not end in time."""
    try:
        return subprocess.run(
            words,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ContainerError(f"{words[0]} {words[1]} did not end within {seconds:.0f} s") from None
