"""The encoder's weights of a training: fetched, checked, and identified by content."""

import json
import shutil

import pytest

from helpers.small_hub import COMMIT
from helpers.tiny_runs import change, do, make_run
from magicseg.config.loading import load_config
from magicseg.config.model import deciding_settings, encoder_weights
from magicseg.core.distributed import ALONE
from magicseg.core.errors import BackendError, ConfigError
from magicseg.doctor.run_checks import run_checks
from magicseg.launch.planning import ALL, Request, State, refuse_unfetched
from magicseg.run import Run
from magicseg.run.fetch_weights import fetch
from magicseg.run.fingerprint import stage_weights
from magicseg.train.run_training import train_run

NAME = "owner/tiny-clip"
SETTING = "train.encoder.weights.model"


@pytest.fixture
def cache(tmp_path, monkeypatch, checkpoint):
    """Create a hub cache with one downloaded open_clip model, without a network."""
    folder = tmp_path / "hub"
    shutil.copytree(
        checkpoint("open_clip"),
        folder / f"models--{NAME.replace('/', '--')}" / "snapshots" / COMMIT,
    )
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return folder


def clip_run(path, model, revision):
    weights = {"model": str(model), "revision": revision}
    return make_run(path, f"train.encoder={json.dumps({'name': 'open-clip', 'weights': weights})}")


def start(run):
    return train_run(run, world=ALONE, progress=lambda step, text: None, stop=lambda: True)


def test_training_starts_only_after_its_weights_are_fetched(tmp_path, cache):
    run = clip_run(tmp_path / "run", NAME, COMMIT)
    with pytest.raises(BackendError, match=f"{SETTING}: {NAME} at {COMMIT} is not fetched") as caught:
        start(run)
    assert caught.value.hint == f"magicseg fetch {run.path}"
    before = [check for check in run_checks(run) if check.name == "train: weights"]
    assert "is not fetched" in before[0].seen
    manifest = fetch(run)
    # The pickled copy is not read, so it is not fetched.
    assert sorted(manifest.names[f"{NAME}@{COMMIT}"].files) == [
        "open_clip_config.json",
        "open_clip_model.safetensors",
    ]
    run = Run.open(run.path)
    run.refuse_unfetched("train")
    after = [check for check in run_checks(run) if check.name == "train: weights"]
    assert after[0].seen == f"{NAME}@{COMMIT}"


@pytest.mark.parametrize("stage", ["train", ALL])
def test_nothing_is_submitted_before_training_has_its_weights(tmp_path, cache, stage):
    run = clip_run(tmp_path / "run", NAME, COMMIT)
    do(run)
    with pytest.raises(BackendError, match=f"{SETTING}: {NAME} at {COMMIT} is not fetched"):
        refuse_unfetched(State.of(run), Request(stage=stage, profile="cpu"))
    fetch(run)
    refuse_unfetched(State.of(Run.open(run.path)), Request(stage=stage, profile="cpu"))


def test_the_identity_of_encoder_weights_is_independent_of_their_path(tmp_path, cache, checkpoint):
    by_name = clip_run(tmp_path / "a", NAME, COMMIT).config.train
    folder = shutil.copytree(checkpoint("open_clip"), tmp_path / "copy")
    by_path = clip_run(tmp_path / "b", folder, None).config.train
    assert deciding_settings(by_name) == deciding_settings(by_path)
    assert deciding_settings(by_name)["encoder"]["weights"].startswith("sha256:")
    (folder / "open_clip_config.json").write_text("{}")
    assert deciding_settings(by_name) != deciding_settings(by_path)
    (folder / "open_clip_model.safetensors").unlink()
    with pytest.raises(BackendError, match=f"{SETTING}.*lacks 'open_clip_model.safetensors'"):
        deciding_settings(by_path)


def test_an_encoder_without_weights_needs_no_fetch(tmp_path):
    run = make_run(tmp_path / "run")
    assert stage_weights(run.config, "train") == ()
    assert not [check for check in run_checks(run) if check.name == "train: weights"]


@pytest.mark.parametrize("preset", ["paper", "sdxl", "sdxl-turbo", "flux"])
def test_the_large_presets_train_the_papers_encoder(preset):
    config = load_config(preset=preset)
    (weights,) = encoder_weights(config.train)
    assert weights.by_name
    assert weights.model == "timm/vit_base_patch16_clip_224.openai"
    encoder = config.train.encoder
    assert (encoder.architecture, encoder.image_size, encoder.freeze) == ("ViT-B-16-quickgelu", 512, True)
    assert (config.train.prompt_tokens, config.train.decoder_width, config.train.decoder_layers) == (10, 512, 3)
    assert config.train.templates == ("a photo of a {}",)


def test_a_wrong_encoder_key_is_named_without_pydantics_extra_text():
    with pytest.raises(ConfigError, match=r"train\.encoder\.widht is not a setting") as caught:
        load_config(preset="painted", overrides=["train.encoder.widht=3"])
    assert "train.encoder.width" in caught.value.hint
    with pytest.raises(ConfigError, match=r"train\.encoder\.weights: model 'owner/x' needs a revision"):
        load_config(preset="paper", overrides=["train.encoder.weights={model: owner/x}"])
    with pytest.raises(ConfigError, match=r"train\.encoder: there is no such encoder"):
        load_config(preset="paper", overrides=["train.encoder.name=clip"])


def test_a_configuration_without_an_encoder_uses_the_miniatures(tmp_path):
    run = make_run(tmp_path / "run")
    encoder = run.config.train.encoder.model_dump()
    del encoder["name"]
    change(run, "train.encoder", encoder)
    assert Run.open(run.path).config.train.encoder == run.config.train.encoder
