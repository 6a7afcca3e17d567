"""Hostile site output, profiles and submission records: banners, GPU syntax, YAML, JSON, secrets. No traceback."""

import hashlib
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.tiny_runs import do, make_run
from magicseg.container.image import identify, labels
from magicseg.container.runtime import Runtime
from magicseg.core.errors import ConfigError, ContainerError, DamageError, MagicsegError, RunError, StoreError
from magicseg.core.files import to_json
from magicseg.core.secrets import assigned_secret, secret_name, secret_value
from magicseg.estimate.run_estimate import estimate
from magicseg.launch.efficiency import efficiency
from magicseg.launch.environment import refuse_named_secrets, site_overrides
from magicseg.launch.follow_up import follow_up
from magicseg.launch.gpus import gpus_in_count, gpus_in_list
from magicseg.launch.job_script import interpreter, sbatch_options
from magicseg.launch.jobs import next_number, submissions
from magicseg.launch.logs import find_tasks, follow, last_lines
from magicseg.launch.overview import cluster_status
from magicseg.launch.profile_files import load_profile
from magicseg.launch.queue_state import read_queue_state
from magicseg.launch.slurm import SlurmError, job_numbers_in, queue
from magicseg.run import Run

# -------------------------------------------------------------------------------------------------- Slurm's answers

BANNER = "--------\n  Welcome to cluster 7, since 2019\n--------\n--> host (login4)...OK\n"


@pytest.mark.parametrize(
    ("printed", "numbers"),
    [
        ("12345\n", {"12345"}),
        ("12345;cluster\n", {"12345"}),
        ("12345;my-cluster.example\n", {"12345"}),
        (f"{BANNER}12345\n", {"12345"}),
        (f"{BANNER}12345;c1\nGoodbye\n", {"12345"}),
        ("  12345  \r\n", {"12345"}),
        ("Submitted batch job 12345\n", {"12345"}),
        (f"{BANNER}Submitted batch job 12345 on cluster c1\n", {"12345"}),
        ("your last job 999 ended\n12345\n", {"12345"}),
        ("12345\n12345\n", {"12345"}),
        ("2019\n12345\n", {"2019", "12345"}),
        (BANNER, set()),
        ("", set()),
        ("12345 67890\n", set()),
        ("job 12345\n", set()),
        ("0\n", set()),
        ("-5\n", set()),
        ("12345;\n", set()),
        ("12345;rm -rf x\n", set()),
        ("\x1b[31m12345\x1b[0m\n", set()),
        ("１２３\n", set()),
    ],
)
def test_the_job_number_is_found_in_its_own_line(printed, numbers):
    assert job_numbers_in(printed) == numbers


@given(
    st.lists(st.text(st.characters(exclude_categories=["Nd", "Cs"]), max_size=30)),
    st.integers(1, 10**9),
    st.lists(st.text(st.characters(exclude_categories=["Nd", "Cs"]), max_size=30)),
)
def test_no_text_around_a_job_number_changes_it(before, number, after):
    assert job_numbers_in("\n".join([*before, str(number), *after])) == {str(number)}


@pytest.fixture
def squeue(tmp_path, monkeypatch):
    """Return a function that sets the output of ``squeue``."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def says(text):
        (folder / "said").write_text(text)
        (folder / "squeue").write_text(f"#!/bin/sh\ncat {folder}/said\n")
        (folder / "squeue").chmod(0o755)

    return says


ROW = "magicseg|7|N/A|RUNNING|n1|0:01|1:00|x-1|None\n"


def test_a_banner_around_squeues_table_is_not_parsed_as_a_row(squeue):
    squeue(f"{BANNER}magicseg|HEADER\n{ROW}| a | table | of | the | site | with | more | columns | x-1 |\n")
    assert [(state.job, state.state) for state in queue(["x-1"])] == [("7", "RUNNING")]


@pytest.mark.parametrize(
    "text",
    [
        "",
        BANNER,
        "magicseg|HEADER\nmagicseg|7|N/A|RUNNING\n",
        "magicseg|HEADER\nmagicseg|seven|N/A|RUNNING|n1|0:01|1:00|x-1|None\n",
        "magicseg|HEADER\nmagicseg|7|0-x|RUNNING|n1|0:01|1:00|x-1|None\n",
    ],
)
def test_output_without_a_table_is_not_treated_as_an_empty_queue(squeue, text):
    squeue(text)
    with pytest.raises(SlurmError, match="not understood"):
        queue(["x-1"])


# ----------------------------------------------------------------------------------------------------------- GPUs


def profile_of(folder, text, *overrides):
    file = folder / "site.yaml"
    file.write_text(text)
    return load_profile(str(file), overrides)


GPUS = {
    "gpus: 4": 4,
    "gpus: a100:4": 4,
    "gpus: 'a100:2,v100:1'": 3,
    "gres: gpu": 1,
    "gres: gpu:4": 4,
    "gres: gpu:a100": 1,
    "gres: gpu:a100:4": 4,
    "gres: gpu:a100:4(S:0-1)": 4,
    "gres: gpu:a100=4": 4,
    "gres: gres/gpu:2": 2,
    "gres: gres/gpu:a100=2": 2,
    "gres: gres:gpu:2": 2,
    "gres: 'gpu:a100:2,gpu:v100:1'": 3,
    "gres: 'tmp:100,gpu:2,craynetwork:1'": 2,
    "gres: shard:8": 1,
    "gres: mps:50": 1,
    "gres: gpu:0": 0,
    "gres: gpumem:80": 0,
    "gres: tmp:100": 0,
    "gpus_per_node: a100:4": 4,
    "gpus-per-node: 4": 4,
    "gpus_per_task: 2": 2,
    "gpus-per-task: a100:2": 2,
    "extra: {gpus: 'a100:4'}": 4,
    "extra: {gpus: 4}\nnodes: 2": 2,
    "extra: {gpus-per-node: 'a100:4'}": 4,
    "extra: {gpus-per-task: 3}": 3,
    "extra: {gpus-per-socket: 2, sockets-per-node: 2}": 4,
    "extra: {tres-per-node: 'gres/gpu:2'}": 2,
    "extra: {tres-per-task: 'cpu:4,gres/gpu:a100:2'}": 2,
    "stages: {train: {gres: 'gpu:a100:4'}}": 4,
    "stages: {train: {gpus_per_task: 4}}": 4,
    "gpus: 1\nstages: {train: {gpus-per-node: 4}}": 4,
}


@pytest.mark.parametrize(("text", "count"), GPUS.items())
def test_gpus_are_counted_in_every_syntax_of_slurm(tmp_path, text, count):
    profile = profile_of(tmp_path, f"{text}\ncontainer: {{image: /image.sif}}\n")
    train = profile.resources("train")
    assert (train.gpus_per_node, train.asks_gpu) == (count, count > 0)
    assert train.processes_per_node == max(count, 1)
    assert ("--nv" in interpreter(profile, "train", tmp_path)) == (count > 0)
    assert not profile.resources("follow-up").asks_gpu


types = st.from_regex("[a-z][a-z0-9_]{0,8}", fullmatch=True)


@given(st.lists(st.tuples(st.none() | types, st.integers(0, 64)), min_size=1, max_size=6), st.lists(types))
def test_gpus_of_several_types_are_added_up(asked, others):
    counts = [f"{kind}:{count}" if kind else str(count) for kind, count in asked]
    other = [f"{name}:7" for name in others if name not in {"gpu", "shard", "mps", "gres"}]
    total = sum(count for _, count in asked)
    assert gpus_in_count(",".join(counts)) == total
    assert gpus_in_list(",".join([*other, *(f"gpu:{text}" for text in counts)])) == total
    assert gpus_in_list(",".join([*(f"gres/gpu:{text}" for text in counts), *other])) == total


@pytest.mark.parametrize(
    "text",
    ["gpus: many", "gpus: a100", "gpus: -1", "gpus: 1.5", "gpus: 9999999", "gres: gpu:99999999999999999999",
     "extra: {gpus: yes}", "extra: {gpus-per-task: a b}", "gpus: [4]", "gpus: true", "extra: {gpus: true}"],
)  # fmt: skip
def test_gpu_requests_without_a_number_are_refused(tmp_path, text):
    with pytest.raises(ConfigError, match=r"site\.yaml"):
        profile_of(tmp_path, text)


# --------------------------------------------------------------------------------------------------------- memory


def memory_options(profile, stage="generate"):
    options = sbatch_options(profile, stage, job_name="x", dependency=None, output="/%j_0_log.out")
    return {name: value for name, value in options.items() if name.startswith("mem")}


@pytest.mark.parametrize(
    ("text", "options", "asked"),
    [
        ("cpus: 1", {"mem": "4G"}, 4 << 30),
        ("memory: null", {}, None),
        ("memory_per_cpu: 2G\ncpus: 4", {"mem-per-cpu": "2G"}, 8 << 30),
        ("memory_per_gpu: 40G\ngpus: a100:2", {"mem-per-gpu": "40G"}, 80 << 30),
        ("memory: 8G\nstages: {generate: {memory_per_cpu: 1G}}", {"mem-per-cpu": "1G"}, 1 << 30),
        ("memory_per_cpu: 2G\nstages: {generate: {memory: 8G}}", {"mem": "8G"}, 8 << 30),
        ("memory: 8G\nstages: {generate: {memory: null}}", {}, None),
    ],
)
def test_memory_is_requested_by_at_most_one_option(tmp_path, text, options, asked):
    profile = profile_of(tmp_path, text)
    assert memory_options(profile) == options
    assert profile.resources("generate").memory_bytes == asked
    assert memory_options(profile, "follow-up") == {"mem": "1G"}


def test_memory_requested_by_two_options_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="only one of"):
        profile_of(tmp_path, "memory: 4G\nmemory_per_cpu: 1G")


# ------------------------------------------------------------------------------------------------ profiles as files

PROFILES = {
    "a key twice": "cpus: 1\ncpus: 2\n",
    "a key twice in a group": "stages: {train: {cpus: 1, cpus: 2}}",
    "a tag": "cpus: !!int abc",
    "a number with a separator": "cpus: 1_000",
    "a fraction where a count is wanted": "nodes: 2.0",
    "a time limit of centuries": "time: 9999999999:00:00",
    "a python tag": "cpus: !!python/object/apply:os.system [true]",
    "a merge key": "a: &a {cpus: 1}\n<<: *a\n",
    "an integer of 5,000 digits": f"cpus: {'9' * 5000}",
    "a negative number": "cpus: -1",
    "an infinite time": "task_minutes: .inf",
    "no number": "task_minutes: .nan",
    "deep brackets": "modules: " + "[" * 100_000,
    "cyclic aliases": "modules: &a [*a]",
    "aliases that multiply": "a: &a [x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\n"
    "c: &c [*b,*b,*b,*b,*b,*b,*b,*b]\nd: [*c,*c,*c,*c,*c,*c,*c,*c]\n",
    "a list": "[1, 2]",
    "a word": "gpu",
    "a list for a word": "partition: [a]",
    "a mapping for a word": "partition: {a: b}",
    "a list for a stage": "stages: {train: [1]}",
    "a word for stages": "stages: train",
    "a number for extra": "extra: 3",
    "a list for memory": "memory: [1]",
    "a list for the container": "container: [image.sif]",
    "a key that is null": "~: 3",
    "a key that is a list": "[a]: 3",
    "a stage's key that is null": "stages: {train: {~: 3}}",
    "NUL": "partition: a\0b",
    "an escape": 'partition: "a\\e[31m"',
    "a newline": 'setup: ["a\\nb"]',
    "a long word": f"partition: {'a b' * 100_000}",
}


@pytest.mark.parametrize("kind", PROFILES)
def test_a_profile_that_cannot_be_used_is_an_error_that_names_the_file(tmp_path, kind):
    with pytest.raises(ConfigError) as caught:
        profile_of(tmp_path, PROFILES[kind])
    assert "site.yaml" in caught.value.message
    assert len(caught.value.message) < 1500
    assert "\x1b" not in caught.value.message


SINGLE = {kind: text for kind, text in PROFILES.items() if ": " in text and "\n" not in text and "{" not in text}


@pytest.mark.parametrize("text", SINGLE.values(), ids=SINGLE.keys())
def test_an_invalid_profile_override_on_the_command_line_is_an_error(text):
    key, value = text.split(": ", 1)
    with pytest.raises(ConfigError):
        load_profile("cpu", [f"slurm.{key}={value}"])


def test_a_profile_that_is_not_a_regular_text_file_is_an_error(tmp_path):
    pipe, folder, large, binary = (tmp_path / f"{name}.yaml" for name in ("pipe", "folder", "large", "binary"))
    os.mkfifo(pipe)
    folder.mkdir()
    large.write_bytes(b"#" * (2 << 20))
    binary.write_bytes(b"partition: \xff\xfe")
    for path in (pipe, folder, large, binary, Path("/dev/zero"), tmp_path / "missing.yaml", tmp_path / ("x" * 300)):
        with pytest.raises(ConfigError):
            load_profile(str(path))


# ---------------------------------------------------------------------------------------------------------- secrets


@pytest.mark.parametrize(
    "name",
    ["HF_TOKEN", "OPENAI_API_KEY", "OPENAI_KEY", "MY_KEY_2", "wandb_apikey", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD",
     "GITHUB_PAT", "PAT", "KEY", "SSH_PASSPHRASE", "APPTAINERENV_HF_TOKEN", "GOOGLE_CREDENTIALS"],
)  # fmt: skip
def test_a_variable_that_looks_secret_is_refused_with_the_way_to_pass_it(tmp_path, name):
    assert secret_name(name)
    for text in (f"environment: {{{name}: geheim-123}}", f"setup: [export {name}=geheim-123]"):
        with pytest.raises(ConfigError) as caught:
            profile_of(tmp_path, text)
        assert name in caught.value.message
        assert "pass_environment" in caught.value.hint
        assert "geheim" not in caught.value.message + caught.value.hint
    assert profile_of(tmp_path, f"pass_environment: [{name}]").pass_environment == (name,)


@pytest.mark.parametrize(
    "name", ["PATH", "TOKENIZERS_PARALLELISM", "NCCL_IB_PKEY", "PYTHONPATH", "MY_PATH", "KEYBOARD", "MONKEYS"]
)
def test_a_variable_with_a_harmless_name_is_accepted(tmp_path, name):
    assert profile_of(tmp_path, f"environment: {{{name}: x}}").environment == {name: "x"}


@pytest.mark.parametrize(
    "text",
    [
        "environment: {HTTPS_PROXY: 'http://me:geheim@proxy:3128'}",
        "environment: {A: hf_abcdefghijklmnopqrstuvwxyz}",
        "setup: [\"curl -H 'Authorization: Bearer abcdef0123456789' https://host\"]",
        "environment: {A: sk-proj-abcdefghijklmnopqrst}",
        "environment: {A: ghp_abcdefghijklmnopqrstuvwxyz}",
        "setup: ['git clone https://me:geheim@host/x']",
        "setup: ['curl --token=geheim-123 x']",
        "extra: {admin-comment: 'postgres://me:geheim@db/x'}",
        "extra: {admin-comment: 'API_KEY=geheim-123'}",
        "stages: {train: {extra: {admin-comment: 'API_KEY=geheim-123'}}}",
        "container: {image: 'docker://me:geheim@host/image'}",
        "container: {image: /i.sif, binds: ['/x_TOKEN=geheim-123']}",
    ],
)
def test_a_secret_in_a_value_is_refused_and_not_repeated(tmp_path, text):
    with pytest.raises(ConfigError) as caught:
        profile_of(tmp_path, text)
    message = caught.value.message + str(caught.value.hint)
    assert not any(word in message for word in ("geheim", "abcdefgh"))
    with pytest.raises(ConfigError):
        load_profile("cpu", [f"slurm.{text.replace(': ', '=', 1)}"])


@pytest.mark.parametrize(
    "line", ["export HF_TOKEN=$(cat ~/.token)", 'export HF_TOKEN="$MINE"', "HF_TOKEN= ./run", "unset HF_TOKEN", "a=b"]
)
def test_a_line_that_reads_a_secret_at_run_time_is_accepted(tmp_path, line):
    assert assigned_secret(line) is None
    assert not secret_value(line)
    assert profile_of(tmp_path, f"setup: ['{line}']").setup == (line,)


@pytest.mark.parametrize("text", ["environment: {LAB: geheim}", "setup: [export LAB=geheim]"])
def test_the_variable_named_by_a_setting_is_always_treated_as_secret(tmp_path, text):
    options = 'describe.options={base_url: "http://x/v1", model: m, api_key_env: LAB}'
    run = make_run(tmp_path / "run", "describe.backend=openai", options)
    with pytest.raises(ConfigError, match=r"LAB holds the key that describe\.options\.api_key_env names") as caught:
        refuse_named_secrets(run.config, profile_of(tmp_path, text))
    assert "pass_environment: [LAB]" in caught.value.hint
    refuse_named_secrets(run.config, profile_of(tmp_path, "pass_environment: [LAB]"))


# ----------------------------------------------------------------------------------------- the submitter's variables


def test_sbatch_variables_apply_where_the_profile_has_no_value_and_others_are_reported(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith(("SBATCH_", "SLURM_"))]:
        monkeypatch.delenv(name)
    for name, value in {"ACCOUNT": "lab", "PARTITION": "low", "RESERVATION": "spring", "TIMELIMIT": "5"}.items():
        monkeypatch.setenv(f"SBATCH_{name}", value)
    text = "partition: gpu\n"
    overrides, told = site_overrides(profile_of(tmp_path, text))
    profile = profile_of(tmp_path, text, *overrides)
    assert (profile.account, profile.partition, profile.extra) == ("lab", "gpu", {"reservation": "spring"})
    assert told == [
        "used from your environment, since the profile leaves them unset: SBATCH_ACCOUNT (account), "
        "SBATCH_RESERVATION (reservation)",
        "ignored from your environment: SBATCH_PARTITION, SBATCH_TIMELIMIT; the profile defines what jobs request",
    ]
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    overrides, told = site_overrides(profile)
    assert overrides == []
    assert "ignored from your environment: SBATCH_ACCOUNT, SBATCH_PARTITION" in told[0]


@pytest.mark.parametrize("value", ["a b", "x\n#SBATCH --uid=0", "-x", "$(id)", "{a: b}", "&a", "!!int x"])
def test_an_sbatch_variable_adds_no_option_and_no_line(tmp_path, monkeypatch, value):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setenv("SBATCH_ACCOUNT", value)
    overrides, _ = site_overrides(profile_of(tmp_path, "cpus: 1"))
    with pytest.raises(ConfigError, match="account"):
        profile_of(tmp_path, "cpus: 1", *overrides)


# ------------------------------------------------------------------------------------------ records of submissions

GOOD = {
    "run": "/x", "number": 1, "stage": "describe", "created": "2026-01-01T00:00:00", "version": "0", "tasks": ["0-2"],
    "arrays": [{"name": "describe-0-1-0", "first": 0, "count": 1, "job": "7"}], "profile": "cpu",
    "resources": {"cpus": 1, "memory": "1G", "time": "10"}, "parent": None, "asked": {}, "ended": {},
}  # fmt: skip


def damaged(**changes):
    return to_json(GOOD | changes)


RECORDS = {
    "nothing": b"",
    "no JSON": b"{",
    "a list": b"[]",
    "a number": b"3",
    "null": b"null",
    "200,000 brackets": b"[" * 200_000,
    "200,000 brackets inside": damaged(resources={})[:-1] + b',"x":' + b"[" * 200_000,
    "not a number": to_json(GOOD)[:-1] + b',"number":NaN}',
    "not UTF-8": b"\xff\xfe",
    "number as text": damaged(number="1"),
    "number below": damaged(number=-1),
    "unknown stage": damaged(stage="paint"),
    "created yesterday": damaged(created="yesterday"),
    "created with an option": damaged(created="2026-01-01T00:00:00 --name=x"),
    "tasks as text": damaged(tasks="0-2"),
    "tasks as numbers": damaged(tasks=[1]),
    "tasks without end": damaged(tasks=["0-999999999"]),
    "tasks beyond a machine": damaged(tasks=["0-99999999999999"]),
    "tasks that cancel out": damaged(tasks=["0-999999999", "999999999-0"]),
    "tasks backwards": damaged(tasks=["5-3"]),
    "tasks of words": damaged(tasks=["all"]),
    "arrays as mapping": damaged(arrays={"a": 1}),
    "arrays of nothing": damaged(arrays=[{}]),
    "array beyond the tasks": damaged(arrays=[{"name": "a", "first": 0, "count": 9, "job": "7"}]),
    "array below": damaged(arrays=[{"name": "a", "first": -1, "count": 1, "job": "7"}]),
    "a name with a comma": damaged(arrays=[{"name": "a,b", "first": 0, "count": 1, "job": "7"}]),
    "a name with a path": damaged(arrays=[{"name": "../a", "first": 0, "count": 1, "job": "7"}]),
    "resources as list": damaged(resources=[1]),
    "ended as list": damaged(ended=["FAILED"]),
    "ended beyond the tasks": damaged(ended={"FAILED": "0-999999999"}),
    "parent as text": damaged(parent="1"),
    "asked as list": damaged(asked=[1]),
    "asked for another stage": damaged(asked={"stage": "paint"}),
    "asked for odd submissions": damaged(asked={"submissions": "all"}),
    "a new key": damaged(new=1),
}


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("hostile") / "run")


@pytest.fixture
def folder(empty):
    """Return the folder of the run's only submission."""
    path = empty.path / "jobs/0001-describe"
    path.mkdir(parents=True, exist_ok=True)
    yield path
    file = path / "submission.json"
    file.rmdir() if file.is_dir() else file.unlink(missing_ok=True)


@pytest.mark.parametrize("kind", RECORDS)
def test_a_record_that_cannot_be_used_is_damage_that_names_the_file(empty, folder, kind):
    (folder / "submission.json").write_bytes(RECORDS[kind])
    with pytest.raises(DamageError) as caught:
        submissions(empty)
    assert str(folder / "submission.json") in caught.value.message
    assert f"rm -r {folder}" in caught.value.hint


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_a_folder_or_pipe_in_place_of_a_record_is_damage(empty, folder, make):
    make(folder / "submission.json")
    with pytest.raises(DamageError, match=r"submission\.json"):
        submissions(empty)


@pytest.mark.parametrize("resources", [{"memory": "lots"}, {"cpus": -1}, {"time": "never"}, {"x": 1}, {"gpus": [1]}])
def test_impossible_resources_in_a_record_are_damage_when_they_are_used(empty, folder, resources, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    stage = {"stage": "train", "tasks": [""], "resources": resources}
    (folder / "submission.json").write_bytes(damaged(**stage))
    (empty.path / "model").mkdir(exist_ok=True)
    (empty.path / "model/model.json").write_text("{}")
    assert cluster_status(empty)["jobs"]
    with pytest.raises(DamageError, match=r"submission\.json.*resources"):
        efficiency(empty)


def test_a_follow_up_job_with_an_incomplete_record_is_damage(empty, folder):
    (folder / "submission.json").write_bytes(damaged(stage="follow-up", asked={"submissions": [1]}))
    with pytest.raises(DamageError, match=r"submission\.json.*`asked` lacks overrides, profile"):
        follow_up(empty, 1)


@pytest.mark.parametrize("job", ["-----\n  Welcome\n4", "", "7; rm -rf x", "../../x", "-9", "1" * 40])
def test_an_invalid_job_number_is_treated_as_unknown(empty, folder, squeue, job):
    arrays = [{"name": "describe-0-1-0", "first": 0, "count": 1, "job": job}]
    (folder / "submission.json").write_bytes(damaged(run=str(empty.path), arrays=arrays))
    squeue("magicseg|HEADER\nmagicseg|4|N/A|PENDING||0:00|1:00|describe-0-1-0|None\n")
    (task,) = read_queue_state(empty).active()
    assert task.label == "4"


def test_unreadable_records_are_named_in_the_error(empty, folder, monkeypatch):
    (folder / "submission.json").write_bytes(to_json(GOOD))
    opened = os.open

    def refused(path, *arguments, **more):
        if str(path).endswith("submission.json"):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **more)

    monkeypatch.setattr("os.open", refused)
    with pytest.raises(MagicsegError, match=r"submission\.json: cannot be read: Permission denied"):
        submissions(empty)


def test_a_folder_of_jobs_that_cannot_be_listed_is_not_an_empty_one(empty, folder, monkeypatch):
    def refused(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.iterdir", refused)
    for ask in (submissions, next_number):
        with pytest.raises(StoreError, match="cannot be listed"):
            ask(empty)


def test_a_folder_with_an_invalid_number_is_not_a_submission(empty, folder):
    for name in ("²-describe", "٣-describe", f"{'9' * 5000}"[:200] + "-describe", "0-describe"):
        (empty.path / "jobs" / name).mkdir(exist_ok=True)
    assert submissions(Run.open(empty.path)) == []
    assert next_number(empty) == 2


@pytest.mark.parametrize(
    "text", ["[" * 200_000, "{}", '{"starts": []}', '{"starts": {"describe": {"seconds": "long"}}}', "\0"]
)
def test_an_unusable_pilot_file_is_named_in_the_error(tmp_path, text):
    run = make_run(tmp_path / "run", "plan.samples=16")
    do(run, "describe")
    (run.path / "estimate.json").write_text(text)
    with pytest.raises(StoreError, match=r"estimate\.json"):
        estimate(run, None)
    (run.path / "estimate.json").write_text(json.dumps({"starts": {}}))
    assert estimate(run, None)["stages"]


LOG_ROWS = ["[" * 200_000, "{}", "3", '{"step": "1"}', '{"step": 1, "samples_per_second": NaN}', "\0",
            '{"step": 1e999, "samples_per_second": 1}', '{"step": 1, "samples_per_second": -1}',
            f'{{"step": {"9" * 5000}, "samples_per_second": 1}}']  # fmt: skip


@pytest.mark.parametrize("row", LOG_ROWS, ids=lambda row: row[:30])
def test_an_unusable_row_of_a_training_log_is_ignored_by_the_estimate(empty, row):
    log = empty.path / "train.jsonl"
    log.write_text(f'{row}\n{{"step": 2, "samples_per_second": 4.0}}\n')
    assert estimate(empty, None)["train"]["step"] == 2
    log.unlink()


def test_a_training_log_that_is_not_a_file_is_named_in_the_error(empty):
    log = empty.path / "train.jsonl"
    os.mkfifo(log)
    with pytest.raises(MagicsegError, match=r"train\.jsonl: is not a regular file"):
        estimate(empty, None)
    log.unlink()


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_a_folder_or_pipe_in_place_of_a_job_log_is_ignored(empty, folder, make, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    (folder / "submission.json").write_bytes(damaged(run=str(empty.path)))
    log = folder / "7_0_log.out"
    make(log)
    with pytest.raises(RunError, match="no log yet"):
        find_tasks(read_queue_state(empty), stage=None, shard=None, label=None, failed=False)
    log.rmdir() if log.is_dir() else log.unlink()


def test_an_unreadable_job_log_is_reported(folder, monkeypatch):
    log = folder / "7_0_log.out"
    log.write_bytes(b"one\ntwo \xff\n")
    assert last_lines(log, 1) == ["two \ufffd"]

    def refused(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.open", refused)
    for read in (lambda: last_lines(log, 1), lambda: next(follow(log, lambda: False))):
        with pytest.raises(RunError, match=r"7_0_log\.out: cannot be read: Permission denied"):
            read()


@pytest.mark.parametrize("said", ["", "[]", "[" * 200_000, "{}", '{"data": {"attributes": {"labels": [1]}}}', "\0"])
def test_a_container_images_metadata_is_validated(tmp_path, said):
    program = tmp_path / "apptainer"
    (tmp_path / "said").write_text(said)
    program.write_text(f"#!/bin/sh\ncat {tmp_path}/said\n")
    program.chmod(0o755)
    with pytest.raises(ContainerError, match="is not an image"):
        labels(Runtime(str(program), "apptainer", (1, 4), ""), tmp_path / "image.sif")


@pytest.mark.parametrize("said", ["", "[]", "[" * 200_000, '{"a": 1}', "\xff"])
def test_unusable_cached_digests_of_images_are_recomputed(tmp_path, monkeypatch, said):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "magicseg").mkdir()
    (tmp_path / "magicseg/images.json").write_bytes(said.encode("latin-1"))
    (tmp_path / "image.sif").write_bytes(b"image")
    assert identify(tmp_path / "image.sif").digest == f"sha256:{hashlib.sha256(b'image').hexdigest()}"
