"""Arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="the run's directory", show_default=False)]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON")]
PresetOption = Annotated[str | None, typer.Option("--preset", help="a shipped set of settings")]
ConfigOption = Annotated[Path | None, typer.Option("--config", help="a YAML file of settings")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="one setting: plan.samples=256 (repeatable)"),
]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=1,
        metavar="K",
        help="processes at a time, spread over the GPUs (default: one per GPU, or per CPU if none is used)",
    ),
]
GpusOption = Annotated[
    str | None,
    typer.Option("--gpus", metavar="0,2", help="the GPUs to use, by index or UUID (default: all visible ones)"),
]
PerGpuOption = Annotated[
    int | None,
    typer.Option("--workers-per-gpu", min=1, metavar="N", help="processes on each GPU (default: 1)"),
]
ProfileOption = Annotated[
    str | None,
    typer.Option(
        "--profile", metavar="NAME|PATH.yaml", help="site profile (default: the run's, or MAGICSEG_PROFILE)"
    ),
]
MaxPixelsOption = Annotated[
    int | None,
    typer.Option("--max-pixels", min=1, metavar="N", help="skip images with more pixels (default: 200000000)"),
]
