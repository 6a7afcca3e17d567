"""Settings: defaults, presets, overrides, helpful errors."""

import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from magicseg.config.loading import json_schema, load_config, preset_names, read_config, validate_config
from magicseg.core.errors import BackendError, ConfigError
from magicseg.run import Run
from magicseg.run.fingerprint import resolve_backends


def miniature(*overrides):
    return load_config(preset="painted", overrides=overrides)


def leaves(schema, definitions):
    """Yield the dotted keys of a JSON schema's leaves."""
    for name, field in schema["properties"].items():
        target = field.get("$ref") or next((item["$ref"] for item in field.get("allOf", []) if "$ref" in item), None)
        inner = definitions[target.rsplit("/", 1)[-1]] if target else None
        if inner and "properties" in inner:
            yield from (f"{name}.{leaf}" for leaf in leaves(inner, definitions))
        else:
            yield name


def test_a_runs_configuration_file_contains_every_default(finished_run):
    written = yaml.safe_load((finished_run.path / "magicseg.yaml").read_text())
    schema = json.loads(json_schema())
    for key in leaves(schema, schema["$defs"]):
        node = written
        for part in key.split("."):
            assert part in node, f"{key} is not written out"
            node = node[part]
    assert written["mask"]["options"]["threshold"] > 0, "a back end's own defaults are written out too"


def test_a_written_configuration_is_read_back_unchanged(finished_run):
    assert read_config(finished_run.path / "magicseg.yaml") == finished_run.config


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_valid_and_its_back_ends_are_installed(name):
    assert resolve_backends(load_config(preset=name)).preset == name


def test_the_schema_describes_what_the_settings_accept():
    schema = json.loads(json_schema())
    assert schema["additionalProperties"] is False
    assert schema["$defs"]["PlanSettings"]["properties"]["samples"]["minimum"] == 1


@pytest.mark.parametrize(
    ("override", "near"),
    [
        ("generate.sizes=3", "generate.size"),
        ("plan.shardsize=3", "plan.shard_size"),
        ("sed=3", "seed"),
        ("genrate.size=3", "generate"),
        ("plan.size=3", "generate.size"),
        ("steps=3", "train.steps"),
        ("store.codec=jpeg", "store.image_codec"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_valid_one(override, near):
    with pytest.raises(ConfigError) as caught:
        miniature(override)
    assert override.split("=")[0].split(".")[0] in caught.value.message
    assert near in caught.value.hint


def test_an_unknown_option_of_a_back_end_is_refused_with_its_options():
    with pytest.raises(ConfigError) as caught:
        resolve_backends(miniature("mask.backend=pair-difference", "mask.options.treshold=3"))
    assert "treshold" in caught.value.message
    assert "threshold" in caught.value.hint


def test_an_unknown_back_end_is_refused_with_the_installed_names():
    with pytest.raises(BackendError) as caught:
        resolve_backends(miniature("generate.backend=paynter"))
    assert "painter" in caught.value.hint


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("plan.samples=many", "plan.samples"),
        ("plan.samples=0", "plan.samples"),
        ("plan.samples=1.5", "plan.samples"),
        ("plan=5", "plan"),
        ("plan.samples.x=5", "plan.samples is a value"),
        ("plan.samples", "key.path=value"),
        ("=3", "key.path=value"),
        ("seed=[1", "not YAML"),
        ("seed=-1", "seed"),
        ("store.image_codec=gif", "store.image_codec"),
        ("plan.min_labels=3", "min_labels"),
        ("labels.vocabulary=[a]", "labels.vocabulary"),
        ("generate.options=3", "generate.options"),
    ],
)
def test_a_wrong_override_is_refused_by_name(override, words):
    with pytest.raises(ConfigError, match=words.replace(".", r"\.")):
        miniature(override)


@given(
    samples=st.integers(1, 10**9),
    seed=st.integers(0, 2**63 - 1),
    threshold=st.floats(0.5, 254, allow_nan=False),
    codec=st.sampled_from(["lossless", "jpeg"]),
)
def test_overrides_keep_value_and_type(samples, seed, threshold, codec):
    config = miniature(
        f"plan.samples={samples}",
        f"seed={seed}",
        f"mask.options.threshold={threshold!r}",
        f"store.image_codec={codec}",
    )
    assert (config.plan.samples, config.seed, config.store.image_codec) == (samples, seed, codec)
    assert float(config.mask.options["threshold"]) == threshold
    assert validate_config(yaml.safe_load(config.to_yaml()), source="it") == config


def test_choosing_another_encoder_drops_the_presets_encoder_settings(tmp_path):
    config = load_config(
        preset="painted",
        overrides=[
            *("train.encoder.name=open-clip", "train.encoder.architecture=ViT-B-16-quickgelu"),
            "train.encoder.weights.model=./clip.pt",
        ],
    )
    assert config.train.encoder.name == "open-clip"
    file = tmp_path / "mine.yaml"
    file.write_text(
        "train: {encoder: {name: open-clip, architecture: ViT-B-16-quickgelu, weights: {model: ./clip.pt}}}"
    )
    assert load_config(file=file, preset="painted").train.encoder == config.train.encoder
    same = load_config(preset="painted", overrides=["train.encoder.name=miniature"])
    assert same.train.encoder == load_config(preset="painted").train.encoder


def test_a_file_overrides_its_preset_and_set_options_override_both(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("preset: painted\nplan: {samples: 7, shard_size: 3}\n")
    config = load_config(file=file, overrides=["plan.shard_size=5"])
    assert (config.plan.samples, config.plan.shard_size, config.generate.backend) == (7, 5, "painter")


@pytest.mark.parametrize("text", ["[1, 2]", "plan: [", "\x00", "1: 2", "plan:", "preset: [miniature]", ""])
def test_a_file_that_is_not_a_configuration_is_refused(tmp_path, text):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError):
        load_config(file=file)


def test_creating_an_existing_run_with_equal_settings_opens_it(fresh):
    assert Run.create(fresh.path, fresh.config).plan.samples == 96
