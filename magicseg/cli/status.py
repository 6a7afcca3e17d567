"""``magicseg status``: show a run's progress, here and on the cluster."""

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from magicseg.cli.options import JsonOption, RunArgument
from magicseg.cli.output import plain_console, print_json
from magicseg.core.gpus import shown_gpus
from magicseg.core.text import printable

if TYPE_CHECKING:
    from rich.console import Group
    from rich.text import Text

_WATCH_SECONDS = 5.0
_SHOWN_HOSTS = 8


def status(
    run: RunArgument,
    json_: JsonOption = False,
    watch: Annotated[bool, typer.Option("--watch", help="refresh every few seconds while work is running")] = False,
) -> None:
    """Show a run's progress: stages, shards, jobs, failures and their reasons."""
    from magicseg.launch.overview import cluster_status
    from magicseg.run.directory import Run

    opened = Run.open(run)
    if json_:
        print_json(cluster_status(opened))
        return
    console = plain_console()
    state = cluster_status(opened)
    if not watch:
        console.print(_page(state))
        return
    from rich.live import Live

    with Live(_page(state), console=console, auto_refresh=False) as live:
        while _is_working(state):
            time.sleep(_WATCH_SECONDS)
            state = cluster_status(opened)
            live.update(_page(state), refresh=True)


def _is_working(state: dict[str, Any]) -> bool:
    jobs = any(job["tasks"]["running"] or job["tasks"]["pending"] for job in state["jobs"])
    return jobs or any(stage["shards"]["running"] for stage in state["stages"].values())


def _page(state: dict[str, Any]) -> "Group":
    from rich.console import Group
    from rich.table import Table

    stages = Table("stage", "done", "failed", "running", "pending", "kept", "dropped", title=state["run"])
    for name, stage in state["stages"].items():
        shards, samples = stage["shards"], stage["samples"]
        seen = samples["kept"] + sum(samples["dropped"].values())
        reasons = ", ".join(f"{reason} {count} ({count / seen:.0%})" for reason, count in samples["dropped"].items())
        stages.add_row(
            name,
            f"{shards['committed']}/{shards['total']}",
            *(str(shards[key]) for key in ("failed", "running", "pending")),
            str(samples["kept"]),
            reasons or "0",
        )
    train = state["train"]
    parts: list[Any] = [
        stages,
        *(
            _line(f"{name}: {stage['rate']:.1f} samples/s, {_duration(stage['eta_seconds'])} left")
            for name, stage in state["stages"].items()
            if stage["eta_seconds"]
        ),
        *(_line(line) for line in _workers(state["workers"])),
        *(_line(line) for name, stage in state["stages"].items() for line in _fallbacks(name, stage["samples"])),
        _line(f"train: {train['step']} of {train['steps']} steps{_ending(train)}"),
        *(_line(f"{name}: mIoU {miou:.4f}") for name, miou in state["results"].items()),
    ]
    jobs = [job for job in state["jobs"] if _worth_showing(job, state)]
    if jobs:
        parts.append(_jobs_table(jobs))
    if state["tasks"]:
        parts.append(_tasks_table(state["tasks"]))
    waiting = ", ".join(f"{reason} {count}" for reason, count in state["waiting_for"].items())
    if waiting:
        parts.append(_line(f"waiting tasks, by Slurm's reason: {waiting}"))
    for name, stage in state["stages"].items():
        if stage["failure_reasons"]:
            counts = ", ".join(f"{reason} {count}" for reason, count in stage["failure_reasons"].items())
            parts.append(_line(f"{name}, failed shards by reason: {counts}"))
        parts += [_line(f"  shard {shard}: {why}") for shard, why in list(stage["failures"].items())[:5]]
    parts += [_line(f"warning: {warning}") for warning in state["warnings"]]
    return Group(*parts)


def _workers(workers: list[dict[str, Any]]) -> list[str]:
    """Return a line per stage at work: ``generate: 6 workers on n1 (GPUs 0-3), n2 (GPUs 0-1)``."""
    lines = []
    for stage in dict.fromkeys(worker["stage"] for worker in workers):
        by_host: dict[str, list[str]] = {}
        for worker in workers:
            if worker["stage"] == stage:
                by_host.setdefault(worker["host"], []).extend(filter(None, [worker["gpu"]]))
        hosts = [f"{host} ({shown_gpus(gpus)})" if gpus else host for host, gpus in by_host.items()]
        more = f" and {len(hosts) - _SHOWN_HOSTS} more hosts" if len(hosts) > _SHOWN_HOSTS else ""
        count = sum(worker["stage"] == stage for worker in workers)
        noun = "worker" if count == 1 else "workers"
        lines.append(f"{stage}: {count} {noun} on {', '.join(hosts[:_SHOWN_HOSTS])}{more}")
    return lines


def _fallbacks(name: str, samples: dict[str, Any]) -> list[str]:
    count = sum(samples["fallbacks"].values())
    if not count:
        return []
    reasons = ", ".join(f"{reason} {number}" for reason, number in samples["fallbacks"].items())
    return [f"{name}: the template wrote {count} captions ({count / samples['kept']:.0%}): {reasons}"]


def _line(text: str) -> "Text":
    from rich.text import Text

    return Text(printable(text))


def _ending(train: dict[str, Any]) -> str:
    left_out = f"; {train['near_duplicates']} near duplicates were left out" if train["near_duplicates"] else ""
    return f"{', done' if train['done'] else ''}{left_out}"


def _worth_showing(job: dict[str, Any], state: dict[str, Any]) -> bool:
    """Return whether a job is in the queue, or did not complete and its stage is still unfinished."""
    if job["tasks"]["running"] or job["tasks"]["pending"]:
        return True
    stage = state["stages"].get(job["stage"])
    if job["stage"] == "follow-up":
        return False
    if stage is not None:
        done = stage["shards"]["committed"] == stage["shards"]["total"]
    else:
        done = state["train"]["done"] if job["stage"] == "train" else bool(state["results"])
    return not done and job["state"] != "completed"


def _jobs_table(jobs: list[dict[str, Any]]) -> Any:
    from rich.table import Table

    table = Table("job", "stage", "tasks")
    for job in jobs[-20:]:
        tasks = ", ".join(f"{count} {kind}" for kind, count in job["tasks"].items() if count)
        endings = ", ".join(f"{word} {count}" for word, count in job["endings"].items())
        table.add_row(str(job["id"]), job["stage"], f"{tasks} ({endings})" if endings else tasks)
    return table


def _tasks_table(tasks: list[dict[str, Any]]) -> Any:
    from rich.table import Table

    table = Table("task", "stage", "nodes", "elapsed", "left", "shards", "done")
    for task in tasks:
        shards = task["shards"]
        table.add_row(
            *(task[key] for key in ("id", "stage", "nodes", "elapsed", "left")),
            shards if len(shards) < 30 else f"{shards[:27]}...",
            str(task["committed"]) if shards else "",
        )
    return table


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
