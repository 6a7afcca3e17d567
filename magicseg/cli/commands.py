"""Register all commands, run them, and turn exceptions into messages and exit codes.

Commands only parse options and print results; plain functions do the work. Heavy libraries are imported inside the
commands that need them, so that ``magicseg --help`` is fast and a login node needs no torch.
"""

import errno
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from magicseg.cli import (
    cluster,
    container,
    data,
    doctor,
    estimate,
    evaluate,
    learn,
    predict,
    runs,
    score,
    stages,
    status,
)
from magicseg.cli.output import report_error
from magicseg.cli.streams import Streams
from magicseg.core.errors import DataError, MagicsegError, RunError, StoreError
from magicseg.core.garbage_collection import collect_less_often
from magicseg.core.storage_errors import complaint, remedy

_CD = "the current directory was deleted: cd to another one"
# Errors that a mistyped path on the command line can cause.
_ABOUT_NAMES = frozenset({errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ELOOP, errno.EISDIR})

app = typer.Typer(
    name="magicseg",
    help="From class labels to a pixel-labelled synthetic data set, to a trained segmentation model, to its score.",
    epilog="Exit codes: 0 done; 1 some work failed, is missing or is damaged; 2 a mistake in what was asked.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command(rich_help_panel="A run")(runs.demo)
app.command(rich_help_panel="A run")(runs.init)
app.command(rich_help_panel="A run")(runs.fetch)
app.command("run", rich_help_panel="A run")(runs.run_all)
app.command(rich_help_panel="A run")(status.status)
app.command(rich_help_panel="A run")(doctor.doctor)
app.command(rich_help_panel="A run")(runs.reset)
app.command(rich_help_panel="A run")(runs.schema)
app.command(rich_help_panel="Stages")(stages.describe)
app.command(rich_help_panel="Stages")(stages.generate)
app.command(rich_help_panel="Stages")(stages.mask)
app.command(rich_help_panel="Stages")(learn.train)
app.command(rich_help_panel="Stages")(evaluate.evaluate)
app.command(rich_help_panel="On a cluster")(estimate.estimate)
app.command(rich_help_panel="On a cluster")(cluster.submit)
app.command(rich_help_panel="On a cluster")(cluster.profile)
app.command(rich_help_panel="On a cluster")(cluster.logs)
app.command(rich_help_panel="On a cluster")(cluster.cancel)
app.command(rich_help_panel="On a cluster")(cluster.efficiency)
app.add_typer(container.app, name="container", rich_help_panel="On a cluster")
app.command("follow-up", hidden=True)(cluster.follow_up)
app.command(rich_help_panel="Results")(learn.report)
app.command(rich_help_panel="Results")(evaluate.compare)
app.command(rich_help_panel="Results")(predict.predict)
app.command(rich_help_panel="Results")(score.score)
app.command(rich_help_panel="The data set")(data.verify)
app.command(rich_help_panel="The data set")(data.repair)
app.command(rich_help_panel="The data set")(data.digest)
app.command(rich_help_panel="The data set")(data.export)
app.command("import", rich_help_panel="The data set")(data.import_)


def _show_version(shown: bool) -> None:
    if shown:
        from magicseg.core.package import package_version

        typer.echo(f"magicseg {package_version()}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    pass


def run() -> None:
    """Run the command line, and exit with its exit code."""
    collect_less_often()
    streams = Streams()
    try:
        code = _exit_code()
        sys.stdout.flush()
    except OSError as error:
        fault = _fault_of(error, streams)
        if fault is None:
            raise
        if error.errno != errno.EPIPE:  # EPIPE: the reader closed the pipe
            report_error(fault)
        code = fault.exit_code
    sys.exit(code)


def _exit_code() -> int | str | None:
    try:
        app([_with_home(argument) for argument in sys.argv[1:]])
    except MagicsegError as error:
        if _is_folder_gone():
            error.hint = _CD
        report_error(error)
        return error.exit_code
    except SystemExit as end:  # click ends every command with SystemExit
        return end.code
    return 0


def _with_home(argument: str) -> str:
    """Expand the ``~`` in ``--out=~/x``, which shells do not expand."""
    option, sign, value = argument.partition("=")
    return f"{option}={os.path.expanduser(value)}" if sign and option.startswith("--") else argument


def _is_folder_gone() -> bool:
    try:
        Path.cwd()
    except OSError:
        return True
    return False


def _fault_of(error: OSError, streams: Streams) -> MagicsegError | None:
    """Return a message for an unhandled OSError, or None if it names no file."""
    if error is streams.lost:
        return StoreError(
            f"the results cannot be written to standard output: {error.strerror}",
            hint="free some space on the disk that they are written to",
        )
    if _is_folder_gone():
        return RunError(f"{error}", hint=_CD)
    hint = remedy(error)
    if error.filename is not None and hint is not None:
        kind = DataError if error.errno in _ABOUT_NAMES else StoreError
        return kind(f"{os.fsdecode(error.filename)}: {complaint(error)}", hint=hint)
    return None
