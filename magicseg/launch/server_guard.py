"""Run a server until it ends, or until this process's standard input closes; then end all processes of the server.

    python -m magicseg.launch.server_guard COMMAND...

The task that started the guard holds the other end of standard input. It closes when the task ends, even by SIGKILL.
Slurm's warning before the time limit goes to every process of a job. It must not end the server, which has to answer
until the workers have stopped.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence

GRACE_SECONDS = 10.0  # between SIGTERM and SIGKILL
_POLL_SECONDS = 0.2


def run(command: Sequence[str]) -> int:
    """Run a server in a process group of its own. Return its exit code, as a shell does: 128 + N for signal N."""
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # the server inherits this
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)  # the task decides when the server ends
    try:
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    except OSError as error:
        print(f"{command[0]}: cannot be started: {error.strerror or error}", file=sys.stderr, flush=True)
        return 127
    try:
        while server.poll() is None and not select.select([sys.stdin], [], [], _POLL_SECONDS)[0]:
            pass
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(GRACE_SECONDS)
    finally:
        with contextlib.suppress(ProcessLookupError):  # the server's children may outlive it
            os.killpg(server.pid, signal.SIGKILL)
    code = server.wait()
    return 128 - code if code < 0 else code


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
