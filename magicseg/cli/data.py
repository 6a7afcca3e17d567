"""``magicseg verify|repair|digest|export|import``: check, digest, export and import the data set's files."""

import enum
from pathlib import Path
from typing import Annotated

import typer

from magicseg.cli.options import RunArgument
from magicseg.cli.output import note, print_line, progress
from magicseg.core.text import command


class ExportFormat(enum.StrEnum):
    """File formats for export."""

    HDF5 = "hdf5"


def verify(run: RunArgument) -> None:
    """Check every file of a run against its ledger: corrupted, truncated, missing and unknown files."""
    from magicseg.run.directory import Run
    from magicseg.run.verify import inspect, refuse_damage

    findings = inspect(Run.open(run))
    if findings.leftovers:
        note(f"{len(findings.leftovers)} leftovers of interrupted work (harmless; repair removes them)")
    refuse_damage(Run.open(run), findings)
    print_line(f"{run}: sound, {findings.checked_files} files, {findings.checked_bytes / 1e6:.1f} MB checked")


def repair(run: RunArgument) -> None:
    """Invalidate the commits of damaged shards, so that the next run regenerates them."""
    from magicseg.run.directory import Run
    from magicseg.run.verify import inspect
    from magicseg.run.verify import repair as repair_run

    opened = Run.open(run)
    done = repair_run(opened, inspect(opened))
    for line in done:
        print_line(line)
    note(f"next: {command('magicseg', 'run', run)}" if done else f"{run}: sound, nothing to repair")


def digest(run: RunArgument) -> None:
    """Print a SHA-256 of the data set's content, independent of how it was made and stored."""
    from magicseg.run.digest import logical_digest
    from magicseg.run.directory import Run

    typer.echo(logical_digest(Run.open(run)))


def export(
    run: RunArgument,
    out: Annotated[Path, typer.Option("--out", help="output file")],
    format_: Annotated[ExportFormat, typer.Option("--format", help="file format")] = ExportFormat.HDF5,
) -> None:
    """Write the whole data set into one file."""
    from magicseg.exchange.hdf5 import export_hdf5
    from magicseg.run.directory import Run

    opened = Run.open(run)
    with progress("export", opened.plan.shards, "shards") as show:
        export_hdf5(opened, out, lambda shard: show(1, ""))
    print_line(f"{out}: {out.stat().st_size / 1e6:.1f} MB as {format_.value}")


def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="a file written by export")],
    into: Annotated[Path, typer.Option("--into", metavar="RUN", help="directory of the new run")],
) -> None:
    """Create a finished run from an exported file."""
    from magicseg.exchange.hdf5 import import_hdf5

    run = import_hdf5(file, into)
    print_line(f"{run.path}: {run.plan.samples} samples")
