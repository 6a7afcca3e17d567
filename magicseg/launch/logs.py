"""Find the logs of tasks, read them, and follow one as it grows."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from magicseg.core.errors import RunError
from magicseg.launch.jobs import Submission
from magicseg.launch.queue_state import QueueState, Task

_POLL_SECONDS = 0.5


def find_tasks(
    queue: QueueState, *, stage: str | None, shard: int | None, label: str | None, failed: bool, server: bool = False
) -> list[tuple[Task, Path]]:
    """Return the matching tasks that have a log, newest last, and the logs.

    Args: server: return the logs of the tasks' caption servers.
    Raises RunError, listing all tasks, if none match.
    """
    matching = [
        task
        for task in queue.tasks
        if stage in {None, task.submission.stage}
        and (label is None or task.label == label)
        and (shard is None or shard in task.submission.shards_of(task.number))
        and (not failed or task.kind in {"failed", "cancelled", "unknown"})
    ]
    path_of = Submission.server_log_path if server else Submission.log_path
    found = [(task, path_of(task.submission, task.label)) for task in matching]
    there = [(task, path) for task, path in found if _is_file(path)]
    if there:
        return there
    if matching:
        raise RunError(
            f"no log yet: {', '.join(f'{task.label} is {task.kind}' for task in matching[:5])}",
            hint=f"a log appears when its {'server' if server else 'task'} starts; see: magicseg status RUN",
        )
    labels = sorted({task.label for task in queue.tasks})
    wanted = "no task failed" if failed else "there is no such task"
    hint = (
        f"tasks: {', '.join(labels[:8])}{'...' if len(labels) > 8 else ''}" if labels else "magicseg submit all RUN"
    )
    raise RunError(f"{wanted}{f' of {stage}' if stage else ''}", hint=hint)


def _is_file(path: Path) -> bool:
    """Return whether the log is a regular file, which may still be unreadable."""
    with _log_errors(path):
        return path.is_file()


@contextlib.contextmanager
def _log_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{path}: cannot be read: {error.strerror or error}", hint="ask its owner, or read it as that user"
        ) from error


def whole(path: Path) -> str:
    """Return a log's text. Raises RunError if it cannot be read."""
    with _log_errors(path):
        return path.read_text(encoding="utf-8", errors="replace")


def last_lines(path: Path, count: int) -> list[str]:
    """Return the last lines of a log. Raises RunError if it cannot be read."""
    with _log_errors(path), path.open("rb") as file:
        file.seek(0, 2)
        file.seek(max(0, file.tell() - 400 * count))
        return file.read().decode(errors="replace").splitlines()[-count:]


def follow(path: Path, is_active: Callable[[], bool]) -> Iterator[str]:
    """Yield a log's text as it grows, until its task has left the queue. ``is_active`` is called every ten seconds.

    Raises RunError if the log cannot be read.
    """
    asked, active = -math.inf, True
    with _log_errors(path), path.open(encoding="utf-8", errors="replace") as file:
        while True:
            text = file.read()
            if text:
                yield text
            elif not active:
                return
            else:
                time.sleep(_POLL_SECONDS)
            if time.monotonic() - asked > 20 * _POLL_SECONDS:
                asked, active = time.monotonic(), is_active()
