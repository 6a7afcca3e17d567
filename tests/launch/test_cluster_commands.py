"""The cluster commands: errors, choice of the profile, output, light imports."""

import json
import subprocess
import sys

import pytest

from helpers.stand_ins import accounted, claim, listing, queued, record
from helpers.tiny_runs import Result, change, do, make_run
from magicseg.cli import main
from magicseg.launch.jobs import submissions


def hint_of(result):
    return next(line for line in result.err.splitlines() if line.startswith("hint:"))


# ------------------------------------------------------------------------------------------------------ mistakes


@pytest.fixture
def here(slurm, tmp_path, monkeypatch, capsys):
    """The command line in this process, which is faster, with the stand-ins on the PATH."""
    monkeypatch.chdir(tmp_path)
    for name, value in {"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["magicseg", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        shown = capsys.readouterr()
        return Result(int(end.value.code or 0), shown.out, shown.err)

    return run


@pytest.mark.parametrize(
    ("arguments", "words", "hint"),
    [
        (["describe", "RUN"], "no site profile: ", "cpu, gpu"),
        (["describe", "RUN", "--profile", "cpus"], "no profile 'cpus'", "cpu, gpu"),
        (["describe", "RUN", "--profile", "./site.yaml"], "site.yaml", "PATH.yaml"),
        (["describe", "RUN", "--profile", "RUN"], "is not a regular file", "PATH.yaml"),
        (["describe", "RUN", "--profile", "cpu", "--set", "partition=a"], "slurm.KEY=VALUE", "slurm.partition"),
        (["describe", "RUN", "--profile", "cpu", "--set", "slurm.partion=a"], "partion is not a key", "partition"),
        (["describe", "RUN", "--profile", "cpu", "--set", "slurm.partition=a b"], "partition", "docs/cluster.md"),
        (["describe", "nowhere", "--profile", "cpu"], "is not a run", "magicseg init"),
    ],
)
@pytest.mark.parametrize("dry_run", [[], ["--dry-run"]])
def test_invalid_input_exits_with_2_a_message_and_a_hint(here, slurm, fresh, arguments, words, hint, dry_run):
    files = listing(fresh.path)
    result = here("submit", *(word.replace("RUN", str(fresh.path)) for word in arguments), *dry_run)
    assert result.code == 2, result.err
    assert words in result.err
    assert hint in hint_of(result)
    assert result.out == ""
    assert slurm.calls("sbatch") == []
    assert listing(fresh.path) == files


def test_weights_that_are_not_fetched_are_refused_before_anything_is_in_the_queue(here, slurm, tmp_path):
    run = make_run(
        tmp_path / "run",
        "generate.backend=diffusers",
        f"generate.options={{model: org/model, revision: '{'a' * 40}'}}",
    )
    told = f"generate.options.model: org/model at {'a' * 40} is not fetched"
    for stage in ("all", "generate"):
        result = here("submit", stage, run.path, "--profile", "cpu")
        assert result.code == 2
        assert told in result.err
        assert f"magicseg fetch {run.path}" in hint_of(result)
    assert slurm.calls("sbatch") == []
    shown = here("submit", "all", run.path, "--profile", "cpu", "--dry-run")
    assert shown.code == 0
    assert f"required before submitting: {told}" in shown.err
    assert shown.out.count("### sbatch") == 6
    assert here("submit", "describe", run.path, "--profile", "cpu").code == 0, "this stage needs none"


def test_sbatch_variables_are_used_or_listed_as_ignored_and_follow_up_jobs_repeat_them(
    here, slurm, fresh, monkeypatch
):
    monkeypatch.setenv("SBATCH_ACCOUNT", "lab")
    monkeypatch.setenv("SBATCH_TIMELIMIT", "5")
    result = here("submit", "describe", fresh.path, "--profile", "cpu", "--resubmit", "1")
    assert result.code == 0
    assert "SBATCH_ACCOUNT (account)" in result.err
    assert "ignored from your environment: SBATCH_TIMELIMIT" in result.err
    made, after = submissions(fresh)
    assert "--account=lab\n" in (made.folder / "101_submission.sh").read_text()
    assert 'slurm.account="lab"' in after.asked["overrides"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["submit", "paint", "RUN"],
        ["submit", "follow-up", "RUN"],
        ["submit"],
        ["submit", "describe", "RUN", "--nodes", "0"],
        ["submit", "describe", "RUN", "--resubmit", "-1"],
        ["submit", "describe", "RUN", "--shards-per-task", "0"],
        ["logs", "RUN", "paint"],
        ["cancel", "RUN", "paint"],
        ["efficiency", "RUN", "paint"],
    ],
)
def test_unknown_names_are_refused_with_a_list_of_known_names(here, slurm, fresh, arguments):
    result = here(*(word.replace("RUN", str(fresh.path)) for word in arguments))
    assert result.code == 2, result.err
    if "paint" in arguments:
        assert "evaluate" in result.err
    assert slurm.calls("sbatch") == []


def test_a_stage_without_its_input_says_which_stage_to_submit_first(on_cluster, slurm, fresh):
    result = on_cluster("submit", "mask", fresh.path, "--profile", "cpu")
    assert result.code == 1
    assert "mask needs generate" in result.err
    assert f"magicseg submit all {fresh.path}" in hint_of(result)
    assert submissions(fresh) == []


def test_away_from_a_cluster_submit_says_so(magicseg, fresh, tmp_path):
    magicseg.environment["PATH"] = str(tmp_path)
    result = magicseg("submit", "describe", fresh.path, "--profile", "cpu")
    assert result.code == 2
    assert "not on the PATH" in result.err
    assert "magicseg run" in hint_of(result)
    assert submissions(fresh) == []


def test_away_from_a_cluster_status_and_logs_still_work(magicseg, fresh, tmp_path):
    made = record(fresh, "describe", ["0-5"])
    made.log_path("101").write_text("one\ntwo\n")
    magicseg.environment["PATH"] = str(tmp_path)
    state = magicseg("status", fresh.path)
    assert state.code == 0
    assert "no squeue" in state.out
    log = magicseg("logs", fresh.path, "--task", "101")
    assert (log.code, log.out) == (0, "one\ntwo\n")
    cancelled = magicseg("cancel", fresh.path)
    assert cancelled.code == 2
    assert "hint:" in cancelled.err


def test_a_damaged_record_is_reported_with_a_remedy(here, fresh):
    made = record(fresh, "describe", ["0-5"])
    (made.folder / "submission.json").write_text("{")
    for command in (["status"], ["logs"], ["cancel"], ["efficiency"], ["submit", "describe"]):
        profile = ["--profile", "cpu"] if command[0] == "submit" else []
        result = here(*command, fresh.path, *profile)
        assert result.code == 1, command
        assert f"rm -r {made.folder}" in hint_of(result)


# ------------------------------------------------------------------------------------------ which profile counts


def test_the_profile_option_overrides_the_run_and_the_run_overrides_the_environment(magicseg, fresh, tmp_path):
    for name in ("option", "of-run", "environment"):
        (tmp_path / f"{name}.yaml").write_text(f"partition: {name}\n")
    magicseg.environment["PATH"] = str(tmp_path / "empty")

    def partition(*options):
        result = magicseg("submit", "describe", fresh.path, "--dry-run", *options)
        assert result.code == 0, result.err
        return next(line for line in result.out.splitlines() if "--partition" in line).partition("=")[2]

    magicseg.environment["MAGICSEG_PROFILE"] = "environment.yaml"  # relative to the current folder
    assert partition() == "environment"
    change(fresh, "slurm.profile", str(tmp_path / "of-run.yaml"))
    assert partition() == "of-run"
    assert partition("--profile", "option.yaml") == "option"
    assert partition("--profile", "option.yaml", "--set", "slurm.partition=low") == "low"


def test_the_profile_does_not_change_a_run_s_data(finished, on_cluster, expected_digest):
    change(finished, "slurm.profile", "gpu")
    assert on_cluster("digest", finished.path).out.strip() == expected_digest
    result = on_cluster("submit", "mask", finished.path)
    assert result.code == 0
    assert "nothing to submit: mask is done" in result.err


def test_options_for_nodes_and_resubmission_override_the_profile(magicseg, finished, tmp_path):
    magicseg.environment["PATH"] = str(tmp_path / "empty")
    shown = magicseg(
        *("submit", "train", finished.path, "--profile", "gpu", "--nodes", "3", "--resubmit", "1", "--dry-run")
    )
    assert "#SBATCH --nodes=3\n" in shown.out
    assert "follow-up" in shown.out
    without = magicseg(
        "submit", "train", finished.path, "--profile", "preempt-cancel", "--resubmit", "0", "--dry-run"
    )
    assert "follow-up" not in without.out


def test_a_profile_is_recorded_by_its_absolute_path(on_cluster, slurm, fresh, tmp_path):
    (tmp_path / "site.yaml").write_text("resubmit: 1\n")
    assert on_cluster("submit", "describe", fresh.path, "--profile", "site.yaml").code == 0
    assert {one.profile for one in submissions(fresh)} == {str(tmp_path / "site.yaml")}


# ----------------------------------------------------------------------------------------------- what is printed


def test_submit_prints_the_queued_jobs_and_the_next_command(on_cluster, slurm, fresh):
    do(fresh, "describe", shards=[0])
    result = on_cluster(*("submit", "describe", fresh.path, "--profile", "cpu", "--shards-per-task", "2"))
    assert result.code == 0
    assert "describe: not submitted: 1 committed (of 6 shards)" in result.err
    assert "describe: 5 shards in 3 tasks, 2 each, job 101; logs in " in result.err
    assert f"next: magicseg status {fresh.path} --watch" in result.err
    assert result.out == ""


def test_cancel_ends_follow_up_jobs_first_and_only_jobs_of_the_given_stage(on_cluster, slurm, fresh):
    arrays = [
        record(fresh, stage, tasks, jobs=(job,)).arrays[0]
        for stage, tasks, job in (("describe", ["0", "1"], "101"), ("mask", ["0"], "102"), ("follow-up", [""], "103"))
    ]
    slurm.says(
        "squeue",
        queued(arrays[0], "0-1", "PENDING")
        + queued(arrays[1], "N/A", "PENDING", job="102")
        + queued(arrays[2], "N/A", "PENDING", job="103"),
    )
    result = on_cluster("cancel", fresh.path)
    assert result.code == 0
    assert slurm.calls("scancel") == ["--quiet 103 101 102"]
    assert "(4 tasks)" in result.err
    assert on_cluster("cancel", fresh.path, "mask").code == 0
    assert slurm.calls("scancel")[1] == "--quiet 102"
    slurm.says("squeue", "")
    result = on_cluster("cancel", fresh.path)
    assert result.code == 0
    assert "no jobs of this run are in the queue" in result.err
    assert len(slurm.calls("scancel")) == 2


def test_cancel_also_ends_jobs_whose_work_is_already_done(here, slurm, fresh):
    (array,) = record(fresh, "describe", ["0-5"]).arrays
    do(fresh, "describe")
    slurm.says("squeue", queued(array, "N/A", "PENDING"))
    assert here("cancel", fresh.path).code == 0
    assert slurm.calls("scancel") == ["--quiet 101"]


def test_logs_show_last_lines_one_whole_log_or_failed_tasks(on_cluster, slurm, fresh):
    made = record(fresh, "describe", ["0-2", "3-5"])
    (array,) = made.arrays
    slurm.says("sacct", accounted(array, "101_0", "COMPLETED") + accounted(array, "101_1", "OUT_OF_MEMORY"))
    for label in ("101_0", "101_1"):
        made.log_path(label).write_text(f"start\nlast of {label}\n")
    short = on_cluster("logs", fresh.path).out.splitlines()
    assert [line.split(maxsplit=3)[1:] for line in short] == [
        ["101_0", "completed", "last of 101_0"],
        ["101_1", "out_of_memory", "last of 101_1"],
    ]
    assert on_cluster("logs", fresh.path, "--shard", "4").out == "start\nlast of 101_1\n"
    failed = on_cluster("logs", fresh.path, "--failed").out
    assert failed == f"== describe 101_1 out_of_memory  {made.log_path('101_1')}\nstart\nlast of 101_1\n"
    followed = on_cluster("logs", fresh.path, "--task", "101_0", "--follow")
    assert (followed.code, followed.out) == (0, "start\nlast of 101_0\n")


def test_status_shows_jobs_tasks_and_why_they_wait(on_cluster, slurm, fresh):
    made = record(fresh, "describe", ["0-2", "3", "4"])
    claim(fresh, "describe", 1, "101_0")
    fresh.ledger("describe").fail(3, "Boom", "it broke")
    (array,) = made.arrays
    slurm.says("squeue", queued(array, "0", "RUNNING") + queued(array, "1-2", "PENDING", reason="Resources"))
    text = on_cluster("status", fresh.path).out
    for words in ("1 running, 2 pending", "101_0", "n1", "58:55", "Resources 2", "Boom 1", "shard 3: Boom: it broke"):
        assert words in text
    state = json.loads(on_cluster("status", fresh.path, "--json").out)
    assert set(state["jobs"][0]) == {"id", "stage", "state", "tasks", "endings"}


def test_efficiency_prints_text_or_json(on_cluster, slurm, fresh, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "101")
    do(fresh, "describe")
    record(fresh, "describe", ["0-5"])
    assert "next time: magicseg submit describe" in on_cluster("efficiency", fresh.path).out
    (entry,) = json.loads(on_cluster("efficiency", fresh.path, "--json").out)
    assert entry["shards"] == 6


def test_the_commands_of_a_login_node_load_no_torch(on_cluster, slurm, described):
    code = (
        "import sys\n"
        "from magicseg.cli import main\n"
        "run = sys.argv[1]\n"
        "for words in ('submit generate RUN --profile cpu', 'submit all RUN --profile gpu --dry-run --force',\n"
        "              'status RUN', 'status RUN --json', 'logs RUN', 'cancel RUN', 'efficiency RUN',\n"
        "              'estimate RUN --pilot 1', 'estimate RUN --profile gpu'):\n"
        "    sys.argv = ['magicseg', *words.replace('RUN', run).split()]\n"
        "    try: main()\n"
        "    except SystemExit as end: print(words, end.code, file=sys.stderr)\n"
        "    heavy = {'torch', 'torchvision', 'torchmetrics', 'matplotlib', 'scipy'} & set(sys.modules)\n"
        "    assert not heavy, (words, heavy)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(described.path)],
        env=on_cluster.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert len(slurm.calls("sbatch")) == 1


def test_cancelling_a_stage_cancels_the_follow_up_job_that_would_submit_it_again(on_cluster, slurm, fresh):
    describe = record(fresh, "describe", ["0", "1"], jobs=("101",))
    other = record(fresh, "mask", ["0"], jobs=("102",))
    follow_up = record(fresh, "follow-up", [""], jobs=("103",), asked={"submissions": [1]})
    slurm.says(
        "squeue",
        queued(describe.arrays[0], "0-1", "PENDING")
        + queued(other.arrays[0], "N/A", "PENDING", job="102")
        + queued(follow_up.arrays[0], "N/A", "PENDING", job="103"),
    )
    assert on_cluster("cancel", fresh.path, "mask").code == 0
    assert on_cluster("cancel", fresh.path, "describe").code == 0
    assert slurm.calls("scancel") == ["--quiet 102", "--quiet 103 101"]
