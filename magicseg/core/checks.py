"""The result of one diagnostic check, and helpers that run a check or another program."""

import enum
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from magicseg.core.errors import MagicsegError


class Status(enum.StrEnum):
    """``note``: information; ``warning``: may cause a problem later; ``failed``: a problem now."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True)
class Check:
    """The result of one check. ``seen``: the observation. ``remedy``: what to type or to change."""

    name: str
    status: Status
    seen: str
    remedy: str | None = None


def attempt(name: str, look: Callable[[], Check], failure: Status = Status.FAILED) -> Check:
    """Return the result of ``look``. A `MagicsegError` or an OSError becomes a check with status ``failure``."""
    try:
        return look()
    except MagicsegError as error:
        return Check(name, failure, error.message, error.hint)
    except OSError as error:
        return Check(name, failure, str(error), "fix the cause, or the permissions")


def ask(command: Sequence[str], seconds: float = 20.0) -> tuple[int, str]:
    """Run a program; return its exit code and its output on one line. The exit code is 124 after a timeout."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return 124, f"{command[0]} did not answer within {seconds:.0f} s"
    except OSError as error:
        return 126, f"{command[0]} cannot be started: {error.strerror}"
    return done.returncode, " ".join((done.stdout.strip() or done.stderr.strip()).split())
