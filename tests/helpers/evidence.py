"""Evidence from a run's logs and ledgers about the execution of its shards."""

import re
from collections import Counter
from pathlib import Path

import psutil

from magicseg.run import STAGES, Run

_LINE = re.compile(r"^\d\d:\d\d:\d\d (\w+) shard (\d+): (\w+)", re.MULTILINE)


def events(run: Run) -> dict[str, Counter[tuple[str, int]]]:
    """Count the events of each (stage, shard) in the logs of all tasks: started, committed and so on."""
    found: dict[str, Counter[tuple[str, int]]] = {}
    for log in (run.path / "jobs").glob("*/*_log.out"):
        for stage, shard, outcome in _LINE.findall(log.read_text(errors="replace")):
            found.setdefault(outcome, Counter())[stage, int(shard)] += 1
    return found


def check_done_once(run: Run, *, disturbed: int) -> None:
    """Assert that every shard was committed once, and at most ``disturbed`` shards were started more than once."""
    seen = events(run)
    everything = {(stage, shard) for stage in STAGES for shard in range(run.plan.shards)}
    assert seen["committed"].keys() == everything
    assert set(seen["committed"].values()) == {1}
    again = {what: count for what, count in seen["started"].items() if count > 1}
    assert len(again) <= disturbed, again
    for stage in STAGES:
        assert len(run.ledger(stage).commits()) == run.plan.shards
        assert run.ledger(stage).claimed() == []


def workers(folder: Path, label: str = "") -> list[psutil.Process]:
    """Return the Python processes of a submission's tasks, or of one task, in the nodes' process namespaces."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if "submitit.core._submit" in line and str(folder) in line and "python" in line[0]:
            try:
                environment = process.environ()
            except psutil.Error:
                continue
            task = f"{environment.get('SLURM_ARRAY_JOB_ID')}_{environment.get('SLURM_ARRAY_TASK_ID')}"
            if label in {"", task}:
                found.append(process)
    return found
