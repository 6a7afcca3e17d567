"""``magicseg doctor``: find problems of this machine and of a run."""

from pathlib import Path
from typing import Annotated

import typer

from magicseg.cli.options import JsonOption
from magicseg.cli.output import plain_console, print_json, print_line

_COLOURS = {"ok": "green", "note": "blue", "warning": "yellow", "failed": "red"}


def doctor(
    run: Annotated[
        Path | None, typer.Argument(metavar="[RUN]", help="also check this run", show_default=False)
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Check this machine, and a run: libraries, GPUs, disks, Slurm, weights. Exit 1 if a check failed."""
    from magicseg.doctor import Status, examine

    checks = examine(run)
    failed = sum(check.status is Status.FAILED for check in checks)
    if json_:
        print_json(
            {
                "run": str(run.absolute()) if run else None,
                "checks": [
                    {"name": one.name, "status": str(one.status), "seen": one.seen, "remedy": one.remedy}
                    for one in checks
                ],
            }
        )
        raise typer.Exit(int(failed > 0))
    from rich.table import Table
    from rich.text import Text

    table = Table("", "what", "seen")
    for check in checks:
        table.add_row(Text(check.status, style=_COLOURS[check.status]), check.name, check.seen)
    plain_console().print(table)
    for check in checks:
        if check.remedy:  # printed below the table, where commands are not wrapped
            print_line(f"{check.status}: {check.name}: {check.remedy}")
    typer.echo(f"{failed} of {len(checks)} checks failed" if failed else f"{len(checks)} checks, none failed")
    raise typer.Exit(int(failed > 0))
