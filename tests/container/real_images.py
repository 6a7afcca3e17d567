"""A real Apptainer, a stand-in for the Python base image, and a registry on this machine, for tests."""

import ast
import contextlib
import gzip
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

import pytest

TOP = Path(__file__).parents[2]
NEEDED = ("apptainer", "mmdebstrap", "docker-registry", "unshare")
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_FAST = ("--mksquashfs-args", "-comp zstd -Xcompression-level 1")


def require_apptainer() -> None:
    """Skip without Apptainer; in CI, fail."""
    missing = [name for name in NEEDED if not shutil.which(name)]
    if missing or os.geteuid() != 0:
        reason = f"a real Apptainer is not to be had: {', '.join(missing) or 'its tests build as root'}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(f"{reason} (tests/container/install.sh)")


def apptainer(*words: object, before: Sequence[str] = ()) -> "subprocess.CompletedProcess[str]":
    """Run Apptainer to its end, at the top of the checkout. Args: before: words in front of the command."""
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
    """How pip is set up on this machine, by the names of a configuration file."""
    shown = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], check=True, capture_output=True, text=True
    )
    settings = {}
    for line in shown.stdout.splitlines():
        name, _, value = line.partition("=")
        settings[name.rsplit(".", 1)[-1]] = str(ast.literal_eval(value))
    wanted = ("index-url", "extra-index-url", "find-links", "trusted-host", "proxy", "cert", "timeout")
    return {name: settings[name] for name in wanted if name in settings}


def make_base(folder: Path) -> Base:
    """Debian 12 with its Python, and with what pip needs on this machine: none of that is in the definition."""
    root, sif = folder / "base", folder / "base.sif"
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
    settings = pip_settings()
    places = [Path(urlparse(word).path) for word in settings.get("extra-index-url", "").split() if "file:" in word]
    binds = [str(place.parent) for place in places]
    binds += [word for word in settings.get("find-links", "").split() if word.startswith("/")]
    for bind in binds:
        (root / bind.lstrip("/")).mkdir(parents=True, exist_ok=True)
    if "cert" in settings:
        shutil.copy(settings["cert"], root / "etc/ssl/certs/ca-certificates.crt")
        settings["cert"] = "/etc/ssl/certs/ca-certificates.crt"
    lines = [f"{name} = {value}" for name, value in settings.items()]
    (root / "etc/pip.conf").write_text("\n".join(["[global]", *lines, ""]))
    for device in (root / "dev").iterdir():
        shutil.rmtree(device) if device.is_dir() and not device.is_symlink() else device.unlink()
    made = apptainer("build", *_FAST, sif, root)
    assert made.returncode == 0, made.stderr
    return Base(root, sif, tuple(binds))


def build(image: Path, *words: object, before: Sequence[str] = ()) -> "subprocess.CompletedProcess[str]":
    """Build the definition at the top, as an issue's contract has it."""
    return apptainer("build", "--fakeroot", *_FAST, *words, image, "Apptainer.def", before=before)


# ------------------------------------------------------------ a registry of one image


@contextlib.contextmanager
def registry(folder: Path) -> Iterator[str]:
    """A registry on the loopback. Yields: its address."""
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    settings = {
        "version": 0.1,
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
        "http": {"addr": address},
        "log": {"level": "error", "accesslog": {"disabled": True}},
    }
    (folder / "config.json").write_text(json.dumps(settings))  # which is YAML too
    with subprocess.Popen(
        ["docker-registry", "serve", folder / "config.json"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            until = time.monotonic() + 30
            while True:
                try:
                    urllib.request.urlopen(f"http://{address}/v2/", timeout=5).close()
                    break
                except (urllib.error.URLError, ConnectionError):
                    assert time.monotonic() < until, "the registry does not answer"
                    time.sleep(0.1)
            yield address
        finally:
            process.terminate()


def _send(method: str, address: str, data: bytes, kind: str) -> str:
    request = urllib.request.Request(address, data=data, method=method, headers={"Content-Type": kind})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return str(answer.headers.get("Location", ""))


def push(address: str, name: str, root: Path) -> str:
    """Put a root folder into a registry as an image of one layer. Returns: the image's digest."""
    packed = root.with_name("layer.tar.gz")
    with gzip.open(packed, "wb", compresslevel=1) as file, tarfile.open(fileobj=file, mode="w|") as archive:
        archive.add(root, arcname=".")
    layer = packed.read_bytes()
    plain = hashlib.sha256(gzip.decompress(layer)).hexdigest()
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{plain}"]},
        }
    ).encode()

    def blob(data: bytes, kind: str) -> dict[str, object]:
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        place = _send("POST", f"http://{address}/v2/{name}/blobs/uploads/", b"", "application/octet-stream")
        joint = "&" if "?" in place else "?"
        _send("PUT", f"{place}{joint}digest={digest}", data, "application/octet-stream")
        return {"mediaType": kind, "digest": digest, "size": len(data)}

    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": blob(config, "application/vnd.oci.image.config.v1+json"),
            "layers": [blob(layer, "application/vnd.oci.image.layer.v1.tar+gzip")],
        }
    ).encode()
    digest = f"sha256:{hashlib.sha256(manifest).hexdigest()}"
    _send("PUT", f"http://{address}/v2/{name}/manifests/{digest}", manifest, _MANIFEST)
    packed.unlink()
    return digest


def mirrored(folder: Path, address: str) -> list[str]:
    """Words in front of a command, for which docker.io then has that registry as a mirror."""
    settings, system = folder / "containers", Path("/etc/containers")
    settings.mkdir()
    system.mkdir(exist_ok=True)
    (settings / "registries.conf").write_text(
        '[[registry]]\nprefix = "docker.io"\nlocation = "docker.io"\n'
        f'[[registry.mirror]]\nlocation = "{address}"\ninsecure = true\n'
    )
    return ["unshare", "--mount", "sh", "-c", f'mount --bind "$0" {system} && exec "$@"', str(settings)]
