"""Settings, protocols and overrides: read as written, or refused by name."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from magicseg.config.loading import load_config, read_config
from magicseg.core.errors import ConfigError, MagicsegError
from magicseg.data.protocol import load_protocol
from magicseg.run import Run
from magicseg.run.fingerprint import resolve_backends

_LAUGHS = "{a: &a [x,x,x,x,x,x,x,x,x], b: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a], c: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b], "
_LAUGHS += "d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c], e: [*d,*d,*d,*d,*d,*d,*d,*d,*d]}"


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("seed=2020-99-99", "seed: .*integer.*2020-99-99"),
        ("seed=2020-01-01", "seed: .*integer"),
        ("seed=!!int abc", "not YAML"),
        ("seed=!!python/object/apply:os.system [id]", "tag"),
        ("seed=" + "9" * 5000, "not YAML"),
        ("seed=" + "9" * 400, "seed"),
        ("seed=" + "[" * 100_000, "levels deep"),
        ("seed=\udcff", "not YAML"),
        ("seed=\x00", "not YAML"),
        ("seed=&a [*a]", "levels deep"),
        ("train.encoder.name=[a]", "encoder"),
        ("train.encoder.name={a: b}", "encoder"),
        ("train.encoder=[a]", "encoder"),
        (f"describe.options={_LAUGHS}", "multiply"),
        ("describe.options={a: 1, a: 2}", "already on line 1"),
        ("describe.options={[a]: 1}", "key is not a scalar"),
        ("describe.options={<<: {a: 1}}", "merge keys"),
        ("plan.samples=yes", "integer.*'yes'"),
        ("plan.samples=true", "integer.*True"),
        ("plan.samples=1:20", "integer.*'1:20'"),
        ("plan.samples='16'", "integer.*'16'"),
        ("plan.samples=16.0", r"integer.*16\.0"),
        ("plan.samples=1_000", "integer.*'1_000'"),
        ("plan.samples=-1", "greater than or equal"),
        ("plan.samples=.nan", "integer"),
        ("train.learning_rate=.inf", "finite"),
        ("train.learning_rate=.nan", "finite|greater"),
        ("train.learning_rate='0.1'", "number.*'0.1'"),
        ("train.learning_rate=on", "number.*'on'"),
        ("train.focal_gamma=.inf", "finite"),
        ("train.sources=[{run: a, weight: .inf}]", "finite"),
        ("train.photometric=no", "boolean.*'no'"),
        ("train.photometric=1", "boolean.*1"),
        ("train.photometric='true'", "boolean.*'true'"),
        ("generate.quality.min_sharpness=-.inf", "finite"),
        ("plan.samples.deep.er=1", "plan.samples is a value"),
        ("labels.vocabulary=" + "x" * 300, "no vocabulary"),
        ("labels.vocabulary=" + "x" * 300 + ".txt", "too long"),
        ("labels.vocabulary=VOC20", "did you mean 'voc20'"),
        ("labels.vocabulary=L.csv", "no vocabulary 'L.csv'"),
        ("labels.vocabulary='cat, dog'", "no vocabulary"),
        ("labels.vocabulary=/dev/zero.txt", "No such file"),
        ("train.encoder.weights.model=" + "x" * 300, "revision"),
        ('train.encoder.weights.model="a\\0b"', "model|null"),
        ("evaluate.data=[a]", "string"),
        ("=1", "key.path=value"),
        ("seed", "key.path=value"),
        ("..=1", "not a setting|is not"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(typed: Any, setting: str, words: str) -> None:
    result = typed("init", "run", "--preset", "miniature", "--set", setting)
    assert result.code == 2
    with pytest.raises(MagicsegError, match=words):
        Run.create(Path("run"), load_config(preset="miniature", overrides=[setting]))
    assert "Traceback" not in result.err
    assert len(result.err) < 3000
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("setting", "key", "value"),
    [
        ("seed=0010", "seed", 10),
        ("seed=0o10", "seed", 8),
        ("train.learning_rate=1e-5", "train.learning_rate", 1e-5),
        ("train.learning_rate=1", "train.learning_rate", 1.0),
        ("train.photometric=false", "train.photometric", False),
        ("train.ema_decay=", "train.ema_decay", None),
        ("evaluate.data=~/voc", "evaluate.data", str(Path("~/voc").expanduser())),
    ],
)
def test_a_setting_keeps_its_written_value_and_type(setting: str, key: str, value: object) -> None:
    found: Any = load_config(preset="miniature", overrides=[setting])
    for part in key.split("."):
        found = getattr(found, part)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("preset: painted\ntrain: {steps: 7}\nevaluate: {scenes: 8}\ntrain: {batch_size: 4}\n", "line 4.*on line 2"),
        ("preset: painted\nseed: !!int abc\n", "not YAML"),
        ("preset: painted\nseed: 2020-99-99\n", "integer"),
        ("preset: painted\nplan: 5\nplan.samples: 5\n", "plan"),
        ("preset: [painted]\n", "preset"),
        ("? [a]\n: b\n", "scalar"),
        ("1: 2\npreset: painted\n", "1|string"),
        ("preset: painted\nlabels:\n", "labels"),
        ("- a\n", "list"),
        ("preset: painted\nplan: {samples: yes}\n", "integer"),
    ],
)
def test_a_file_of_settings_is_refused_by_name(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=words) as caught:
        load_config(file=file)
    assert "mine.yaml" in caught.value.message


@pytest.mark.parametrize("made", [Path.mkdir, lambda path: path.write_bytes(b"\xff\xfe"), lambda path: None])
def test_a_folder_or_pipe_as_settings_file_is_refused(tmp_path: Path, made: Any) -> None:
    made(tmp_path / "mine.yaml")
    with pytest.raises(ConfigError, match=r"mine\.yaml"):
        load_config(file=tmp_path / "mine.yaml")


def test_a_group_on_the_command_line_is_merged_into_the_preset(tmp_path: Path) -> None:
    typed = load_config(preset="miniature", overrides=["generate.options={steps: 9}"])
    assert typed.generate.options["model"] == "shipped:diffusion"
    assert typed.generate.options["steps"] == 9
    file = tmp_path / "mine.yaml"
    file.write_text("generate: {options: {steps: 9}}")
    assert load_config(preset="miniature", file=file).generate == typed.generate


@pytest.mark.parametrize(
    "overrides",
    [
        ["generate.options={}", "generate.options={model: /m, steps: 3}"],
        ["generate.options={}", "generate.options.steps=3", "generate.options.model=/m"],
        ["generate.options=null", "generate.options={model: /m, steps: 3}"],
    ],
)
def test_an_empty_group_clears_the_presets_group(overrides: list[str]) -> None:
    assert load_config(preset="miniature", overrides=overrides).generate.options == {"model": "/m", "steps": 3}


@pytest.mark.parametrize("turned", [False, True])
def test_choosing_another_back_end_drops_the_former_options_in_any_order(turned: bool) -> None:
    overrides = ["generate.backend=painter", "generate.options.fault=none"]
    config = load_config(preset="miniature", overrides=overrides[::-1] if turned else overrides)
    assert config.generate.options == {"fault": "none"}
    assert config.generate.size == 64
    same = load_config(preset="miniature", overrides=["generate.backend=diffusers"])
    assert same == load_config(preset="miniature")


def test_another_model_drops_the_revision_of_the_former_one() -> None:
    config = load_config(preset="sdxl", overrides=["generate.options.model=/weights/sd15"])
    assert "revision" not in config.generate.options
    commit = "0" * 40
    other = load_config(
        preset="sdxl", overrides=[f"generate.options.revision='{commit}'", "generate.options.model=a/b"]
    )
    assert (other.generate.options["model"], other.generate.options["revision"]) == ("a/b", commit)


def test_a_run_made_by_other_yaml_libraries_opens_with_the_same_settings(tmp_path: Path) -> None:
    config = resolve_backends(load_config(preset="miniature", overrides=["train.learning_rate=1e-5"]))
    written = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    (tmp_path / "magicseg.yaml").write_text(written)
    assert read_config(tmp_path / "magicseg.yaml") == config
    assert config.to_yaml() == written


def test_paths_in_settings_may_begin_at_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "labels.TXT").write_text("car\nhouse\n")
    overrides = [
        *("labels.vocabulary=~/labels.TXT", "evaluate.data=~/voc", "evaluate.benchmarks=[~/own.yaml, voc21]"),
        *("slurm.profile=~/site.yaml", "plan.samples=2", "plan.shard_size=2", "describe.backend=template"),
    ]
    config = Run.create(tmp_path / "run", load_config(preset="painted", overrides=overrides)).config
    assert config.labels.vocabulary == str(tmp_path / "labels.TXT")
    assert config.evaluate.data == str(tmp_path / "voc")
    assert config.evaluate.benchmarks == (str(tmp_path / "own.yaml"), "voc21")
    assert config.slurm.profile == str(tmp_path / "site.yaml")


_PROTOCOL = {
    "name": "own",
    "vocabulary": "voc20",
    "images": ["{name}.jpg"],
    "labels_in": [{"path": "{name}.png"}],
    "origin": "here",
    "source": "me",
}


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("class_values", ["0-99999999999"], "ascending range"),
        ("class_values", ["0-65535", "0-65535"], "more than"),
        ("class_values", ["19-0"], "ascending range"),
        ("class_values", ["0-" + "9" * 4000], "class_values"),
        ("class_values", ["²-³"], "integer"),
        ("class_values", ["7"], "integer"),
        ("class_values", [True], "integer"),
        ("class_values", [70_000], "less than"),
        ("class_values", [-1], "greater than"),
        ("class_values", [[0]], "integer"),
        ("class_values", "0-19", "tuple"),
        ("background_values", [1e9], "integer"),
        ("other_values", [], "error"),
    ],
)
def test_a_protocols_numbers_are_bounded(tmp_path: Path, key: str, value: object, words: str) -> None:
    document = {**_PROTOCOL, "labels_in": [{"path": "{name}.png", key: value}]}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(document))
    with pytest.raises(ConfigError, match=words) as caught:
        load_protocol(str(tmp_path / "own.yaml"))
    assert len(caught.value.message) < 1000


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("name: twice\n", "already on line"),
        ("window: .inf\n", "integer"),
        ("ignore_value: 0xFFFFFFFFFFFFFFFFFFFF\nwindow: yes\n", "window"),
        ("long_side: '2048'\n", "integer"),
        ("background: {threshold: .nan}\n", "finite|less"),
        ("extra: &a [*a]\n", "levels deep"),
        ("vocabulary2: x\n", "not permitted"),
    ],
)
def test_an_invalid_protocol_file_is_refused(tmp_path: Path, more: str, words: str) -> None:
    (tmp_path / "own.YML").write_text(yaml.safe_dump(_PROTOCOL) + more)
    with pytest.raises(ConfigError, match=words):
        load_protocol(str(tmp_path / "own.YML"))


def test_ranges_in_a_protocol_are_expanded(tmp_path: Path) -> None:
    document = {**_PROTOCOL, "labels_in": [{"path": "{name}.png", "class_values": ["0 - 17", 19, "30-30"]}]}
    (tmp_path / "own.YAML").write_text(yaml.safe_dump(document))
    assert load_protocol(str(tmp_path / "own.YAML")).labels_in[0].class_values == (*range(18), 19, 30)


def test_profile_overrides_are_merged_key_by_key(tmp_path: Path) -> None:
    from magicseg.launch.profile_files import load_profile

    (tmp_path / "site.yaml").write_text("stages: {train: {gpus: 4, time: 10:00}}\nenvironment: {A: x}\n")
    path = str(tmp_path / "site.yaml")
    merged = load_profile(path, ["slurm.stages.train={time: 20:00}", "slurm.environment={B: y}"])
    assert (merged.resources("train").gpus, merged.resources("train").time) == (4, "20:00")
    assert merged.environment == {"A": "x", "B": "y"}
    assert load_profile(path, ["slurm.environment={}"]).environment == {}
    with pytest.raises(ConfigError, match=r"environment\.A is a value, not a group"):
        load_profile(path, ["slurm.environment.A.b=1"])


def test_paths_in_a_profile_may_begin_at_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from magicseg.launch.profile_files import load_profile

    monkeypatch.setenv("HOME", str(tmp_path))
    text = "container: {image: ~/a.sif, cache: ~/cache, binds: ['~/data:/data', /scratch], verify: ~/key.pem}"
    (tmp_path / "site.yaml").write_text(text)
    container = load_profile(str(tmp_path / "site.yaml")).container
    assert container is not None
    assert (container.image, container.cache) == (f"{tmp_path}/a.sif", f"{tmp_path}/cache")
    assert (container.binds, container.verify) == ((f"{tmp_path}/data:/data", "/scratch"), f"{tmp_path}/key.pem")


def test_an_options_value_may_begin_at_the_home_folder(
    typed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "own.yaml").write_text("preset: painted\nplan: {samples: 2, shard_size: 2}\n")
    assert typed("init", "run", "--config=~/own.yaml").code == 0
    assert (tmp_path / "run" / "magicseg.yaml").exists()
