"""Output of the command line: errors, plain lines, progress."""

import contextlib
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import typer

from magicseg.core.documents import without_nan
from magicseg.core.errors import MagicsegError
from magicseg.core.text import indented, printable

if TYPE_CHECKING:
    from rich.console import Console

_LINE_SECONDS = 5.0
# Control characters that json.dumps does not escape: see `magicseg.core.text`.
_UNESCAPED_CONTROLS = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def report_error(error: MagicsegError) -> None:
    """Print an error and its hint to standard error."""
    message, *hint = error.lines()
    typer.secho(message, fg="red", err=True)
    for line in hint:
        typer.echo(line, err=True)


def print_json(value: Any) -> None:
    """Print plain JSON to standard output, with control characters escaped."""
    text = json.dumps(without_nan(value), indent=1, ensure_ascii=False, allow_nan=False)
    typer.echo(_UNESCAPED_CONTROLS.sub(lambda match: f"\\u{ord(match[0]):04x}", text))


def print_line(text: str) -> None:
    """Print a line of results to standard output, with control characters escaped."""
    typer.echo(printable(text))


def log_text(text: str) -> str:
    """Return a part of a log for display: newlines and tabs are kept, other control characters are escaped."""
    return printable(text, len(text), allowed="\n\r\t")


def note(text: str) -> None:
    """Print a progress message to standard error. Standard output is for results."""
    typer.echo(indented(text, "  "), err=True)


def plain_console(*, stderr: bool = False) -> "Console":
    """Return a console without markup that escapes control characters."""
    from rich.console import Console
    from rich.text import Text

    class PlainConsole(Console):
        def render_str(self, text: str, **options: Any) -> Text:
            options |= {"markup": False, "emoji": False}
            return super().render_str(printable(text, allowed="\n"), **options)

    return PlainConsole(stderr=stderr)


@contextlib.contextmanager
def progress(title: str, total: int, unit: str, done: int = 0) -> Iterator[Callable[[int, str], None]]:
    """Show progress: a bar with rate and ETA on a terminal, otherwise a line every few seconds.

    Yields: a function to call with the number of units done since the last call, and a text to append.
    """
    if sys.stderr.isatty():
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description:<9}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}", markup=False),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}", markup=False),
        )
        began, new = time.monotonic(), 0
        with Progress(*columns, console=plain_console(stderr=True)) as bar:
            task = bar.add_task(printable(title), total=total, completed=done, rate="", text="")

            def show(count: int, text: str) -> None:
                nonlocal new
                new += count
                rate = new / max(time.monotonic() - began, 1e-6)
                bar.update(task, advance=count, rate=f"{rate:.1f} {unit}/s", text=printable(text))

            yield show
        return
    began = last = time.monotonic()
    finished, new = done, 0
    shown = -1

    def line(text: str) -> None:
        nonlocal last, shown
        last, shown = time.monotonic(), finished
        rate = new / max(last - began, 1e-6)
        eta = f", {(total - finished) / rate:.0f} s left" if rate and finished < total else ""
        note(f"{title}: {finished}/{total} {unit}, {rate:.1f} {unit}/s{eta}{'  ' + text if text else ''}")

    latest = ""

    def plain(count: int, text: str) -> None:
        nonlocal finished, new, latest
        finished, new, latest = finished + count, new + count, text
        if time.monotonic() - last > _LINE_SECONDS:
            line(text)

    yield plain
    if new and shown != finished:
        line(latest)
