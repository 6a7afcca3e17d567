"""Profiles: valid and invalid values; no value adds a line or an option to a job script."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from magicseg.config.loading import load_config
from magicseg.config.stage_declarations import JOBS
from magicseg.core.errors import ConfigError
from magicseg.launch.array import ArraySpec, array_script
from magicseg.launch.jobs import ArrayJob, Submission
from magicseg.launch.profile_files import load_profile, profile_names, validate_profile
from magicseg.launch.quoting import bytes_of
from magicseg.launch.training_script import follow_up_script, training_script
from magicseg.run import Run

WORDS = ("partition", "account", "qos", "constraint", "exclude", "gres", "mail_user", "mail_type")
RUN = Run(Path("/data/my run"), load_config(preset="painted"))


def profile_of(**keys):
    return validate_profile(keys, "site.yaml")


def from_yaml(folder, text, *overrides):
    file = folder / "site.yaml"
    file.write_text(text)
    return load_profile(str(file), overrides)


def scripts(profile):
    """Return all kinds of job scripts, written without Slurm."""
    texts = []
    for stage in ("generate", "evaluate"):
        tasks = [[0, 1], [2]] if stage == "generate" else [[]]
        spec = ArraySpec(name=f"{stage}-0", tasks=tasks, parallel=2, dependency="afterok:7")
        texts.append(array_script(RUN, stage, profile, spec, RUN.path / "jobs" / "0001"))
    for stage, render in (("train", training_script), ("follow-up", follow_up_script)):
        submission = Submission(
            folder=RUN.path / "jobs/0002",
            run=str(RUN.path),
            number=2,
            stage=stage,
            created="",
            version="",
            tasks=("",),
            arrays=(ArrayJob(name=f"{stage}-0", first=0, count=1),),
            profile="site.yaml",
            resources={},
        )
        texts.append(render(RUN, profile, submission, "afterany:7"))
    return texts


def shape(text):
    """Return a script's number of lines and number of options."""
    lines = text.encode().split(b"\n")
    return len(lines), sum(line.startswith(b"#SBATCH") for line in lines)


def options(text):
    """Return the options of a script by name."""
    found = re.findall(r"^#SBATCH --([a-z-]+)(?:=(.*))?$", text, re.MULTILINE)
    return {name: value.strip("'") for name, value in found}


# ---------------------------------------------------------------------------------------------- the shipped profiles


@pytest.mark.parametrize("name", profile_names())
def test_every_shipped_profile_loads_and_gives_scripts(name):
    profile = load_profile(name)
    assert {profile.resources(stage).nodes for stage in JOBS if stage != "train"} == {1}
    assert len(scripts(profile)) == 4


def test_the_shipped_profiles_are_those_that_the_documentation_names():
    assert profile_names() == ["cpu", "gpu", "gpu-image", "no-accounting", "preempt-cancel", "preemptible"]


def test_profile_cpu_requests_no_gpu_and_two_tasks_fit_a_node_with_4_cpus_and_4_gb():
    profile = load_profile("cpu")
    for stage in JOBS:
        resources = profile.resources(stage)
        assert resources.gpus == 0
        assert resources.gres is None
        assert 2 * resources.cpus <= 4
        assert 2 * bytes_of(resources.memory) <= 4000 * 2**20
        assert resources.partition is None
    assert profile.resources("train").processes_per_node == 1
    assert not any("gpu" in text.lower() for text in scripts(profile)[:2])


def test_profile_gpu_gives_a_gpu_to_each_array_task_and_whole_nodes_to_training():
    profile = load_profile("gpu")
    assert {profile.resources(stage).gpus for stage in ("describe", "generate", "mask", "evaluate")} == {1}
    train = profile.resources("train")
    assert (train.gpus, train.exclusive, train.processes_per_node) == (4, True, 4)
    assert train.nodes > 1
    assert profile.resources("follow-up").gpus == 0
    assert profile.stagger_seconds > 0


def test_profile_gpu_image_equals_gpu_with_an_image_and_network_settings():
    profile, plain = load_profile("gpu-image"), load_profile("gpu")
    assert profile.resources("train") == plain.resources("train")
    assert profile.container.image.endswith(".sif")
    assert "NCCL_DEBUG" in profile.environment
    assert all("apptainer exec --nv" in script for script in scripts(profile)[:2])


def test_profile_no_accounting_sets_nothing_that_needs_accounting():
    profile = load_profile("no-accounting")
    for stage in (*JOBS, "follow-up"):
        assert profile.resources(stage).account is None
        assert profile.resources(stage).qos is None
    assert profile.resubmit == 1


def test_profile_preempt_cancel_resubmits_instead_of_requeueing():
    profile = load_profile("preempt-cancel")
    assert profile.resubmit > 1
    for text in scripts(profile):
        assert "no-requeue" in options(text)
        assert "requeue" not in options(text)
    array, *_ = scripts(profile)
    assert "scontrol requeue" not in array


def test_profile_preemptible_requeues_often_and_has_short_tasks():
    profile = load_profile("preemptible")
    assert profile.requeue >= 20
    assert profile.task_minutes * 60 < profile.resources("generate").minutes * 60 / 2
    for text in scripts(profile):
        assert "requeue" in options(text)


# --------------------------------------------------------------------------------------------------- invalid profiles


@pytest.mark.parametrize(
    ("text", "key", "near"),
    [
        ("partion: low", "partion", "partition"),
        ("cpu: 4", "cpu", "cpus"),
        ("container: {image: a.sif, bind: [/data]}", "container.bind", "binds"),
        ("stages: {train: {node: 2}}", "stages.train.node", "nodes"),
        ("stages: {generate: {parallel: 2}}", "stages.generate.parallel", ""),
        ("stages: {genrate: {cpus: 2}}", "genrate", "'generate'"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_one(tmp_path, text, key, near):
    with pytest.raises(ConfigError) as caught:
        from_yaml(tmp_path, text)
    told = f"{caught.value.message} {caught.value.hint}"
    assert key in told
    assert near in told
    assert "site.yaml" in told


@pytest.mark.parametrize("text", ["", "[]", "gpu", "- partition", "partition: [", "a: b: c", "\x00", "? {a: b}\n: c"])
def test_a_profile_that_is_not_a_mapping_is_refused(tmp_path, text):
    with pytest.raises(ConfigError, match=r"site\.yaml"):
        from_yaml(tmp_path, text)


def test_an_unknown_profile_is_refused_with_a_list_of_known_profiles(tmp_path):
    for reference in ("gpus", str(tmp_path / "missing.yaml"), str(tmp_path)):
        with pytest.raises(ConfigError) as caught:
            load_profile(reference)
        assert reference in caught.value.message
        assert "preempt-cancel" in caught.value.hint


@pytest.mark.parametrize(
    ("keys", "key"),
    [
        ({"gpus": -1}, "gpus"),
        ({"cpus": 0}, "cpus"),
        ({"cpus": "many"}, "cpus"),
        ({"memory": "16 GB"}, "memory"),
        ({"memory": "0"}, "memory"),
        ({"time": "soon"}, "time"),
        ({"parallel": 0}, "parallel"),
        ({"stagger_seconds": float("nan")}, "stagger_seconds"),
        ({"signal_seconds": 0}, "signal_seconds"),
        ({"requeue": -1}, "requeue"),
        ({"stages": {"train": {"time": "soon"}}}, "stages.train.time"),
        ({"stages": {"train": {"nodes": 0}}}, "stages.train.nodes"),
        ({"stages": {"train": {"partition": "a b"}}}, "stages.train.partition"),
        ({"stages": {"train": None}}, "stages.train"),
        ({"modules": "cuda"}, "modules"),
        ({"pass_environment": "none"}, "pass_environment"),
        ({"pass_environment": ["A B"]}, "pass_environment"),
        ({"environment": {"A": None}}, "environment.A"),
        ({"extra": {"nice": None}}, "extra.nice: "),
        ({"stages": {"train": {"extra": {"nice": "a\n"}}}}, "stages.train.extra.nice: "),
        ({"environment": {"A-B": "c"}}, "environment"),
        ({"container": {}}, "container.image"),
        ({"container": {"image": "a.sif", "binds": ["/a:/b:rx"]}}, "container.binds"),
    ],
)
def test_an_invalid_value_is_refused_naming_its_key(keys, key):
    with pytest.raises(ConfigError) as caught:
        profile_of(**keys)
    assert key in caught.value.message
    assert "\n" not in caught.value.message
    assert not re.search(r"literal|function|\[key\]", caught.value.message)


@pytest.mark.parametrize(
    "name",
    [
        *("array", "output", "job-name", "dependency", "requeue", "signal", "wrap", "chdir", "export", "mem"),
        *("arr", "outpu", "job-nam", "depend", "wra", "tasks-per-node", "mem-per-cpu", "mem-per-gpu", "export-file"),
        *("", "-array", "--array", "a b", "Array", "output=x", "output\nx"),
    ],
)
def test_extra_may_not_override_options_that_magicseg_sets_even_abbreviated(name):
    with pytest.raises(ConfigError, match=r"extra"):
        profile_of(extra={name: "x"})


def test_extra_gives_options_with_and_without_values_or_none():
    profile = profile_of(extra={"reservation": "spring", "contiguous": True, "overcommit": False, "gpu-freq": "high"})
    for text in scripts(profile):
        given = options(text)
        assert given["reservation"] == "spring"
        assert given["contiguous"] == ""
        assert "overcommit" not in given
        assert given["gpu-freq"] == "high"


@pytest.mark.parametrize(
    "name", ["HF_TOKEN", "WANDB_API_KEY", "wandb_apikey", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD"]
)
def test_a_variable_that_looks_secret_is_not_written_into_a_job_file(name):
    with pytest.raises(ConfigError, match="pass_environment"):
        profile_of(environment={name: "x"})
    assert profile_of(pass_environment=[name]).pass_environment == (name,)


def test_a_variable_about_tokenizers_is_no_secret():
    assert profile_of(environment={"TOKENIZERS_PARALLELISM": "false"}).environment


# ------------------------------------------------------------------------------------------------------ types, YAML


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("90", 90), ("1", 1), ("0:30", 1), ("10:00", 10), ("10:01", 11), ("4:00:00", 240), ("0:00:01", 1),
        ("1:00:01", 61), ("100:00:00", 6000), ("1-0", 1440), ("1-12", 2160), ("1-12:30", 2190), ("2-00:00:00", 2880),
        ("0-0:0:59", 1), ("02:30:00", 150),
    ],
)  # fmt: skip
def test_time_limits_are_understood_as_slurm_does(text, minutes):
    profile = profile_of(time=text)
    assert profile.minutes == minutes
    assert options(scripts(profile)[0])["time"] == str(minutes)


@pytest.mark.parametrize(
    "text", ["0", "0:00", "-5", "1:2:3:4", "1-", "-1", "1-2:3:4:5", "4h", "1.5", "", "90 ", "٩٠", "UNLIMITED", "1::2"]
)
def test_an_invalid_time_limit_is_refused(text):
    with pytest.raises(ConfigError, match="time"):
        profile_of(time=text)


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("time: 4:00:00", "minutes", 240),  # YAML 1.1 reads this as the number 14400
        ("time: 90", "minutes", 90),
        ("time: 1:30", "minutes", 2),
        ("partition: 2024", "partition", "2024"),
        ("partition: 0o17", "partition", "0o17"),
        ("partition: 010", "partition", "010"),
        ("account: 1e3", "account", "1e3"),
        ("account: 2024-01-31", "account", "2024-01-31"),
        ("qos: 1_000", "qos", "1_000"),
        ("partition:", "partition", None),
        ("memory: 16000", "memory", "16000"),
        ("cpus: 8", "cpus", 8),
        ("exclusive: yes", "exclusive", True),
        ("task_minutes: 0.5", "task_minutes", 0.5),
        ("environment: {OMP_NUM_THREADS: 4}", "environment", {"OMP_NUM_THREADS": "4"}),
        ("extra: {begin: 16:30, nice: 100}", "extra", {"begin": "16:30", "nice": "100"}),
    ],
)
def test_unquoted_numbers_keep_their_spelling(tmp_path, text, key, value):
    assert getattr(from_yaml(tmp_path, text), key) == value


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [("partition: no", "partition", "no"), ("account: on", "account", "on"), ("modules: [off]", "modules", ("off",))],
)
def test_words_that_yaml_1_1_reads_as_booleans_stay_words(tmp_path, text, key, value):
    assert getattr(from_yaml(tmp_path, text), key) == value


@pytest.mark.parametrize("text", ["partition: false", "environment: {A: true}", "modules: [True]"])
def test_a_boolean_instead_of_a_word_is_refused(tmp_path, text):
    with pytest.raises(ConfigError, match="string"):
        from_yaml(tmp_path, text)


def test_overrides_are_typed_and_can_set_stage_values():
    profile = load_profile(
        "gpu",
        [
            "slurm.partition=low",
            "slurm.gpus=2",
            "slurm.time=1-0",
            "slurm.exclusive=true",
            "slurm.stages.train.nodes=8",
            "slurm.stages.mask.memory=1G",
            "slurm.environment.A=x=y",
            "slurm.modules=[cuda/12.8, gcc]",
            "slurm.extra.reservation=spring",
            "slurm.container.image=a.sif",
        ],
    )
    assert profile.partition == "low"
    assert profile.resources("generate").gpus == 2
    assert profile.minutes == 1440
    assert profile.exclusive is True
    assert profile.resources("train").nodes == 8
    assert profile.resources("train").gpus == 4, "the file's other values stay"
    assert profile.resources("mask").memory == "1G"
    assert profile.environment == {"A": "x=y"}
    assert profile.modules == ("cuda/12.8", "gcc")
    assert profile.extra == {"reservation": "spring"}
    assert profile.container.image == str(Path("a.sif").absolute())


def test_an_empty_override_unsets_a_value():
    assert load_profile("gpu", ["slurm.partition="]).partition is None


@pytest.mark.parametrize(
    "override",
    [
        *("partition=low", "slurm.partition", "slurm.=x", "=x", "slurm", "", "train.steps=5"),
        *("slurm.partition.name=low", "slurm.gpus=many", "slurm.partion=low", "slurm.stages.paint.cpus=1"),
        *("slurm.time=a: b: c", "slurm.stages=[1]", "slurm.modules={a: b}", "slurm..x=1"),
    ],
)
def test_an_invalid_override_is_refused_with_a_hint(override):
    with pytest.raises(ConfigError) as caught:
        load_profile("gpu", [override])
    assert caught.value.exit_code == 2
    assert caught.value.hint


def test_stage_values_override_the_common_values(tmp_path):
    profile = from_yaml(tmp_path, "{partition: a, cpus: 3, stages: {mask: {partition: b}, follow-up: {cpus: 2}}}")
    assert profile.resources("mask").partition == "b"
    assert profile.resources("mask").cpus == 3
    assert profile.resources("generate").partition == "a"
    assert profile.resources("follow-up").cpus == 2
    assert profile.resources("follow-up").memory == "1G"


def test_the_warning_before_the_end_leaves_three_quarters_of_the_time():
    assert profile_of(signal_seconds=120, time="4:00:00").signal_before("mask") == 120
    assert profile_of(signal_seconds=120, time="1").signal_before("mask") == 15


# ------------------------------------------------------------------------------------- no value adds a line or option


@pytest.mark.parametrize("key", WORDS)
@pytest.mark.parametrize(
    "text",
    [
        *("a\nb", "a\n", "\na", "a\rb", "a b", " a", "a\0", "", "ä", "a\u2028b", "-a", "--a"),
        *("a'b", 'a"b', "a;b", "a$b", "a`b`", "a\\b", "a<b", "a>b", "a#b", "{a}", "a~b"),
    ],
)
def test_a_word_may_not_contain_characters_that_a_shell_interprets(key, text):
    with pytest.raises(ConfigError, match=key):
        profile_of(**{key: text})


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("constraint", "a100&nvme|h100"),
        ("constraint", "[rack1|rack2]"),
        ("constraint", "(a|b)&c"),
        ("exclude", "node[01-04,7]"),
        ("gres", "gpu:a100:2"),
        ("mail_user", "me+jobs@uni.example"),
        ("mail_type", "END,FAIL"),
        ("partition", "short,long"),
    ],
)
def test_words_in_slurm_s_syntax_are_accepted_unchanged(key, text):
    profile = profile_of(**{key: text})
    assert all(options(script)[key.replace("_", "-")] == text for script in scripts(profile)[:2])


FIELDS = {
    **{key: (lambda text, key=key: {key: text}) for key in (*WORDS, "memory", "time")},
    "stages": lambda text: {"stages": {stage: {"account": text} for stage in JOBS}},
    "extra": lambda text: {"extra": {"reservation": text}},
    "extra name": lambda text: {"extra": {text: "a"}},
    "modules": lambda text: {"modules": [text]},
    "setup": lambda text: {"setup": [text]},
    "environment": lambda text: {"environment": {"A": text}},
    "environment name": lambda text: {"environment": {text: "a"}},
    "pass_environment": lambda text: {"pass_environment": [text]},
    "image": lambda text: {"container": {"image": text}},
    "executable": lambda text: {"container": {"image": "a", "executable": text}},
    "python": lambda text: {"container": {"image": "a", "python": text}},
    "binds": lambda text: {"container": {"image": "a", "binds": [text]}},
    "cache": lambda text: {"container": {"image": "a", "cache": text}},
    "verify": lambda text: {"container": {"image": "a", "verify": text}},
}
HARMLESS = {"memory": "1G", "time": "10", "extra name": "nice", "cache": "/a"}
PIECES = (
    *(
        "\n",
        "\r",
        "\x85",
        "\u2028",
        "\x0b",
        "\0",
        "\t",
        " ",
        "'",
        '"',
        "`",
        "$(id)",
        "${A}",
        ";",
        "\\",
        "#",
        "-",
        "--",
    ),
    *("#SBATCH --x", "#!/bin/sh", "a", "Z9", "é", "\ud800", "%j", "{}", "=", ":", ",", "/", "<<E", "&&", "nice"),
)
texts = st.text(max_size=12) | st.lists(st.sampled_from(PIECES), max_size=5).map("".join)


@given(st.sampled_from(sorted(FIELDS)), texts)
@example("setup", "#SBATCH --partition=other")
@example("setup", "#PBS -q other")
@example("setup", "echo \\")
@example("environment", "\ud800")
@example("environment", "\x85")
def test_no_value_of_a_field_adds_a_line_or_an_option_to_a_script(field, text):
    make = FIELDS[field]
    try:
        profile = profile_of(**make(text))
    except ConfigError:
        return
    harmless = profile_of(**make(HARMLESS.get(field, "a")))
    assert [shape(script) for script in scripts(profile)] == [shape(script) for script in scripts(harmless)]
    assert all("\\\n" not in script for script in scripts(profile)[:2]), "no line swallows the next"


@given(st.dictionaries(st.sampled_from(["A", "B_2", "_c"]), texts, min_size=1))
def test_variables_reach_the_work_byte_for_byte(variables):
    try:
        profile = profile_of(environment=variables)
    except ConfigError:
        assert any(re.search("[\n\r\0\ud800-\udfff]", value) for value in variables.values())
        return
    for script in scripts(profile)[:1]:
        content = script.encode()
        lines = [line for line in content.split(b"\n") if re.match(rb"export (A|B_2|_c)=", line)]
        assert len(lines) == len(variables)
        checked = subprocess.run(["bash", "-n"], input=content, capture_output=True, check=False)
        assert checked.returncode == 0, checked.stderr
        names = sorted(variables)
        show = "".join(f"printf '%s\\0' \"${name}\"\n" for name in names).encode()
        shown = subprocess.run(
            ["bash"],
            input=b"\n".join([*lines, show]),
            capture_output=True,
            check=True,
            env={"PATH": os.environ["PATH"]},
        )
        assert shown.stdout.split(b"\0")[:-1] == [variables[name].encode() for name in names]


def test_a_profile_can_be_written_by_a_program_and_read_back(tmp_path):
    keys = {"partition": "a", "environment": {"A": "it's: #1"}, "time": "4:00:00", "extra": {"contiguous": True}}
    assert from_yaml(tmp_path, yaml.safe_dump(keys)) == profile_of(**keys)
