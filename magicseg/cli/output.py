"""What the command line shows: errors, plain lines, progress."""

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from magicseg.errors import MagicsegError

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="the run's directory", show_default=False)]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON")]
_LINE_SECONDS = 5.0


def report_error(error: MagicsegError) -> None:
    """One sentence on what is wrong, one on what to type next, on standard error."""
    typer.secho(f"error: {error.message}", fg="red", err=True)
    if error.hint:
        typer.echo(f"hint:  {error.hint}", err=True)


def print_json(value: Any) -> None:
    """Plain JSON on standard output."""
    typer.echo(json.dumps(value, indent=1, ensure_ascii=False))


def note(text: str) -> None:
    """A line about what happens, on standard error: standard output is for results."""
    typer.echo(text, err=True)


@contextlib.contextmanager
def progress(title: str, total: int, unit: str, done: int = 0) -> Iterator[Callable[[int, str], None]]:
    """Show how far something is: a bar with rate and ETA on a terminal, a line now and then elsewhere.

    Yields: a function to call with the number of units done since the last call, and a text to show behind.
    """
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description:<9}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
        )
        began, new = time.monotonic(), 0
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(title, total=total, completed=done, rate="", text="")

            def show(count: int, text: str) -> None:
                nonlocal new
                new += count
                rate = new / max(time.monotonic() - began, 1e-6)
                bar.update(task, advance=count, rate=f"{rate:.1f} {unit}/s", text=text)

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
