"""Image files: their digests, labels and signatures."""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from magicseg.container.runtime import Runtime, call, command
from magicseg.core.digests import file_sha256
from magicseg.core.documents import parse_json, read_json
from magicseg.core.errors import ContainerError, DataError
from magicseg.core.files import write_atomic
from magicseg.core.text import command as typed

VERSION_LABEL = "org.opencontainers.image.version"
PREFIX = "/magicseg"  # the virtual environment inside the image, and the lists of its packages
_REMEMBERED = 50


@dataclass(frozen=True)
class Image:
    """An image file. ``digest``: SHA-256 of its bytes. ``size``: bytes. ``changed``: modification time in seconds."""

    path: Path
    digest: str
    size: int
    changed: int


def identify(path: Path) -> Image:
    """Hash an image, or return the cached hash if the file has not changed since.

    Raises ContainerError if it is not a readable file.
    """
    try:
        state = path.stat()
        if not path.is_file():
            raise ContainerError(f"{path}: is not an image file", hint="magicseg container build IMAGE.sif")
        key = f"{path.resolve()}:{state.st_size}:{state.st_mtime_ns}:{state.st_ino}"
        known = _read_cache()
        if key not in known:
            known[key] = f"sha256:{file_sha256(path)}"
            _write_cache(known)
    except OSError as error:
        raise ContainerError(
            f"{path}: the image cannot be read: {error.strerror}",
            hint="name an image that this machine and the nodes see; to build an image: magicseg container build",
        ) from None
    return Image(path, known[key], state.st_size, int(state.st_mtime))


def _cache_file() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "magicseg" / "images.json"


def _read_cache() -> dict[str, str]:
    try:
        return read_json(_cache_file(), dict[str, str])
    except (OSError, DataError, RuntimeError):  # missing, damaged, or no home folder: hash again
        return {}


def _write_cache(known: dict[str, str]) -> None:
    newest = dict(list(known.items())[-_REMEMBERED:])
    try:
        _cache_file().parent.mkdir(parents=True, exist_ok=True)
        write_atomic(_cache_file(), json.dumps(newest, indent=1).encode())
    except (OSError, RuntimeError):  # the cache is optional
        return


class _Attributes(BaseModel):
    labels: dict[str, Any] | None


class _Data(BaseModel):
    attributes: _Attributes


class _Inspected(BaseModel):
    """Output of ``apptainer inspect --json --labels``."""

    data: _Data


def labels(runtime: Runtime, path: Path) -> dict[str, str]:
    """Return an image's labels. Raises ContainerError if the file is not a container image."""
    done = call([runtime.path, "inspect", "--json", "--labels", str(path)])
    try:
        found = parse_json(done.stdout, _Inspected, source=path).data.attributes.labels or {}
    except DataError:
        raise ContainerError(
            f"{path}: is not an image: {_last_line(done.stderr)}", hint="magicseg container build IMAGE.sif"
        ) from None
    return {str(name): str(value) for name, value in found.items()}


def describe(runtime: Runtime, path: Path) -> dict[str, Any]:
    """Return the data of ``magicseg container inspect --json``.

    They are path, digest, size in bytes, labels, and the versions of all Python distributions inside.
    """
    found = identify(path)
    found_labels = labels(runtime, path)
    listed = call(command(runtime, "exec", path, ["cat", f"{PREFIX}/pip-freeze.txt"], flags=None))
    pairs = (line.split("==", 1) for line in listed.stdout.splitlines() if "==" in line)
    return {
        "image": str(found.path),
        "digest": found.digest,
        "bytes": found.size,
        "labels": dict(sorted(found_labels.items())),
        "versions": dict(sorted((name, value) for name, value in pairs)),
    }


def refuse_unsigned(runtime: Runtime, path: Path, key: Path) -> None:
    """Check an image's signature. Args: key: file of the signer's public key (PEM).

    Raises ContainerError if the image is not signed with this key, or was changed after signing.
    """
    if not key.is_file():
        raise ContainerError(
            f"{key}: there is no such key file",
            hint=f"the signer can export it: openssl pkey -in private.pem -pubout -out {typed(key)}",
        )
    done = call(verification(runtime.path, str(path), str(key)))
    if done.returncode:
        raise ContainerError(
            f"{path}: is not an image that was signed with {key}: {_last_line(done.stderr)}",
            hint=f"do not use it; download it again; to list its parts: {typed(runtime.name, 'sif', 'list', path)}",
        )


def verification(executable: str, image: str, key: str) -> list[str]:
    """Return the command that checks a signature."""
    return [executable, "verify", "--key", key, image]


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return re.sub(r"^(FATAL|ERROR):\s*", "", lines[-1]) if lines else "no output"
