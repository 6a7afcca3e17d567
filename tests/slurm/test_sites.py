"""Sites without accounting, with small arrays, cancelling preemption, containers, ordinary users, nested jobs."""

import json
import os
import pickletools
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.clusters import PLUGINS, ClusterCommands, commands, require_slurm, started, wait_until
from helpers.evidence import workers
from helpers.ordinary_user import NOBODY, python_for_everybody, readable_libraries
from helpers.tiny_runs import TINY, do, make_run
from magicseg.launch.jobs import submissions
from magicseg.run import Run
from magicseg.run.digest import logical_digest

SMALL = (
    *("plan.samples=84", "plan.shard_size=4", "generate.size=32"),
    *("train.steps=4", "train.loader_workers=0", "evaluate.scenes=8"),
)
SITE = """MaxArraySize=10
PartitionName=cancel PriorityTier=1 PreemptMode=CANCEL"""


@pytest.fixture(scope="module")
def plain_cluster():
    """A cluster without accounting, with arrays of 10, and a partition that cancels preempted jobs."""
    require_slurm()
    with started(ACCT="0", ISOLATE="pid", EXTRA_CONF=SITE) as cluster:
        yield cluster


@pytest.fixture
def plain(plain_cluster):
    plain_cluster.cancel_all()
    yield plain_cluster
    plain_cluster.cancel_all()


@pytest.fixture
def on_plain(plain, tmp_path, faulty):
    return commands(plain, tmp_path, PLUGINS)


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    run = make_run(tmp_path_factory.mktemp("local") / "run", *SMALL, "plan.shard_size=84")
    do(run)
    return run


def test_21_tasks_on_a_site_with_arrays_of_10_and_without_accounting(on_plain, plain, tmp_path):
    run = make_run(tmp_path / "run", *SMALL)
    result = on_plain.patiently(
        *("submit", "describe", run.path, "--profile", "no-accounting", "--shards-per-task", 1, "--wait"),
        *("--set", "slurm.gpus=0", "--set", "slurm.cpus=1", "--set", "slurm.memory=500M"),
    )
    assert result.code == 0, result.err
    (made, follow_up) = submissions(run)
    assert [array.count for array in made.arrays] == [7, 7, 7]
    assert [(array.first, made.shards_of(array.first)) for array in made.arrays] == [(0, [0]), (7, [7]), (14, [14])]
    assert follow_up.stage == "follow-up"
    assert len(run.ledger("describe").commits()) == 21
    state = json.loads(on_plain("status", run.path, "--json").out)
    assert [job["tasks"]["completed"] for job in state["jobs"]] == [7, 7, 7, 1]
    assert state["warnings"] == []
    measured = on_plain("efficiency", run.path, "describe")
    assert "21 shards in 21 tasks" in measured.out


def test_a_whole_run_on_a_site_that_cancels_preempted_jobs_and_has_no_accounting(on_plain, plain, tmp_path, local):
    """Follow-up jobs submit preempted and cancelled shards again, and the stages that depend on them."""
    run = make_run(tmp_path / "run", *SMALL, "generate.backend=faulty", "generate.options={seconds: 1.5}")
    do(run, "describe", shards=range(12))  # leaves a little work in every stage
    profile = tmp_path / "site.yaml"
    profile.write_text("partition: cancel\ncpus: 2\nmemory: 1900M\nrequeue: 0\nresubmit: 3\n")
    options = ("--profile", profile, "--shards-per-task", 3)
    command = on_plain.start("submit", "all", run.path, *options, "--wait")
    wait_until(lambda: len(run.ledger("generate").claimed()) == 7)
    generating = [line.split() for line in plain.queued("-t", "RUNNING", "-o", "%i %N")]
    node = generating[0][1]
    cancelled = next(task for task, place in generating if place != node)
    plain.run("sbatch", "-p", "high", "-w", node, "--exclusive", "--mem=0", "-o", "/dev/null", "--wrap", "sleep 2")
    plain.run("scancel", cancelled)
    out, err = command.communicate(timeout=280)
    assert command.returncode == 0, (out, err)
    stages = [one.stage for one in submissions(run)]
    assert stages[:6] == ["describe", "generate", "mask", "train", "evaluate", "follow-up"]
    assert stages[6:10] == ["generate", "mask", "train", "evaluate"]
    assert max(array.count for one in submissions(run) for array in one.arrays) <= 10
    assert submissions(run)[6].parent == 6
    assert logical_digest(run) == logical_digest(local)
    assert (run.path / "results/miniature.json").exists()


def test_submitting_from_inside_a_job_whose_environment_leaks(on_plain, plain, tmp_path, local):
    run = make_run(tmp_path / "run", *SMALL)
    command = f"exec {sys.executable} -m magicseg submit describe {run.path} --profile cpu --shards-per-task 8 --wait"
    script = tmp_path / "outer.sh"
    script.write_text(
        f"#!/bin/bash\n#SBATCH --array=5\n#SBATCH --ntasks=2\nexport SBATCH_PARTITION=high\n{command}\n"
    )
    plain_environment = {**on_plain.environment, "SLURM_ARRAY_TASK_ID": "7", "SUBMITIT_FOLDER": "/nowhere"}
    log = tmp_path / "outer.log"
    subprocess.run(
        ["sbatch", "--wait", "-o", log, script],
        env=plain_environment,
        check=True,
        timeout=200,
        stdout=subprocess.DEVNULL,
    )
    assert len(run.ledger("describe").commits()) == 21, log.read_text()
    assert (
        "--partition=high"
        not in (submissions(run)[0].folder / f"{submissions(run)[0].jobs[0]}_submission.sh").read_text()
    )


def test_a_login_environment_full_of_slurm_variables_changes_nothing(on_plain, plain, tmp_path):
    run = make_run(tmp_path / "run", *SMALL)
    leaks = {
        "SLURM_JOB_ID": "99",
        "SLURM_ARRAY_JOB_ID": "98",
        "SLURM_ARRAY_TASK_ID": "3",
        "SLURM_NTASKS": "17",
        "SLURM_PROCID": "4",
        "SLURM_MEM_PER_CPU": "77777",
        "SBATCH_ARRAY_INX": "0-9",
        "SBATCH_TIMELIMIT": "1",
        "SQUEUE_FORMAT": "%i",
        "SQUEUE_STATES": "RUNNING",
        "SACCT_FORMAT": "JobID",
        "SLURM_EXPORT_ENV": "NONE",
    }
    polluted = ClusterCommands(on_plain.folder, {**on_plain.environment, **leaks})
    result = polluted.patiently("submit", "describe", run.path, "--profile", "cpu", "--shards-per-task", 8, "--wait")
    assert result.code == 0, result.err
    assert len(run.ledger("describe").commits()) == 21


def test_an_ordinary_user_submits_watches_and_cancels(plain, tmp_path, local):
    python = python_for_everybody()
    home = Path(plain.folder) / "home"
    home.mkdir(exist_ok=True)
    shutil.chown(home, "nobody", "nogroup")
    paths = os.pathsep.join(map(str, readable_libraries(Path(plain.folder))))
    environment = {
        **plain.environment,
        "PYTHONPATH": paths,
        "HOME": str(home),
        "COLUMNS": "200",
        "NO_COLOR": "1",
        "OMP_NUM_THREADS": "1",
    }

    def magicseg(*arguments):
        command = [*NOBODY, python, "-m", "magicseg", *map(str, arguments)]
        return subprocess.run(
            command, cwd=home, env=environment, capture_output=True, text=True, timeout=200, check=False
        )

    sets = [word for setting in (*TINY, *SMALL) for word in ("--set", setting)]
    assert magicseg("init", "run", "--preset", "painted", *sets).returncode == 0
    done = magicseg("submit", "all", "run", "--profile", "cpu", "--shards-per-task", 8, "--wait")
    assert done.returncode == 0, done.stderr
    run = Run.open(home / "run")
    assert (run.path / "results/miniature.json").exists()
    assert logical_digest(run) == logical_digest(local)
    owners = {path.owner() for path in run.path.rglob("*")}
    assert owners == {"nobody"}
    assert magicseg("reset", "mask", "run", "--yes").returncode == 0
    assert (
        magicseg("submit", "mask", "run", "--profile", "cpu", "--set", "slurm.extra.begin=now+1hour").returncode == 0
    )
    assert "7 pending" in magicseg("status", "run").stdout
    assert magicseg("cancel", "run").returncode == 0
    wait_until(lambda: not plain.queued())


CONTAINER = """#!/bin/sh
# A stand-in for apptainer: log the arguments, then run the command without Slurm's commands on the PATH.
echo "$@" >>{log}
case "$1" in
  --version) echo "apptainer version 1.4.5"; exit ;;
  inspect) echo '{{"data": {{"attributes": {{"labels": {{}}}}}}}}'; exit ;;
  exec) shift ;;
  *) exit 99 ;;
esac
while :; do case "$1" in
  --nv) shift ;;
  --bind) shift 2 ;;
  *) break ;;
esac; done
[ -e "$1" ] || {{ echo "FATAL: could not open image $1" >&2; exit 255; }}
image=$1 python=$2
shift 2
[ "$python" = python3 ] || exit 98
exec env PATH=/nowhere APPTAINER_CONTAINER="$image" {more} {python} "$@"
"""


def container(folder, log, **more):
    """Jobs unset the host's PYTHONPATH, so the stand-in image sets its own."""
    file = folder / "apptainer"
    more = {"PYTHONPATH": PLUGINS, **more}
    settings = " ".join(f"{name}={value}" for name, value in more.items())
    file.write_text(CONTAINER.format(log=log, python=sys.executable, more=settings))
    file.chmod(0o755)
    (folder / "image.sif").touch()
    profile = folder / "site.yaml"
    profile.write_text(
        f"cpus: 2\nmemory: 1900M\n"
        f"container:\n  image: {folder}/image.sif\n  executable: {file}\n  binds: [/scratch:/data:ro]\n"
    )
    return profile


def test_workers_run_inside_the_container_and_the_script_outside_requeues_them(on_plain, plain, tmp_path, local):
    run = make_run(tmp_path / "run", *SMALL, "describe.backend=faulty", "describe.options={seconds: 1.0}")
    log = tmp_path / "calls"
    profile = container(tmp_path, log)
    options = ("--profile", profile, "--shards-per-task", 11, "--wait")
    command = on_plain.start("submit", "describe", run.path, *options, "--set", "slurm.gpus=1")
    wait_until(lambda: len(run.ledger("describe").commits()) >= 4)
    # Slurm's warning, as before a time limit: the worker stops, and the script outside requeues the task.
    task = plain.queued("-t", "RUNNING", "-o", "%i")[0]
    plain.run("scancel", "--signal=USR2", task)
    out, err = command.communicate(timeout=200)
    assert command.returncode == 0, (out, err)
    check_part = [line for line in log.read_text().splitlines() if "submitit.core._submit" in line]
    assert len(check_part) == 3, "two tasks, and one of them again"
    assert check_part[0].startswith(
        f"exec --nv --bind {run.path} --bind /scratch:/data:ro {tmp_path}/image.sif python3 -u -m submitit"
    )
    assert len(run.ledger("describe").commits()) == 21
    # A container with another version does no work, and the log has a hint.
    other = tmp_path / "other"
    (other / "magicseg-9.9.dist-info").mkdir(parents=True)
    (other / "magicseg-9.9.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: magicseg\nVersion: 9.9\n")
    profile = container(tmp_path, log, PYTHONPATH=f"{other}:{PLUGINS}")
    result = on_plain.patiently(
        "submit", "generate", run.path, "--profile", profile, "--wait", "--shards-per-task", 21
    )
    assert result.code == 1
    shown = on_plain("logs", run.path, "generate", "--failed").out
    assert "but this node or image has 9.9" in shown
    assert "Traceback" not in shown
    assert run.ledger("generate").commits() == {}


def test_pickled_calls_contain_only_a_function_name_and_plain_values(on_plain, plain, tmp_path):
    run = make_run(tmp_path / "run", *SMALL)
    held = ("--set", "slurm.extra.begin=now+1hour")
    assert on_plain("submit", "describe", run.path, "--profile", "cpu", *held).code == 0
    pickles = list((run.path / "jobs").glob("*/*_submitted.pkl"))
    assert pickles
    names, strings = set(), []
    for operation, argument, _ in pickletools.genops(pickles[0].read_bytes()):
        if operation.name == "STACK_GLOBAL":
            names.add(tuple(strings[-2:]))
        elif isinstance(argument, str):
            strings.append(argument)
        assert operation.name not in {"GLOBAL", "INST", "EXT1"}
    assert names == {("submitit.core.utils", "DelayedSubmission"), ("magicseg.launch.task", "run_task")}


def test_claims_of_a_lost_worker_are_released_at_the_next_submission(on_plain, plain, tmp_path):
    """Its node and its task are gone: the next submission releases its claim."""
    run = make_run(tmp_path / "run", *SMALL, "describe.backend=faulty", "describe.options={seconds: 1.0}")
    profile = tmp_path / "site.yaml"
    profile.write_text("cpus: 2\nmemory: 1900M\nrequeue: 0\n")
    assert on_plain("submit", "describe", run.path, "--profile", profile, "--shards-per-task", 11).code == 0
    wait_until(lambda: len(run.ledger("describe").claimed()) == 2)
    for process in workers(submissions(run)[0].folder):
        process.kill()
    wait_until(lambda: not plain.queued())
    assert len(run.ledger("describe").claimed()) == 2
    result = on_plain.patiently(
        "submit", "describe", run.path, "--profile", profile, "--shards-per-task", 11, "--wait"
    )
    assert result.code == 0, result.err
    log = on_plain("logs", run.path, "--shard", 0).out
    assert "busy" not in log
    do(run, "generate", "mask")
    assert len(run.ledger("describe").commits()) == 21


BANNER = """#!/bin/bash
echo "----------------------------------"
echo "  Welcome to cluster 7, since 2019"
echo "----------------------------------"
exec {sbatch} "$@"
"""


def test_a_whole_run_through_an_sbatch_that_prints_a_banner(plain, tmp_path, faulty):
    sbatch = shutil.which("sbatch", path=plain.environment["PATH"])
    wrapper = tmp_path / "bin/sbatch"
    wrapper.parent.mkdir()
    wrapper.write_text(BANNER.format(sbatch=sbatch))
    wrapper.chmod(0o755)
    site = commands(plain, tmp_path, PLUGINS)
    site.environment["PATH"] = f"{wrapper.parent}:{site.environment['PATH']}"
    run = make_run(tmp_path / "run", *SMALL)
    first = site("submit", "all", run.path, "--profile", "cpu", "--shards-per-task", 7)
    assert first.code == 0, first.err
    made = submissions(run)
    assert [len(one.jobs) for one in made] == [1] * 6
    assert all(job.isdigit() for one in made for job in one.jobs)
    again = site("submit", "all", run.path, "--profile", "cpu")
    assert "nothing to submit: the rest is in the queue" in again.err
    cancelled = site("cancel", run.path)
    assert cancelled.code == 0
    waiting = [one.jobs[0] for one in made[3:]]  # the first jobs may have ended by now
    assert all(job in cancelled.err for job in waiting)
    wait_until(lambda: plain.queued() == [], 60)
    # sbatch refuses training: the error names the jobs queued before, and they are not submitted twice.
    half = site("submit", "all", run.path, "--profile", "cpu", "--set", "slurm.stages.train.partition=nowhere")
    assert half.code == 2
    by_then = submissions(run)[6:]
    assert by_then[-1].stage == "mask"
    assert all(one.names[0] in half.err for one in by_then)
    rest = site.patiently("submit", "all", run.path, "--profile", "cpu", "--wait")
    assert rest.code == 0, rest.err
    assert (run.path / "results/miniature.json").exists()
    assert [one.stage for one in submissions(run)[6 + len(by_then) :]] == ["train", "evaluate", "follow-up"]
