"""Ten thousand shards: one sbatch call per array, and few calls to query their state."""

import json
import os

import pytest

from helpers.clusters import PLUGINS, commands, require_slurm, started
from helpers.tiny_runs import make_run
from magicseg.launch.jobs import submissions

# Log each call, then execute it.
COUNTING = """#!/bin/sh
echo "{name}" >>{log}
exec {real} "$@"
"""


@pytest.fixture(scope="module")
def big_cluster():
    require_slurm()
    with started(ACCT="1", EXTRA_CONF="MaxJobCount=40000") as cluster:
        yield cluster


@pytest.fixture
def counted(big_cluster, tmp_path):
    """The command line on the big cluster, and a function that returns the Slurm commands since its last call."""
    log, folder = tmp_path / "calls", tmp_path / "bin"
    folder.mkdir()
    for name in ("sbatch", "squeue", "sacct", "scontrol", "scancel"):
        real = next(
            f"{place}/{name}"
            for place in big_cluster.environment["PATH"].split(os.pathsep)
            if os.access(f"{place}/{name}", os.X_OK)
        )
        (folder / name).write_text(COUNTING.format(name=name, log=log, real=real))
        (folder / name).chmod(0o755)
    line = commands(big_cluster, tmp_path, PLUGINS)
    line.environment["PATH"] = f"{folder}:{line.environment['PATH']}"

    def calls():
        found = log.read_text().split() if log.exists() else []
        log.write_text("")
        return {name: found.count(name) for name in sorted(set(found))}

    return line, calls


def test_10_000_shards_take_ten_arrays_and_their_status_takes_one_squeue(counted, tmp_path):
    on_cluster, calls = counted
    run = make_run(tmp_path / "run", "plan.samples=10000", "plan.shard_size=1", "generate.size=8")
    assert run.plan.shards == 10_000
    options = ("--profile", "cpu", "--shards-per-task", 1, "--set", "slurm.extra.begin=now+1day")
    result = on_cluster.patiently("submit", "describe", run.path, *options)
    assert result.code == 0, result.err
    assert calls() == {"sbatch": 10, "scontrol": 1}
    (made,) = submissions(run)
    assert [array.count for array in made.arrays] == [1000] * 10
    assert made.all_shards() == set(range(10_000))
    state = json.loads(on_cluster("status", run.path, "--json").out)
    assert calls() == {"squeue": 1}
    assert sum(job["tasks"]["pending"] for job in state["jobs"]) == 10_000
    again = on_cluster.patiently("submit", "describe", run.path, *options)
    assert "10000 in the queue already" in again.err
    assert calls() == {"scontrol": 1, "squeue": 1}
    assert on_cluster("cancel", run.path).code == 0
    assert calls() == {"scancel": 1, "squeue": 1}
    state = json.loads(on_cluster("status", run.path, "--json").out)
    assert set(calls()) <= {"squeue", "sacct"}
    assert sum(job["tasks"]["cancelled"] for job in state["jobs"]) == 10_000
