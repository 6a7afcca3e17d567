"""A real Apptainer, a stand-in for the Python base image, and the image of the definition at the top, for tests.

``python tests/helpers/real_images.py FOLDER`` makes both ahead of the tests, while other packages are installed: it
needs the standard library and pip.
"""

import ast
import contextlib
import fcntl
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

TOP = Path(__file__).parents[2]
_FAST = ("--mksquashfs-args", "-comp zstd -Xcompression-level 1")


def apptainer(*words: object, before: Sequence[str] = ()) -> "subprocess.CompletedProcess[str]":
    """Run Apptainer to its end in the checkout's root. Args: before: words in front of the command."""
    return subprocess.run(
        [*before, "apptainer", *map(str, words)],
        cwd=TOP,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )


@dataclass(frozen=True)
class Base:
    """A stand-in for the slim Python image: a root folder, the SIF made of it, what a build in it has to bind."""

    root: Path
    sif: Path
    binds: tuple[str, ...]


def pip_settings() -> dict[str, str]:
    """Return pip's settings on this machine, by their names in a configuration file."""
    shown = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], check=True, capture_output=True, text=True
    )
    settings = {}
    for line in shown.stdout.splitlines():
        name, _, value = line.partition("=")
        settings[name.rsplit(".", 1)[-1]] = str(ast.literal_eval(value))
    wanted = ("index-url", "extra-index-url", "find-links", "trusted-host", "proxy", "cert", "timeout")
    return {name: settings[name] for name in wanted if name in settings}


@contextlib.contextmanager
def _alone(folder: Path, what: str) -> Iterator[None]:
    """Hold a lock, so that no other process creates it meanwhile."""
    with (folder / f"{what}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def make_base(folder: Path) -> Base:
    """Create a base image of Debian 12 with Python and this machine's pip settings, which the definition lacks.

    Existing files in the folder are kept.
    """
    root, sif, settings = folder / "base", folder / "base.sif", pip_settings()
    folders = [Path(urlparse(word).path) for word in settings.get("extra-index-url", "").split() if "file:" in word]
    binds = [str(folder.parent) for folder in folders]
    binds += [word for word in settings.get("find-links", "").split() if word.startswith("/")]
    with _alone(folder, "base"):
        if not sif.exists():
            _unpack_debian(root)
            for bind in binds:
                (root / bind.lstrip("/")).mkdir(parents=True, exist_ok=True)
            _set_pip_up(root, settings)
            done = apptainer("build", *_FAST, sif, root)
            assert done.returncode == 0, done.stderr
    return Base(root, sif, tuple(binds))


def _unpack_debian(root: Path) -> None:
    shutil.rmtree(root, ignore_errors=True)
    mirror = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages", "Codename: bookworm"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()[0]
    packages = "python3,python3-venv,ca-certificates,passwd"
    subprocess.run(
        ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={packages}", "bookworm", str(root), mirror],
        check=True,
        timeout=300,
    )
    for device in (root / "dev").iterdir():
        shutil.rmtree(device) if device.is_dir() and not device.is_symlink() else device.unlink()


def _set_pip_up(root: Path, settings: dict[str, str]) -> None:
    if "cert" in settings:
        shutil.copy(settings["cert"], root / "etc/ssl/certs/ca-certificates.crt")
        settings = settings | {"cert": "/etc/ssl/certs/ca-certificates.crt"}
    lines = [f"{name} = {value}" for name, value in settings.items()]
    (root / "etc/pip.conf").write_text("\n".join(["[global]", *lines, ""]))


def make_image(folder: Path) -> Path:
    """Build the image of the definition from that base with the documented command. An existing image is kept."""
    path, base = folder / "magicseg.sif", make_base(folder)
    with _alone(folder, "image"):
        if not path.exists():
            binds = [word for bind in base.binds for word in ("--bind", bind)]
            arguments = ("BOOTSTRAP=localimage", f"BASE={base.sif}", "VARIANT=cpu")
            done = build(path, *binds, *(word for each in arguments for word in ("--build-arg", each)))
            assert done.returncode == 0, done.stderr[-3000:]
            assert "Running testscript" in done.stderr
    return path


def build(image: Path, *words: object, before: Sequence[str] = ()) -> "subprocess.CompletedProcess[str]":
    """Build the definition in the checkout's root with the documented command."""
    return apptainer("build", "--fakeroot", *_FAST, *words, image, "Apptainer.def", before=before)


if __name__ == "__main__":
    make_image(Path(sys.argv[1]))
