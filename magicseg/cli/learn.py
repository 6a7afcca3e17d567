"""``magicseg train|report``: train the model, and write the run's report."""

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from magicseg.cli.options import RunArgument
from magicseg.cli.output import note, progress
from magicseg.core.errors import IncompleteError
from magicseg.core.text import command

if TYPE_CHECKING:
    from collections.abc import Callable


def train(run: RunArgument) -> None:
    """Train the segmentation model on the kept samples; resume from the newest checkpoint.

    On several GPUs: torchrun --nproc-per-node=N -m magicseg train RUN
    """
    from magicseg.core.distributed import World
    from magicseg.core.signals import STOP_SIGNALS, StopFlag, on_signals
    from magicseg.run.directory import Run
    from magicseg.train.run_training import train_run

    world = World.from_environment()
    if world.launched:  # silences DDP's warning on every rank about find_unused_parameters, which is intended
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    opened = Run.open(run)
    steps = opened.config.train.steps
    # Slurm and torchrun may both forward one signal, so a second signal must not end the process at once. torchrun
    # itself kills ranks that take too long to stop.
    with on_signals(StopFlag(), STOP_SIGNALS, second_acts=not world.launched) as stop:
        last = 0
        show: Callable[[int, str], None] | None = None
        with contextlib.ExitStack() as shown:

            def report(step: int, text: str) -> None:
                nonlocal last, show
                if not world.is_rank_0:
                    return
                if show is None:  # the first report tells the step that training resumes from; speed and ETA need it
                    show, last = shown.enter_context(progress("train", steps, "steps", done=step - 1)), step - 1
                show(step - last, text)
                last = step

            tell = note if world.is_rank_0 else lambda text: None
            result = train_run(opened, world=world, progress=report, stop=stop, tell=tell)
    if result.status != "finished":
        message = f"{run}: training was interrupted after step {result.step} of {steps}"
        if not world.launched:
            raise IncompleteError(message, hint=command("magicseg", "train", run))
        if world.is_rank_0:  # not an error: torchrun would restart the ranks at once
            note(f"train: {message}")
    elif world.is_rank_0:
        note(f"train: step {result.step}, weights {str(result.weights_digest)[:12]} in {result.model_dir}")


def report(
    run: RunArgument,
    beside: Annotated[
        list[Path] | None,
        typer.Option("--beside", metavar="RUN", help="also show another run's scores (repeatable)"),
    ] = None,
) -> None:
    """Write RUN/report.html: images, masks, counts, drop reasons, curves and scores in one file."""
    from magicseg.report.page import write_report
    from magicseg.run.directory import Run

    others = [Run.open(path) for path in beside or ()]
    note(f"report: {write_report(Run.open(run), beside=others)}")
