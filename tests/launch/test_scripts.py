"""Golden files of the job scripts, as --dry-run prints them and sbatch gets them, and of the help texts.

To rewrite the golden files: ``MAGICSEG_REWRITE_GOLDEN=1 pytest tests/launch``, then review the difference.
"""

import re
import subprocess
import sys
from importlib.resources import files

import pytest

from helpers.stand_ins import listing
from magicseg.launch.jobs import job_name, submissions
from magicseg.launch.planning import Request
from magicseg.launch.submit import dry_run, submit

CUSTOM = """
partition: short
account: lab
qos: low
constraint: "[rack1|rack2]"
exclude: node[01-02]
gres: gpu:a100:1
cpus: 4
memory: 16G
time: 1-0
mail_user: me@uni.example
mail_type: END,FAIL
modules: [cuda/12.8, gcc]
setup:
  - source /opt/site/setup.sh
  - ulimit -n 4096
environment:
  OMP_NUM_THREADS: 4
  GREETING: it's "here" & $HOME; `id`
pass_environment: [HF_HOME, HF_TOKEN]
extra: {reservation: spring, contiguous: true}
container:
  image: /images/magicseg 1.sif
  binds: [/data, /scratch:/scratch:ro]
  cache: /big/caches
  verify: /keys/lab.pem
stages:
  mask: {cpus: 1}
"""
TASKS_OF_TWO = 2


@pytest.fixture
def custom(tmp_path):
    """A profile with all settings."""
    file = tmp_path / "custom.yaml"
    file.write_text(CUSTOM)
    return str(file)


def neutral(text, run):
    """Replace the parts that differ between machines."""
    token = job_name(run, "x", 0, 0).split("-")[1]
    for found, word in ((str(run.path), "/RUN"), (sys.executable, "/PYTHON"), (token, "TOKEN")):
        text = text.replace(found, word)
    return text


def shown(run, stage, profile, *overrides):
    request = Request(stage=stage, profile=profile, overrides=overrides, shards_per_task=TASKS_OF_TWO)
    return neutral(dry_run(run, request), run)


def parts(text):
    """Return the scripts of a dry run by their sbatch commands."""
    pieces = re.split(r"^### (.*)\n", text, flags=re.MULTILINE)[1:]
    return list(zip(pieces[::2], pieces[1::2], strict=True))


def refuse_bad_shell(text):
    for command, script in parts(text):
        assert command.startswith("sbatch /RUN/jobs/")
        assert script.startswith("#!/bin/bash\n")
        checked = subprocess.run(["/bin/bash", "-n"], input=script, text=True, capture_output=True, check=False)
        assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.usefixtures("no_slurm")
def test_script_of_an_array_on_cpus(described_run, golden):
    text = shown(described_run, "generate", "cpu")
    refuse_bad_shell(text)
    golden("cpu-generate.sh", text)


@pytest.mark.usefixtures("no_slurm")
def test_script_of_training_on_two_nodes(finished_run, golden):
    text = shown(finished_run, "train", "gpu")
    refuse_bad_shell(text)
    golden("gpu-train.sh", text)


@pytest.mark.usefixtures("no_slurm")
def test_script_for_a_site_that_cancels_preempted_jobs(described_run, golden):
    text = shown(described_run, "generate", "preempt-cancel")
    refuse_bad_shell(text)
    golden("preempt-cancel-generate.sh", text)


@pytest.mark.usefixtures("no_slurm")
def test_script_of_a_profile_with_all_settings(described_run, custom, golden):
    text = shown(described_run, "generate", custom)
    refuse_bad_shell(text)
    golden("custom-generate.sh", text)


@pytest.mark.usefixtures("no_slurm")
def test_script_of_training_in_a_container(finished_run, custom, golden):
    text = shown(finished_run, "train", custom)
    refuse_bad_shell(text)
    golden("custom-train.sh", text)


@pytest.mark.usefixtures("no_slurm")
def test_scripts_of_all_stages_in_sequence_and_a_follow_up_job(fresh, golden):
    text = shown(fresh, "all", "gpu", "slurm.resubmit=3")
    refuse_bad_shell(text)
    names = re.findall(r"--job-name=(\S+)", text)
    assert [name.split("-TOKEN")[0] for name in names] == [
        "describe", "generate", "mask", "train", "evaluate", "follow-up",
    ]  # fmt: skip
    dependencies = re.findall(r"--dependency=(\S+)", text)
    assert dependencies == [*(f"afterok:{name}" for name in names[:4]), "afterany:" + ":".join(names[:5])]
    assert text.count("--kill-on-invalid-dep=yes") == len(dependencies)
    golden("all.sh", text)


@pytest.mark.usefixtures("no_slurm")
def test_arrays_too_long_for_the_site_are_split_and_divide_the_parallel_slots(described_run):
    request = Request(
        stage="generate",
        profile="cpu",
        overrides=("slurm.array_size=4", "slurm.parallel=3"),
        shards_per_task=1,
    )
    text = dry_run(described_run, request)
    assert re.findall(r"--array=(\S+)", text) == ["0-2%2", "0-2%1"]


@pytest.mark.usefixtures("no_slurm")
def test_a_stage_of_one_task_is_not_an_array(described_run):
    text = dry_run(described_run, Request(stage="generate", profile="cpu", shards_per_task=6))
    assert "--array" not in text
    assert "%j_0_log.out" in text


@pytest.mark.usefixtures("no_slurm")
def test_a_finished_stage_needs_no_script(finished_run):
    assert dry_run(finished_run, Request(stage="mask", profile="cpu")) == "nothing to submit\n"


@pytest.mark.parametrize("before", [False, True])
def test_a_dry_run_writes_nothing_and_submits_nothing(fresh, slurm, before):
    if before:
        submit(fresh, Request(stage="describe", profile="cpu"))
    calls, files = slurm.calls("sbatch"), listing(fresh.path)
    dry_run(fresh, Request(stage="all", profile="cpu", force=True))
    assert slurm.calls("sbatch") == calls
    assert listing(fresh.path) == files


def test_a_dry_run_shows_the_same_without_slurm_on_the_path(magicseg, described_run, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    expected = dry_run(described_run, Request(stage="generate", profile="cpu", shards_per_task=2))
    magicseg.environment["PATH"] = str(tmp_path)
    result = magicseg(
        *("submit", "generate", described_run.path, "--profile", "cpu", "--shards-per-task", "2", "--dry-run")
    )
    assert (result.code, result.out) == (0, expected)
    assert result.err.startswith("no estimate yet")


def test_the_submitted_script_equals_the_dry_run_s(described, slurm):
    request = Request(stage="generate", profile="gpu", overrides=("slurm.resubmit=1",), shards_per_task=2)
    (_, array), (_, follow_up) = parts(dry_run(described, request))
    submit(described, request)
    first, second = submissions(described)
    assert (first.folder / "101_submission.sh").read_text().rstrip() == array.rstrip()
    sent = (second.folder / "follow-up.sbatch").read_text()
    assert sent.rstrip() == follow_up.replace(first.names[0], "101").rstrip()
    script = slurm.calls("sbatch")[1].split()[-1]
    assert script == str(second.folder / "follow-up.sbatch")


def test_the_training_script_is_valid_shell_code():
    text = (files("magicseg") / "slurm" / "train.sbatch").read_text()
    checked = subprocess.run(["/bin/bash", "-n"], input=text, text=True, capture_output=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.parametrize("command", ["", "submit", "estimate"])
def test_help_stays_as_it_is(magicseg, golden, command):
    code = "import sys; from magicseg.cli import main; sys.argv[0] = 'magicseg'; main()"
    environment = magicseg.environment | {"COLUMNS": "100", "PYTHONUTF8": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, *filter(None, [command]), "--help"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    text = "".join(f"{line.rstrip()}\n" for line in done.stdout.strip().splitlines())
    golden(f"help{'-' if command else ''}{command}.txt", text)
