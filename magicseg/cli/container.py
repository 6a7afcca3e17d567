"""``magicseg container build|test|run|shell|exec|inspect``: use the Apptainer image on this machine."""

import enum
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from magicseg.cli.options import JsonOption
from magicseg.cli.output import note, plain_console, print_json, print_line
from magicseg.core.errors import ContainerError
from magicseg.core.text import command

if TYPE_CHECKING:
    from magicseg.core.checks import Check

app = typer.Typer(
    help="Build, test and run the container image that jobs use: docs/containers.md.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}


class Variant(enum.StrEnum):
    """The accelerator that the image supports."""

    CUDA = "cuda"
    ROCM = "rocm"
    CPU = "cpu"


ImageArgument = Annotated[Path, typer.Argument(metavar="IMAGE", help="a SIF file", show_default=False)]
ExecutableOption = Annotated[
    str | None, typer.Option("--executable", metavar="NAME|PATH", help="default: apptainer, else singularity")
]
BindOption = Annotated[
    list[str] | None,
    typer.Option("--bind", metavar="SOURCE[:TARGET[:ro]]", help="bind a folder into the container (repeatable)"),
]
VerifyOption = Annotated[
    Path | None,
    typer.Option("--verify", metavar="KEY", help="require a signature by this public key (a PEM file)"),
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="print the command; start nothing")]


@app.command()
def build(
    image: Annotated[Path, typer.Argument(metavar="[IMAGE]", help="the file to write")] = Path("magicseg.sif"),
    variant: Annotated[Variant, typer.Option("--variant", help="accelerator that torch is built for")] = Variant.CUDA,
    base: Annotated[
        str | None,
        typer.Option(
            "--base",
            metavar="SIF|FOLDER|REFERENCE",
            help="base image (default: a slim Python image, pinned by digest)",
        ),
    ] = None,
    torch: Annotated[
        str | None,
        typer.Option(
            "--torch", metavar="INDEX|FOLDER", help="source of torch's wheels (default: the variant's index)"
        ),
    ] = None,
    bind: BindOption = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--source", metavar="CHECKOUT", help="default: the checkout of this package, or the current folder"
        ),
    ] = None,
    executable: ExecutableOption = None,
    force: Annotated[bool, typer.Option("--force", help="replace the image")] = False,
    dry_run: DryRunOption = False,
) -> None:
    """Check this machine, build the image from Apptainer.def, and run the image's own tests."""
    from magicseg.container.build import Build, find_checkout, prepare, run_build

    wanted = Build(
        checkout=find_checkout(source),
        image=image,
        base=base,
        variant=variant.value,
        torch=torch,
        binds=tuple(bind or ()),
        replace=force,
    )
    words = prepare(wanted, executable, note, dry_run=dry_run)
    if dry_run:
        typer.echo(f"cd {shlex.quote(str(wanted.checkout))} && {shlex.join(words)}")
        return
    run_build(wanted, words)
    note(f"next: {command('magicseg', 'container', 'test', image)}")


@app.command("test")
def try_(
    image: ImageArgument,
    verify: VerifyOption = None,
    executable: ExecutableOption = None,
    json_: JsonOption = False,
) -> None:
    """Test an image on this machine, without a cluster: GPUs, binds, signals, miniature. Exit 1 if a check failed."""
    from magicseg.container.image import identify, refuse_unsigned
    from magicseg.container.runtime import find_runtime, start_flags
    from magicseg.container.trial import try_image
    from magicseg.core.checks import Status

    runtime, found = find_runtime(executable), identify(image)
    if verify is not None:
        refuse_unsigned(runtime, image, verify)
    flags = tuple(start_flags(runtime))
    for flag in flags:
        note(f"flag {' '.join(flag.words)}: {flag.why}")
    times = []

    def report(check: "Check", seconds: float) -> None:
        times.append(round(seconds, 1))
        note(f"{check.status}: {check.name} ({seconds:.1f} s)")

    checks = try_image(runtime, image, flags, report)
    failed = sum(check.status is Status.FAILED for check in checks)
    if json_:
        rows = [
            {"name": one.name, "status": str(one.status), "seen": one.seen, "remedy": one.remedy, "seconds": seconds}
            for one, seconds in zip(checks, times, strict=True)
        ]
        print_json({"image": str(image.absolute()), "digest": found.digest, "failed": failed, "checks": rows})
        raise typer.Exit(int(failed > 0))
    from rich.table import Table

    table = Table("", "what", "s", "seen")
    for one, seconds in zip(checks, times, strict=True):
        table.add_row(one.status, one.name, f"{seconds:.1f}", one.seen)
    plain_console().print(table)
    for one in checks:
        if one.remedy:
            print_line(f"{one.status}: {one.name}: {one.remedy}")
    typer.echo(f"{failed} of {len(checks)} checks failed" if failed else f"{len(checks)} checks, none failed")
    raise typer.Exit(int(failed > 0))


@app.command(context_settings=_PASSED_ON)
def run(
    context: typer.Context,
    image: ImageArgument,
    bind: BindOption = None,
    verify: VerifyOption = None,
    executable: ExecutableOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Run a magicseg command in the image: magicseg container run IMAGE generate RUN."""
    _start("run", image, context.args, bind, verify, executable, dry_run)


@app.command("exec", context_settings=_PASSED_ON)
def exec_(
    context: typer.Context,
    image: ImageArgument,
    bind: BindOption = None,
    verify: VerifyOption = None,
    executable: ExecutableOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Run any command in the image: magicseg container exec IMAGE python3 -c 'import torch'."""
    if not context.args:
        raise ContainerError("exec needs a command", hint=command("magicseg", "container", "exec", image, "python3"))
    _start("exec", image, context.args, bind, verify, executable, dry_run)


@app.command()
def shell(
    image: ImageArgument,
    bind: BindOption = None,
    verify: VerifyOption = None,
    executable: ExecutableOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Open a shell in the image."""
    _start("shell", image, [], bind, verify, executable, dry_run)


def _start(
    action: str,
    image: Path,
    arguments: list[str],
    bind: list[str] | None,
    verify: Path | None,
    executable: str | None,
    dry_run: bool,
) -> None:
    """Replace this process by the command, so that signals reach it and its exit code is returned."""
    from magicseg.container.image import identify, refuse_unsigned
    from magicseg.container.runtime import command, find_runtime, inside, named_runtime, start_flags
    from magicseg.run.container_image import VARIABLE

    runtime = named_runtime(executable) if dry_run else find_runtime(executable)
    found = identify(image)
    if verify is not None:
        refuse_unsigned(runtime, image, verify)
    flags = start_flags(runtime)
    for flag in flags:
        note(f"flag {' '.join(flag.words)}: {flag.why}")
    here = [str(Path.cwd())] if ":" not in str(Path.cwd()) and "," not in str(Path.cwd()) else []
    words = command(runtime, action, image, arguments, binds=[*here, *(bind or ())], flags=flags)
    if dry_run:
        typer.echo(shlex.join(words))
        return
    os.execve(words[0], words, inside(runtime, {VARIABLE: found.digest}))


@app.command()
def inspect(image: ImageArgument, executable: ExecutableOption = None, json_: JsonOption = False) -> None:
    """Print an image's digest, its labels, and the versions of its Python packages."""
    from magicseg.container.image import describe
    from magicseg.container.runtime import find_runtime

    found = describe(find_runtime(executable), image)
    if json_:
        print_json(found)
        return
    print_line(found["image"])
    print_line(f"{found['digest']}  {found['bytes'] / 1e6:.0f} MB")
    for name, value in found["labels"].items():
        print_line(f"{name}: {value}")
    print_line(" ".join(f"{name}={version}" for name, version in found["versions"].items()))
