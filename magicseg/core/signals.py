"""Stop signals: the main process records them; worker processes block them.

A stop signal may reach the whole process group at once (Ctrl-C, Slurm, torchrun). The main process decides which work
is still finished, and tells its workers. So workers come from a fork server in which stop signals are blocked.
"""

import atexit
import contextlib
import errno
import multiprocessing
import os
import resource
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess

from magicseg.core.errors import IncompleteError
from magicseg.core.safe_path import VARIABLE as SAFE_PATH
from magicseg.core.waiting import bounded

SOCKET_FOLDER = 70  # bytes of a folder's path; a socket's path has at most 107, with the name
_START_SECONDS = 600.0  # the fork server first imports its modules, possibly from a slow disk
# Slurm warns of the time limit with SIGUSR1 or SIGUSR2, as the job script says.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


_SPARE_FILES = 8  # file descriptors to keep free: more than the start of a process opens
OUT_OF_FILES = (errno.EMFILE, errno.ENFILE)


@dataclass
class StopFlag:
    """Set by the first signal while `on_signals` is active."""

    signal: int | None = None

    def __call__(self) -> bool:
        """Return whether a stop signal was received."""
        return self.signal is not None


@contextlib.contextmanager
def on_signals(
    flag: StopFlag,
    numbers: Sequence[signal.Signals] = (signal.SIGINT, signal.SIGTERM),
    *,
    second_acts: bool = True,
    then: Callable[[], None] = lambda: None,
) -> Iterator[StopFlag]:
    """Set ``flag`` on a signal; a second signal of the same kind has its default effect, or sets ``flag`` again.

    Args: then: called in the handler of every signal.
    """

    def note(number: int, _frame: object) -> None:
        flag.signal = number
        then()
        if second_acts:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _shorten_socket_names() -> None:
    """Let multiprocessing put its sockets under /tmp if TMPDIR is too long for their names, here and in children."""
    settings: dict[str, object] = multiprocessing.current_process()._config  # type: ignore[attr-defined]
    if settings.get("tempdir") is None and len(os.fsencode(tempfile.gettempdir())) > SOCKET_FOLDER:
        folder = tempfile.mkdtemp(prefix="magicseg-", dir="/tmp")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        settings["tempdir"] = folder


def fork_server(preload: Sequence[str] = ()) -> ForkServerContext:
    """Start the fork server, if it is not running, and return its context.

    Its processes start with `STOP_SIGNALS` blocked, and import nothing from the current directory.

    Args: preload: modules that the fork server imports once for all processes, if this call starts it.
    """
    os.environ[SAFE_PATH] = "1"
    _shorten_socket_names()
    context = multiprocessing.get_context("forkserver")
    if preload:
        context.set_forkserver_preload(list(preload))
    resource_tracker.ensure_running()  # first: its start unblocks signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # new processes inherit it
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def start_process(process: BaseProcess, stop: Callable[[], bool]) -> None:
    """Start a process of the fork server.

    Raises: IncompleteError if the process does not start in time, if the fork server is gone, or if a stop signal is
    received meanwhile.
    """

    def look(waited: float) -> None:
        if stop() or waited > _START_SECONDS:
            why = "interrupted" if stop() else f"not within {_START_SECONDS:.0f} s"
            raise IncompleteError(f"no process can be started: {why}", hint="run the same command again")

    if open_files() - len(os.listdir("/proc/self/fd")) < _SPARE_FILES:  # otherwise the fork server would crash
        raise cannot_start(OSError(errno.EMFILE, os.strerror(errno.EMFILE)))
    try:
        bounded(process.start, look)
    except (OSError, EOFError) as error:
        raise cannot_start(error) from error


def cannot_start(error: OSError | EOFError) -> IncompleteError:
    """Return the error for a process that could not be started."""
    if isinstance(error, OSError) and error.errno in OUT_OF_FILES:
        return IncompleteError(
            f"no process can be started: {error.strerror}, of {open_files()} allowed",
            hint="raise the limit with: ulimit -n 4096; or start fewer processes: --workers 2",
        )
    what = "the fork server is gone" if isinstance(error, EOFError | ConnectionError) else str(error)
    return IncompleteError(
        f"no process can be started: {what}", hint="check for exhausted memory or processes: free -g; ulimit -u"
    )


def open_files() -> int:
    """Return how many files this process may have open."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
