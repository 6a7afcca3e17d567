"""An evaluation sharded across the tasks of a job array gives the same results as one process."""

import json
import shutil

from helpers.benchmark_data import make
from helpers.tiny_runs import do, make_run
from magicseg.core.distributed import ALONE
from magicseg.data.protocol import load_protocol
from magicseg.run import Run
from magicseg.train.run_training import train_run

TINY = (
    *("plan.samples=32", "plan.shard_size=16", "generate.size=32", "evaluate.scenes=8"),
    *("train.steps=4", "train.batch_size=8", "train.warmup_steps=1", "train.loader_workers=0"),
)


def results_of(run):
    """Return all results files, without values that differ between evaluations."""
    found = {}
    for path in sorted((run.path / "results").glob("*.json")):
        results = json.loads(path.read_text())
        for each in (results, *results["baselines"].values()):
            each.get("provenance", {}).pop("seconds", None)
        found[path.name] = results
    return found


def test_three_tasks_give_the_results_of_one_process(magicseg, on_cluster, slurm, tmp_path):
    protocol = load_protocol("voc21").model_dump(mode="json")
    protocol |= {"name": "small-voc", "short_side": 24, "window": 24, "stride": 16, "tuning_split": None}
    (tmp_path / "small-voc.yaml").write_text(json.dumps(protocol))
    make(load_protocol("voc21"), tmp_path / "voc", count=24)
    run = make_run(
        tmp_path / "run",
        *TINY,
        f"evaluate.benchmarks=[miniature, {tmp_path / 'small-voc.yaml'}]",
        f"evaluate.data={tmp_path / 'voc'}",
        "evaluate.baselines=[memory-bank]",
    )
    do(run)
    train_run(run, world=ALONE, progress=lambda *_: None, stop=lambda: False)
    shutil.copytree(run.path, tmp_path / "alone")
    assert magicseg("evaluate", tmp_path / "alone").code == 0

    started = on_cluster.patiently("submit", "evaluate", run.path, "--profile", "cpu", "--tasks", 3, "--wait")
    assert started.code == 0, started.err
    assert "evaluate: 3 tasks" in started.err
    expected = results_of(Run.open(tmp_path / "alone"))
    assert expected.keys() == {"miniature.json", "small-voc.json"}
    assert results_of(run) == expected
    logs = [path.read_text() for path in sorted((run.path / "jobs").glob("*-evaluate/*_0_log.out"))]
    assert sorted("share 1 of 3" in log for log in logs) == [False, False, True]
    assert json.loads(on_cluster("status", run.path, "--json").out)["jobs"][-1]["tasks"]["completed"] == 3
    again = on_cluster("submit", "evaluate", run.path, "--profile", "cpu", "--tasks", 3)
    assert "nothing to submit: evaluate is done" in again.err
