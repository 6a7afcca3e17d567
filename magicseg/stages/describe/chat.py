"""Render prompts with a model's chat template, in a separate process.

A chat template is a program that comes with the weights. The sandbox of transformers denies it files and Python
internals, but allows endless loops and unlimited memory. So it runs in a separate process, with a time limit and a
memory limit.

    python -m magicseg.stages.describe.chat     reads one JSON request per line, writes one JSON response per line
"""

import contextlib
import json
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from magicseg.core.errors import BackendError
from magicseg.core.text import printable

_START = 600.0  # seconds; importing transformers from a slow shared disk takes minutes
DEADLINE = 60.0  # seconds for a batch; a template takes milliseconds
MOST_CHARACTERS = 1 << 20  # of a rendered prompt
_MOST_MEMORY = 1 << 30  # bytes in addition to the memory at the start of the process
_HINT = "choose another model, or set chat_template in describe.options.chat_template_options"


class ChatTemplate:
    """A tokenizer's chat template. Its process starts with the first batch and ends with this object."""

    def __init__(self, tokenizer: Any, options: Mapping[str, Any]) -> None:
        """Args: options: additional template variables. Raises: BackendError if the template is missing."""
        more = dict(options)
        try:
            template = tokenizer.get_chat_template(more.pop("chat_template", None), more.get("tools"))
        except ValueError as error:
            reason = printable(str(error), 300)
            raise BackendError(f"the chat template cannot be chosen: {reason}", hint=_HINT) from error
        self._request = {"template": template, "variables": {**tokenizer.special_tokens_map, **more}}
        self._process: subprocess.Popen[str] | None = None

    def render(self, prompts: Sequence[str]) -> list[str]:
        """Return each prompt rendered as the only message of a chat, with the generation prompt appended.

        Raises: BackendError if the template fails, exceeds the time limit, or renders too much text.
        """
        process = self._started()
        line = _exchange(process, json.dumps({**self._request, "prompts": list(prompts)}) + "\n", DEADLINE)
        if not line:
            self._process = None
            _end(process)
            raise BackendError(
                f"the model's chat template did not finish within {DEADLINE:g} s, or used too much memory", hint=_HINT
            )
        answer = json.loads(line)
        if "error" in answer:
            raise BackendError(f"the model's chat template fails: {printable(answer['error'], 300)}", hint=_HINT)
        texts: list[str] = answer["texts"]
        return texts

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "magicseg.stages.describe.chat"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                encoding="utf-8",
            )
            weakref.finalize(self, _end, self._process)
            if not _exchange(self._process, "", _START):
                raise BackendError(
                    f"the process that renders chat templates does not start within {_START:g} s",
                    hint="run the same command again",
                )
        return self._process


def _exchange(process: "subprocess.Popen[str]", line: str, seconds: float) -> str:
    """Send a line and return the next one from the process; "" if it ends before, or is killed after ``seconds``."""
    assert process.stdin is not None
    assert process.stdout is not None
    stop = threading.Timer(seconds, process.kill)
    stop.start()
    try:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(line)
            process.stdin.flush()
        return process.stdout.readline()
    finally:
        stop.cancel()


def _end(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):  # unwritten data cannot be flushed
                stream.close()


def main() -> None:
    """Answer requests until standard input ends. A request that exceeds the CPU time limit kills the process."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # output of libraries must not mix with responses
    from transformers.utils.chat_template_utils import render_jinja_template

    _limit_memory()
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        _limit_time()
        try:
            chats = [[{"role": "user", "content": prompt}] for prompt in request["prompts"]]
            texts, _ = render_jinja_template(
                conversations=chats,
                chat_template=request["template"],
                add_generation_prompt=True,
                **request["variables"],
            )
            longest = max(map(len, texts), default=0)
            answer: dict[str, Any] = {"texts": texts}
            if longest > MOST_CHARACTERS:
                answer = {"error": f"it renders a prompt of {longest} characters"}
        except MemoryError:
            answer = {"error": "it takes too much memory"}
        except Exception as error:  # a template may raise anything
            answer = {"error": f"{type(error).__name__}: {error}"[:1000]}
        print(json.dumps(answer), file=answers, flush=True)


def _limit_memory() -> None:
    import resource

    with contextlib.suppress(OSError, ValueError):  # some systems lack this limit
        pages = int(open("/proc/self/statm").read().split()[0])  # noqa: SIM115
        most = pages * resource.getpagesize() + _MOST_MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _limit_time() -> None:
    """Limit the CPU time, so that the process ends even if its parent is gone."""
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime + DEADLINE) + 1
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.getrlimit(resource.RLIMIT_CPU)[1]))


if __name__ == "__main__":
    main()
