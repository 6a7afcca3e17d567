"""Faults of clusters, all at once: the data set is the same, and no committed shard is done twice."""

import json

from helpers.clusters import wait_until
from helpers.evidence import check_done_once, events, workers
from helpers.tiny_runs import do, make_run
from magicseg.run.digest import logical_digest

SMALL = (
    *("plan.samples=256", "plan.shard_size=8", "generate.size=32"),
    *("train.steps=12", "train.loader_workers=0", "train.checkpoint_every=4", "evaluate.scenes=8"),
)
SLOW = ("generate.backend=faulty", "generate.options={seconds: 2.0}")


def running(slurm, stage):
    """Return the running tasks of a stage and their nodes."""
    lines = (line.split() for line in slurm.queued("-t", "RUNNING", "-o", "%i %T %N %j"))
    return {task: node for task, _, node, name in lines if name.startswith(f"{stage}-")}


def test_a_run_survives_killed_workers_lost_nodes_preemption_and_cancellation(on_cluster, slurm, tmp_path):
    local = make_run(tmp_path / "local", *SMALL, "plan.shard_size=128")
    do(local)
    run = make_run(tmp_path / "run", *SMALL, *SLOW)
    options = ("--profile", "cpu", "--set", "slurm.partition=low", "--shards-per-task", 4, "--resubmit", 3)
    command = on_cluster.start("submit", "all", run.path, *options, "--wait")
    wait_until(lambda: len(running(slurm, "generate")) == 8)
    ledger = run.ledger("generate")
    wait_until(lambda: len(ledger.claimed()) == 8)
    tasks = running(slurm, "generate")
    folder = run.path / "jobs/0002-generate"
    nodes = sorted(set(tasks.values()))
    on_node = {node: sorted(task for task, place in tasks.items() if place == node) for node in nodes}
    lost, taken, *others = nodes
    killed, cancelled, timed_out, left_alone = (task for node in others for task in on_node[node])

    workers(folder, killed)[0].kill()
    slurm.run("scancel", cancelled)
    slurm.run("scontrol", "update", f"jobid={timed_out}", "EndTime=now+5")
    slurm.run("sbatch", "-p", "high", "-w", taken, "--exclusive", "--mem=0", "-o", "/dev/null", "--wrap", "sleep 2")
    slurm.kill_node(lost)
    slurm.start_node(lost)

    out, err = command.communicate(timeout=280)
    assert command.returncode == 0, (out, err)
    assert logical_digest(run) == logical_digest(local)
    assert (run.path / "results/miniature.json").exists()
    # Of eight running tasks, seven were disturbed: at most seven open shards were done again.
    check_done_once(run, disturbed=7)
    assert not any(shard // 4 == int(left_alone.split("_")[1]) for _, shard in repeated(run))
    state = json.loads(on_cluster("status", run.path, "--json").out)
    assert all(stage["shards"]["committed"] == 32 for stage in state["stages"].values())
    assert on_cluster("verify", run.path).code == 0


def repeated(run):
    return [what for what, count in events(run)["started"].items() if count > 1]


def test_tasks_stop_before_the_time_limit_and_resume_after_a_requeue(on_cluster, slurm, tmp_path):
    """The limit is one minute and the work is longer: tasks stop at the warning; requeued tasks finish the work."""
    slow = ("plan.samples=128", "describe.backend=faulty", "describe.options={seconds: 4.0}")
    run = make_run(tmp_path / "run", *SMALL, *slow)
    result = on_cluster.patiently(
        *("submit", "describe", run.path, "--profile", "cpu", "--shards-per-task", 8, "--wait"),
        *("--set", "slurm.time=1"),
    )
    assert result.code == 0, result.err
    seen = events(run)
    assert set(seen["committed"].values()) == {1}
    assert len(seen["committed"]) == 16
    logs = [log.read_text() for log in (run.path / "jobs").glob("*/*_log.out")]
    assert any("stopped, because the time of this job ends" in log for log in logs)
    assert sum(count - 1 for count in seen["started"].values()) <= sum(log.count("stopped, because") for log in logs)


def test_a_shard_that_kills_its_worker_does_not_block_other_shards(on_cluster, slurm, tmp_path):
    run = make_run(
        tmp_path / "run", *SMALL, "describe.backend=faulty", "describe.options={fault: kill, at: [9], seconds: 0.0}"
    )
    result = on_cluster.patiently(
        "submit", "describe", run.path, "--profile", "cpu", "--shards-per-task", 16, "--wait"
    )
    assert result.code == 1
    assert "1 shards of describe: 1" in result.err
    assert run.ledger("describe").commits().keys() == set(range(32)) - {1}
    failed = on_cluster("logs", run.path, "--failed")
    assert "describe shard 1: started" in failed.out
    # On the next submission, the records and the queue tell that the task is dead, and only its shard is submitted.
    # The job starts an hour later: while a shard is running, it does not count as failed.
    again = on_cluster("submit", "describe", run.path, "--profile", "cpu", "--set", "slurm.extra.begin=now+1hour")
    assert again.code == 0
    assert "1 shards in 1 task" in again.err
    state = json.loads(on_cluster("status", run.path, "--json").out)
    assert state["stages"]["describe"]["failure_reasons"] == {"WorkerDied": 1}


def test_requeueing_the_last_task_of_an_array_requeues_no_other_task(on_cluster, slurm, tmp_path):
    """In the last task's environment, SLURM_JOB_ID is the id of the whole array."""
    run = make_run(tmp_path / "run", *SMALL, "describe.backend=faulty", "describe.options={seconds: 0.7}")
    command = on_cluster.start("submit", "describe", run.path, "--profile", "cpu", "--shards-per-task", 8, "--wait")
    wait_until(lambda: len(run.ledger("describe").claimed()) == 4)
    tasks = sorted(running(slurm, "describe"))
    slurm.run("scancel", tasks[0])
    wait_until(lambda: len(running(slurm, "describe")) == 3)
    slurm.run("scancel", "--signal=USR2", tasks[3])
    out, err = command.communicate(timeout=200)
    assert command.returncode == 1, (out, err)
    committed = run.ledger("describe").commits().keys()
    assert committed >= set(range(8, 32)), "the cancelled task's shards alone are missing"
    assert not committed >= set(range(8))
    again = {shard for _, shard in repeated(run)}
    assert again <= set(range(24, 32)), "tasks that were at work, and the one that was cancelled, stayed as they were"
    assert len(again) == 1
    state = json.loads(on_cluster("status", run.path, "--json").out)
    assert state["jobs"][0]["tasks"]["cancelled"] == 1
    assert state["jobs"][0]["tasks"]["completed"] == 3
