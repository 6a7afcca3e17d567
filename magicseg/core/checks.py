"""One thing that was looked at, and how other programs are asked."""

import enum
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from magicseg.core.errors import MagicsegError


class Status(enum.StrEnum):
    """``note``: nothing is wrong, but worth knowing; ``warning``: it may become a problem; ``failed``: it is one."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True)
class Check:
    """``seen`` says what was found, ``remedy`` what to type or to change."""

    name: str
    status: Status
    seen: str
    remedy: str | None = None


def attempt(name: str, look: Callable[[], Check], failure: Status = Status.FAILED) -> Check:
    """What ``look`` finds; one of our errors, or of the operating system, is a finding too."""
    try:
        return look()
    except MagicsegError as error:
        return Check(name, failure, error.message, error.hint)
    except OSError as error:
        return Check(name, failure, str(error), "mend it, or its permissions")


def ask(command: Sequence[str], seconds: float = 20.0) -> tuple[int, str]:
    """A program's exit code and what it says, on one line; 124 if it does not answer in time."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return 124, f"{command[0]} did not answer within {seconds:.0f} s"
    except OSError as error:
        return 126, f"{command[0]} cannot be started: {error.strerror}"
    return done.returncode, " ".join((done.stdout.strip() or done.stderr.strip()).split())


def gigabytes(size: float) -> str:
    """A size in bytes, for people."""
    return f"{size / 1e9:.1f} GB"
