"""Array jobs with tiny models of real families and the miniature's: killed, resumed, same digest as a local run."""

import os

import pytest

from helpers.clusters import wait_until
from helpers.evidence import check_done_once, workers
from helpers.model_runs import FAMILIES, Checkpoints, make_model_run
from helpers.tiny_runs import do
from magicseg.config.loading import load_config
from magicseg.run import Run
from magicseg.run.digest import logical_digest

# All families in the repository take six minutes: MAGICSEG_ALL_FAMILIES=1 pytest tests/slurm/test_model_runs.py
CHOSEN = list(FAMILIES) if os.environ.get("MAGICSEG_ALL_FAMILIES") else []
MINIATURE = ("plan.samples=12", "plan.shard_size=4", "generate.batch_size=2", "generate.options.steps=4")


def at_work(run, stage):
    """Return the processes of a stage's tasks."""
    return [process for folder in (run.path / "jobs").glob(f"*-{stage}") for process in workers(folder)]


def make(path, family, checkpoints):
    """Create a run of three shards without any work done."""
    if family == "miniature":
        return Run.create(path, load_config(preset="miniature", overrides=MINIATURE))
    return make_model_run(path, family, checkpoints.get)


@pytest.mark.parametrize("family", [*CHOSEN, "miniature"])
def test_models_on_the_cluster_give_the_digest_of_a_local_run(family, on_cluster, slurm, tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    local, run = (make(tmp_path / name, family, checkpoints) for name in ("local", "run"))
    do(local)
    options = ("--profile", "cpu", "--shards-per-task", 2, "--resubmit", 2)
    for stage in ("describe", "generate", "mask"):
        command = on_cluster.start("submit", stage, run.path, *options, "--wait")
        if stage != "describe":  # too short to be observed
            wait_until(lambda stage=stage: run.ledger(stage).claimed() and at_work(run, stage))
            at_work(run, stage)[0].kill()
        out, err = command.communicate(timeout=200)
        assert command.returncode == 0, (out, err)
    assert logical_digest(run) == logical_digest(local)
    check_done_once(run, disturbed=2)
