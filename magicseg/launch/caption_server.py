"""The caption server of a describe task: it starts before the work, and ends with it.

The profile's ``stages.describe.server`` is its command. The server is any program that offers the OpenAI API over
HTTP on this machine: vLLM, SGLang, llama.cpp. All workers of the task share it.

`magicseg.launch.server_guard` is its parent process, and ends it when the task ends, even if the task is killed.
"""

import contextlib
import errno
import http.client
import os
import random
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from magicseg.config.run import Config
from magicseg.config.stage_declarations import DECLARATIONS
from magicseg.core.errors import BackendError, ConfigError
from magicseg.core.files import storage_errors
from magicseg.core.secrets import secret_name
from magicseg.core.text import command
from magicseg.launch import server_guard
from magicseg.launch.logs import last_lines
from magicseg.launch.profile import SERVER_STAGE, CaptionServer, Profile
from magicseg.run.directory import Run
from magicseg.stages.describe.endpoint import SERVER_VARIABLE, OpenAIOptions

_HOST = "127.0.0.1"
_PORTS = range(20_000, 32_768)  # below the ports that Linux gives to outgoing connections
_POLL_SECONDS = 0.25
_ANSWER_SECONDS = 2.0  # for one request to the health path
_ANSWER_BYTES = 1 << 16
_SHOWN_LINES = 20
_SHORTEST_SECRET = 6  # characters; shorter values occur in any text


def refuse_misfit(config: Config, profile: Profile) -> None:
    """Raise ConfigError if the profile's server is not for this captioner, or if the captioner has no endpoint."""
    _, options = DECLARATIONS[SERVER_STAGE].backend(config)
    if profile.caption_server is not None and not isinstance(options, OpenAIOptions):
        raise ConfigError(
            f"the profile has a server (stages.describe.server), but describe.backend is {config.describe.backend}",
            hint="remove stages.describe.server from the profile, or set describe.backend to openai",
        )
    if profile.caption_server is None and isinstance(options, OpenAIOptions) and options.base_url is None:
        raise ConfigError(
            "describe.options.base_url is not set, and the profile starts no server",
            hint="set describe.options.base_url to a running endpoint, or stages.describe.server in the profile",
        )


@contextlib.contextmanager
def server_for(
    run: Run,
    shards: Collection[int],
    server: CaptionServer | None,
    log: Path,
    *,
    stop: Callable[[], bool],
    report: Callable[[str], None],
) -> Iterator[None]:
    """Run the server of a describe task, if the profile has one and if a shard is missing. Raises as `serving`."""
    if server is None or run.checked_commits(SERVER_STAGE).keys() >= set(shards):
        yield
        return
    _, options = DECLARATIONS[SERVER_STAGE].backend(run.config)
    key = getattr(options, "api_key_env", None) or ""
    with serving(server, log, stop=stop, report=report, key=key):
        yield


@contextlib.contextmanager
def serving(
    server: CaptionServer, log: Path, *, stop: Callable[[], bool], report: Callable[[str], None], key: str = ""
) -> Iterator[None]:
    """Start a server, wait until it answers, and let the captioners of this process and its children use it.

    If ``stop`` returns True meanwhile, the block runs without the server, because no work will be started.

    Args: log: gets the server's output. key: name of the variable with the key of the server's users.
    Raises BackendError, with the last lines of the log, if the server ends or does not answer in time. A BackendError
    of the block is raised again with these lines. Raises StoreError if the log cannot be written.
    """
    with _reserved_port(server.port) as port:
        words = server.words(_HOST, port)
        report(f"{SERVER_STAGE}: server: {shlex.join(words)}")
        report(f"{SERVER_STAGE}: the server's log: {log}")
        began = time.monotonic()
        process = _start(words, log)
        try:
            if _becomes_ready(process, server, port, _Log(log, key), stop):
                report(f"{SERVER_STAGE}: the server answers after {time.monotonic() - began:.1f} s")
                with _address_in_environment(f"http://{_HOST}:{port}/v1"):
                    try:
                        yield
                    except BackendError as error:
                        raise _with_log(error, process, _Log(log, key)) from error
            else:
                yield
        finally:
            _end(process)


def _start(words: list[str], log: Path) -> "subprocess.Popen[bytes]":
    guard = [sys.executable, "-m", server_guard.__name__, *words]
    with storage_errors(log, "run the same command again"):
        log.parent.mkdir(parents=True, exist_ok=True)
        file = log.open("ab")
    with file:
        file.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} {shlex.join(words)}\n".encode())
        file.flush()
        # A new session: signals to the task's process group do not reach the guard.
        return subprocess.Popen(
            guard, stdin=subprocess.PIPE, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Let the guard end the server, and wait for it."""
    assert process.stdin is not None
    process.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):  # a process that waits for a dead disk cannot be killed
        process.wait(2 * server_guard.GRACE_SECONDS)


def _becomes_ready(
    process: "subprocess.Popen[bytes]", server: CaptionServer, port: int, log: "_Log", stop: Callable[[], bool]
) -> bool:
    """Wait until the server answers its health path with 200. Return False if a stop was requested before."""
    until = time.monotonic() + server.wait
    while not stop():
        if process.poll() is not None:
            raise BackendError(
                f"the server ended with exit code {process.returncode} before it answered{log.tail()}",
                hint="correct stages.describe.server in the profile, then submit again",
            )
        if _is_healthy(port, server.health):
            return True
        if time.monotonic() > until:
            raise BackendError(
                f"the server did not answer {server.health} with 200 within {server.wait:g} s{log.tail()}",
                hint="correct stages.describe.server in the profile (health, wait), then submit again",
            )
        time.sleep(_POLL_SECONDS)
    return False


def _is_healthy(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection(_HOST, port, timeout=_ANSWER_SECONDS)  # directly, whatever the proxy
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        response.read(_ANSWER_BYTES)  # a server may log an error if its answer is not read
    except (OSError, http.client.HTTPException):
        return False
    else:
        return response.status == http.HTTPStatus.OK
    finally:
        connection.close()


def _with_log(error: BackendError, process: "subprocess.Popen[bytes]", log: "_Log") -> BackendError:
    """Return the error with the server's state and the end of its log."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(4 * _POLL_SECONDS)  # the guard notices the server's end after a moment
    code = process.poll()
    state = "is still running" if code is None else f"ended with exit code {code}"
    return BackendError(f"{error.message}; the task's server {state}{log.tail()}", hint=error.hint)


@dataclass(frozen=True)
class _Log:
    """A server's log. ``key``: name of the variable with the key of the server's users."""

    path: Path
    key: str

    def tail(self) -> str:
        """Return the last lines, for an error, without the secrets in this process's environment."""
        text = "\n".join(last_lines(self.path, _SHOWN_LINES))
        for name, value in os.environ.items():
            if (secret_name(name) or name == self.key) and len(value) >= _SHORTEST_SECRET:
                text = text.replace(value, "***")
        return f"; the end of its log:\n{text}\nthe whole log: {command('less', self.path)}"


@contextlib.contextmanager
def _address_in_environment(address: str) -> Iterator[None]:
    """Set the variable that captioners read, and exempt this machine from the site's HTTP proxy."""
    direct = {name: ",".join(filter(None, [os.environ.get(name), _HOST])) for name in ("no_proxy", "NO_PROXY")}
    values = {SERVER_VARIABLE: address, **direct}
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _reserved_port(asked: int) -> Iterator[int]:
    """Yield a free port that no other task on this machine gets: ``asked``, or a random one if that is 0.

    The server binds its port late, after it has loaded its weights. Until then an abstract Unix socket, which the
    kernel removes with this process, marks the port as taken.

    Raises BackendError if the port is in use.
    """
    for port in [asked] if asked else random.sample(_PORTS, k=100):
        with socket.socket(socket.AF_UNIX) as mark:
            try:
                mark.bind(f"\0magicseg-caption-server-{port}")
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                continue
            if _is_free(port):
                yield port
                return
    raise BackendError(
        f"port {asked} of this node is in use" if asked else "no free port was found on this node",
        hint="set stages.describe.server.port in the profile to 0, and write {port} into the command",
    )


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that just ended do not count
        try:
            probe.bind((_HOST, port))
        except OSError:
            return False
        return True
