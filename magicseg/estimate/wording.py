"""Format an estimate as text."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from magicseg.core.text import command, size_text


def summary_lines(report: Mapping[str, Any]) -> list[str]:
    """Return the lines that ``submit`` prints before it queues jobs; empty if there is nothing to estimate."""
    left = [entry for entry in report["stages"] if entry["left"]["shards"]]
    lines = []
    if left:
        shards = ", ".join(f"{entry['left']['shards']} shards of {entry['stage']}" for entry in left)
        lines.append(f"estimate: {shards}: {totals(report['total']['left'], report['parallel'])}")
        lines.append(f"  {basis(left)}")
    if report["unmeasured"]:
        what = f" for {', '.join(report['unmeasured'])}" if left else ""
        lines.append(f"no estimate yet{what}: {command('magicseg', 'estimate', report['run'], '--pilot', '1')}")
    return [*lines, *(f"warning: {text}" for text in report["warnings"])]


def totals(total: Mapping[str, Any], parallel: int) -> str:
    """Format totals: ``1.25 GPU-hours, 12 min 00 s with 64 at a time, 3.1 GB in 480 files``."""
    hours = [f"{hours_text(total[key])} {unit}-hours" for key, unit in (("gpu_hours", "GPU"), ("cpu_hours", "CPU"))]
    used = [text for text, key in zip(hours, ("gpu_hours", "cpu_hours"), strict=True) if total[key]]
    return (
        f"{', '.join(used) or 'no time'}, {duration(total['wall_seconds'])} with {parallel} at a time, "
        f"{size_text(total['bytes'])} in {total['files']} files"
    )


def basis(entries: Sequence[Mapping[str, Any]]) -> str:
    """Format the basis of an estimate, ``by 1 shard of generate on n1 (CPU)``, and what it does not include."""
    by: dict[tuple[int, str], list[str]] = {}
    for entry in entries:
        known = entry["measured"]
        hosts = known["hosts"]
        where = f"{hosts[0] if len(hosts) == 1 else f'{len(hosts)} hosts'} ({known['device']})"
        by.setdefault((known["shards"], where), []).append(entry["stage"])
    text = "by " + "; ".join(
        f"{count} shard{'s' if count > 1 else ''} of {' and of '.join(stages)} on {where}"
        for (count, where), stages in by.items()
    )
    unstarted = [entry["stage"] for entry in entries if entry["measured"]["start_seconds"] is None]
    without = ["waiting in the queue", *([f"the start of each task of {', '.join(unstarted)}"] if unstarted else [])]
    return f"{text}; without {' and '.join(without)}"


def training_line(report: Mapping[str, Any]) -> str:
    """Format the estimate of training."""
    train = report["train"]
    if train is None:
        return "not included: training, which has no log yet (RUN/train.jsonl), and evaluation"
    return (
        f"train: {train['step']} of {train['steps']} steps, {duration(train['left_seconds'])} left of "
        f"{duration(train['whole_seconds'])} at its {train['samples_per_second']:.1f} samples/s so far "
        "(in the wall time, not in the hours); not included: evaluation"
    )


def between(texts: Iterable[str]) -> str:
    """Format median, minimum and maximum: ``2.1 (1.9 to 2.4)``; the median alone if minimum and maximum are equal."""
    median, low, high = texts
    return median if low == high else f"{median} ({low} to {high})"


def hours_text(hours: float) -> str:
    """Format hours with three digits. Values below a thousandth become ``<0.001``."""
    if 0 < hours < 0.001:
        return "<0.001"
    return f"{hours:.3g}" if hours < 100 else f"{hours:,.0f}"


def tasks_text(tasks: int, shards: int) -> str:
    """Format a number of tasks: ``3, of 2 shards each``. The last task may have fewer shards."""
    return f"{tasks}, of {shards} shard{'s' if shards > 1 else ''} each" if tasks else "0"


def duration(seconds: float) -> str:
    """Format seconds: ``42 s``, ``3 min 20 s``, ``5 h 07 min``, ``3 d 04 h``."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes // 1440} d {minutes // 60 % 24:02d} h"
