"""Claims: one writer per shard, without a lock service.

A claim is a small file, created exclusively, that its owner touches every few seconds. It is stale when its owner
is known to be dead (same machine and process namespace, or the same Slurm job before it was put back into the queue)
or when it was not touched for a while, by the file server's own clock. Claims keep work from being done twice and
let several commands share a stage; correctness does not rest on them: two writers of one shard write the same bytes,
and the first commit stands.
"""

import contextlib
import os
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Self

import psutil
from pydantic import Field
from typing_extensions import TypedDict

from magicseg.core.documents import read_json
from magicseg.core.errors import DataError
from magicseg.core.files import to_json
from magicseg.core.text import printable

HEARTBEAT_SECONDS = 20.0
STALE_SECONDS = 180.0
_CLAIM_BYTES = 1 << 16


def job_label() -> str:
    """Return the Slurm job of this process, as Slurm's commands name it: ``123_4`` or ``123``; "" outside Slurm."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    if array:
        return f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID', '')}"
    return os.environ.get("SLURM_JOB_ID", "")


def _restarts() -> int:
    """Return how often Slurm has requeued this job."""
    text = os.environ.get("SLURM_RESTART_COUNT", "0")
    return int(text) if text.isdigit() else 0


def _namespace() -> str:
    """Return this machine's boot and process namespace; a process number is valid only inside them."""
    parts = []
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
    with contextlib.suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join([socket.gethostname(), *parts])


@dataclass(frozen=True)
class Claim:
    """A claim that this process holds. The context manager refreshes it, and removes it at the end."""

    path: Path
    token: str
    _stop: threading.Event

    def __enter__(self) -> Self:
        threading.Thread(target=self._beat, name="claim", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        release(self.path, self.token)

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(OSError):
                os.utime(self.path)


class _ClaimFile(TypedDict, total=False):
    """A claim's content. Missing keys are unknown."""

    token: str
    pid: Annotated[int, Field(gt=0, lt=2**31)]
    started: float
    namespace: str
    host: str
    job: str
    restarts: int
    gpu: str


def _read(path: Path) -> _ClaimFile | None:
    """Return a claim's content, or None if it is missing or invalid."""
    try:
        return read_json(path, _ClaimFile, limit=_CLAIM_BYTES)
    except FileNotFoundError:
        return None
    except DataError as error:
        # Another user's claim, which is not readable: it still counts.
        return _ClaimFile() if isinstance(error.__cause__, PermissionError) else None


def release(path: Path, token: str) -> None:
    """Remove a claim if it is still the one with this token."""
    data = _read(path)
    if data is not None and data.get("token") == token:
        path.unlink(missing_ok=True)


def owner() -> dict[str, Any]:
    """Return what identifies this process for `is_live`: number, start, boot and namespace, host, Slurm job."""
    process = psutil.Process()
    return {
        "pid": process.pid,
        "started": process.create_time(),
        "namespace": _namespace(),
        "host": socket.gethostname(),
        "job": job_label(),
        "restarts": _restarts(),
    }


def try_claim(path: Path, gpu: str | None = None) -> Claim | None:
    """Claim a shard. Returns None if a live process holds it. A stale claim is replaced.

    Args: gpu: the name of the GPU on which it is processed, for `claimant`.
    """
    token = os.urandom(8).hex()
    content = to_json({"token": token, **owner(), **({"gpu": gpu} if gpu is not None else {})})
    if _create(path, content):
        return Claim(path, token, threading.Event())
    if is_live(path):
        return None
    # Stale: of several that see it so, the one with the lock looks again, takes it away and makes its own.
    lock = path.with_name(f".{path.name}.takeover")
    if not _create(lock, b""):
        if not _is_recent(lock, HEARTBEAT_SECONDS):
            lock.unlink(missing_ok=True)  # of a process that was killed in mid-takeover
        return None
    try:
        if is_live(path):
            return None
        path.unlink(missing_ok=True)
        return Claim(path, token, threading.Event()) if _create(path, content) else None
    finally:
        lock.unlink(missing_ok=True)


def _create(path: Path, content: bytes) -> bool:
    """Create a file. Returns False if it exists."""
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
    except OSError:  # a full disk: an empty claim would hold the shard up
        path.unlink(missing_ok=True)
        raise
    return True


def is_live(path: Path) -> bool:
    """Return whether a claim's owner may still be working."""
    data = _read(path)
    if data is not None and data.get("namespace") == _namespace():
        try:
            owner = psutil.Process(data["pid"])
            alive = owner.status() != psutil.STATUS_ZOMBIE
            return alive and abs(owner.create_time() - data["started"]) < 1.0
        except (psutil.NoSuchProcess, KeyError):
            return False
    if data is not None and data.get("job") == job_label() != "" and data.get("restarts", 0) < _restarts():
        return False  # this very job, before it was put back into the queue: it runs once at a time
    # An empty or foreign claim: only its age can tell. Its owner writes it right after creating it.
    return _is_recent(path, STALE_SECONDS if data is not None else HEARTBEAT_SECONDS)


def claiming_job(path: Path) -> str:
    """Return the Slurm job that holds a claim; "" if there is no claim, or its owner runs outside of Slurm."""
    data = _read(path)
    return data.get("job", "") if data is not None else ""


def holder(path: Path) -> str:
    """Return a description of a claim's owner; "nobody" if no claim can be read."""
    data = _read(path)
    if data is None:
        return "nobody"
    job = f", Slurm job {data['job']}" if data.get("job") else ""
    return printable(f"process {data.get('pid')} on {data.get('host')}{job}", 300)


@dataclass(frozen=True)
class Claimant:
    """The place of a claim's owner. ``gpu``: as in ``CUDA_VISIBLE_DEVICES``; None if it has none of its own."""

    host: str
    gpu: str | None


def claimant(path: Path) -> Claimant | None:
    """Return the place of a claim's owner; None if no claim can be read."""
    data = _read(path)
    if data is None:
        return None
    gpu = data.get("gpu")
    return Claimant(printable(data.get("host", ""), 300), None if gpu is None else printable(gpu, 100))


def _is_recent(path: Path, seconds: float) -> bool:
    """Return whether a file was modified in the last ``seconds``, by the clock of its file system.

    A date as far in the future is no sign of life either: no owner touches with another clock than this.
    """
    try:
        touched = path.lstat().st_mtime
    except FileNotFoundError:
        return False
    probe = path.with_name(f".clock.{os.getpid()}.{os.urandom(4).hex()}")
    try:
        probe.touch()
        now = probe.stat().st_mtime
    except OSError:  # read-only or full: this machine's clock has to do
        now = time.time()
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)
    return abs(now - touched) < seconds
