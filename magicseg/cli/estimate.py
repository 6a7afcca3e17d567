"""``magicseg estimate``: estimate a run's cost before it is submitted."""

import os
import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from magicseg.cli.options import JsonOption, ProfileOption, RunArgument
from magicseg.cli.output import note, plain_console, print_json
from magicseg.core.paths import absolute
from magicseg.core.text import command

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.table import Table

    from magicseg.launch.profile import Profile
    from magicseg.run.directory import Run
    from magicseg.stages.worker import ShardEvent


def profile_reference(option: str | None, run: "Run") -> str | None:
    """Return the profile to use: from the option, else from the run, else from MAGICSEG_PROFILE.

    A file is returned as an absolute path, so that a job finds it from any folder.
    """
    reference = option or run.config.slurm.profile or os.environ.get("MAGICSEG_PROFILE")
    if not reference:
        return None
    return reference if re.fullmatch(r"[\w-]+", reference) else absolute(reference)


def estimate(
    run: RunArgument,
    pilot: Annotated[
        int,
        typer.Option("--pilot", min=0, metavar="N", help="first complete N shards of every stage and measure them"),
    ] = 0,
    parallel: Annotated[
        int | None,
        typer.Option("--parallel", min=1, metavar="N", help="number of concurrent tasks (default: the profile's)"),
    ] = None,
    profile: ProfileOption = None,
    json_: JsonOption = False,
) -> None:
    """Estimate a run's GPU-hours, wall time, memory, disk and files from its finished shards.

    A pilot's shards become part of the run. Without a profile, the estimate is for worker processes on this machine.
    """
    from magicseg.core.errors import IncompleteError
    from magicseg.estimate.run_estimate import estimate as measure
    from magicseg.launch.environment import site_overrides
    from magicseg.launch.profile_files import load_profile
    from magicseg.run.directory import Run

    opened = Run.open(run)
    reference = profile_reference(profile, opened)
    site = load_profile(reference) if reference else None
    if reference and site:
        site = load_profile(reference, site_overrides(site)[0])
    if pilot:
        _pilot(opened, pilot, site, reference)
    report = measure(opened, site, parallel=parallel, reference=reference)
    if report["unmeasured"] and not report["stages"]:
        raise IncompleteError(
            f"{opened.path}: no finished shards to estimate from",
            hint=command("magicseg", "estimate", run, "--pilot", 1),
        )
    if json_:
        print_json(report)
        return
    _show(report)


def _pilot(run: "Run", shards: int, site: "Profile | None", reference: str | None) -> None:
    from magicseg.config.stage_declarations import COSTLIEST
    from magicseg.core.signals import StopFlag, on_signals
    from magicseg.estimate.measurements import pilot
    from magicseg.estimate.warnings import pilot_command
    from magicseg.launch.caption_server import refuse_misfit
    from magicseg.run.claims import job_label

    if site:
        refuse_misfit(run.config, site)
    if site and site.resources(COSTLIEST).asks_gpu and not job_label():
        there = pilot_command(run, site, COSTLIEST, reference)
        note(f"pilot: on this machine; to run it on a node of the profile: {there}")

    def report(stage: str, event: "ShardEvent") -> None:
        if event.outcome == "committed":
            note(f"pilot: {stage} shard {event.shard}, {event.samples} samples")

    with on_signals(StopFlag()) as stop:
        pilot(
            run,
            shards,
            gpu=lambda stage: site.resources(stage).asks_gpu if site else None,
            report=report,
            stop=stop,
            server=site.caption_server if site else None,
        )


def _show(report: dict[str, Any]) -> None:
    from magicseg.estimate.wording import basis, totals, training_line

    if not report["stages"]:
        note(f"{report['run']}: nothing is left, and nothing was measured: all of it was imported")
        return
    total, parallel = report["total"], report["parallel"]
    lines = [
        f"left: {totals(total['left'], parallel)}",
        f"the whole plan: {totals(total['whole'], parallel)}",
        basis(report["stages"]),
        training_line(report),
        report["counted"],
        *(
            f"{stage}: no estimate yet: {command('magicseg', 'estimate', report['run'], '--pilot', 1)}"
            for stage in report["unmeasured"]
        ),
        *(f"warning: {text}" for text in report["warnings"]),
    ]
    console = plain_console()
    console.print(_table(report))
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def _table(report: dict[str, Any]) -> "Table":
    """Return a table with a column per stage: the measurements, the remaining work, and the whole plan."""
    from rich.table import Table

    from magicseg.core.text import size_text
    from magicseg.estimate.wording import between, duration, hours_text, tasks_text

    stages = report["stages"]
    table = Table("", *(entry["stage"] for entry in stages), title=report["run"], title_justify="left")
    known = [entry["measured"] for entry in stages]
    table.add_row("measured shards", *(str(one["shards"]) for one in known))
    table.add_row(
        "seconds a shard",
        *(between(f"{one['shard_seconds'][key]:.3g}" for key in ("median", "min", "max")) for one in known),
    )
    starts = (one["start_seconds"] for one in known)
    table.add_row("start of a task", *("not known" if start is None else duration(start) for start in starts))
    table.add_row(
        "memory",
        *(_memory_text(entry["memory"]) for entry in stages),
    )
    if any(entry["peak_gpu_memory"] for entry in stages):
        table.add_row("GPU memory", *(size_text(entry["peak_gpu_memory"] or 0) for entry in stages))
    for part, title in (("left", "left"), ("whole", "the whole plan")):
        table.add_section()
        parts = [entry[part] for entry in stages]
        table.add_row(f"{title}: shards", *(str(one["shards"]) for one in parts))
        table.add_row("tasks", *(tasks_text(one["tasks"], one["shards_per_task"]) for one in parts))
        for unit in sorted({entry["unit"] for entry in stages}):
            table.add_row(
                f"{unit}-hours",
                *(
                    between(map(hours_text, (one["device_hours"], *one["device_hours_range"])))
                    if entry["unit"] == unit
                    else ""
                    for entry, one in zip(stages, parts, strict=True)
                ),
            )
        table.add_row("wall time", *(duration(one["wall_seconds"]) for one in parts))
        table.add_row("samples kept", *(f"{one['kept']} of {one['samples']}" for one in parts))
        table.add_row("disk", *(size_text(one["bytes"]) for one in parts))
        table.add_row("files", *(str(one["files"]) for one in parts))
    return table


def _memory_text(memory: "Mapping[str, Any]") -> str:
    from magicseg.core.text import size_text

    peak = size_text(memory["peak"])
    return f"{peak}, ask {memory['suggested']}" if memory["suggested"] else f"{peak}, without the server"
