"""Options that cannot work are refused before a run is made; identity needs no model library."""

import json
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from pydantic import ValidationError

from helpers.tiny_runs import make_run
from magicseg.config.loading import load_config, preset_names
from magicseg.core.errors import BackendError, ConfigError
from magicseg.run import Run
from magicseg.run.fingerprint import stage_fingerprints
from magicseg.stages.generate.diffusers_options import DiffusersOptions, SchedulerName
from magicseg.stages.generate.diffusion import DiffusersGenerator
from magicseg.stages.generate.families import SCHEDULERS
from magicseg.weights import Weights
from magicseg.weights.hashing import path_identity
from magicseg.weights.manifest import Manifest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = {"model": "org/model", "revision": COMMIT}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"model": "org/model"}, "needs a revision"),
        ({**NAME, "guidance": 0, "negative_prompt": "blurry"}, "no effect"),
        ({**NAME, "steps": 4, "shared_steps": 4, "noise": "shared"}, "below steps"),
        ({**NAME, "shared_steps": 1}, "noise: shared"),
        ({**NAME, "device": "cpu"}, "float16"),
        ({**NAME, "device": "cpu", "dtype": "float32", "offload": "model"}, "offload"),
        ({**NAME, "scheduler": "dmp++"}, "dpm"),
        ({**NAME, "step": 4}, "Extra"),
    ],
)
def test_options_that_cannot_work_are_refused(options, told):
    with pytest.raises(ValidationError, match=told.replace("+", r"\+")):
        DiffusersOptions(**options)


def test_every_scheduler_name_has_a_class():
    assert {"default", *SCHEDULERS} == set(SchedulerName.__args__)


def test_of_a_name_a_pipelines_files_are_read(checkpoint):
    (weights,) = DiffusersGenerator.weights(DiffusersOptions(**NAME, variant="fp16"))
    assert weights.name == f"org/model@{COMMIT}"
    files = {
        "model_index.json": True,
        "unet/config.json": True,
        "unet/diffusion_pytorch_model.safetensors": False,
        "unet/diffusion_pytorch_model.fp16.safetensors": True,
        "unet/diffusion_pytorch_model.bin": False,
        "text_encoder/model.safetensors": True,  # in no other variant
        "tokenizer/merges.txt": True,
        "model-pruned.safetensors": False,
        "README.md": False,
    }
    assert weights.chosen(files) == sorted(file for file, is_read in files.items() if is_read)


def test_identity_imports_no_model_library(checkpoint):
    code = (
        "import sys; from magicseg.stages.generate.diffusion import DiffusersGenerator as G; "
        "from magicseg.weights.hashing import path_identity; "
        f"print(path_identity(G.weights(G.Options(model={str(checkpoint('flux'))!r}))[0], 'here')); "
        "assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("sha256:")


@pytest.fixture
def fake(tmp_path):
    """A folder with the layout of a checkpoint and no sense in it."""
    folder = tmp_path / "fake"
    (folder / "unet").mkdir(parents=True)
    (folder / "model_index.json").write_text(
        json.dumps({"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet"], "vae": [None, None]})
    )
    (folder / "unet" / "weights.safetensors").write_bytes(b"weights")
    (folder / "all-in-one.safetensors").write_bytes(b"not read by the pipeline")
    return folder


def identified(folder):
    (weights,) = DiffusersGenerator.weights(DiffusersOptions(model=str(folder)))
    return path_identity(weights, "generate.options.model")


def test_the_digest_is_of_the_files_that_the_pipeline_reads(fake, tmp_path):
    before = identified(fake)
    (fake / "all-in-one.safetensors").write_bytes(b"changed")
    (fake / "README.md").write_text("changed")
    assert identified(fake) == before
    moved = fake.rename(tmp_path / "elsewhere")
    assert identified(moved) == before, "the place does not count"
    (moved / "unet" / "weights.safetensors").write_bytes(b"weightz")
    assert identified(moved) != before


def test_where_the_weights_lie_is_no_part_of_the_fingerprint(fake, tmp_path):
    def fingerprint(folder):
        overrides = ["generate.backend=diffusers", f"generate.options={{model: {folder}}}"]
        return stage_fingerprints(load_config(preset="painted", overrides=overrides), "plan", Manifest())["generate"]

    before = fingerprint(fake)
    after = fingerprint(fake.rename(tmp_path / "elsewhere"))
    assert before.digest == after.digest
    assert before.inputs["generate.weights.model"].startswith("sha256:")
    assert "generate.options.model" not in before.inputs


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda folder: (folder / "model_index.json").unlink(), "not a diffusers pipeline"),
        (lambda folder: (folder / "model_index.json").write_text("{"), "cannot be used"),
        (lambda folder: (folder / "model_index.json").write_text('{"_class_name": "WanPipeline"}'), "WanPipeline"),
        (lambda folder: (folder / "unet").rename(folder / "unett"), "lacks the folder 'unet'"),
        (lambda folder: folder.rename(folder.with_name("gone")), "no such folder"),
    ],
)
def test_a_folder_that_is_no_checkpoint_is_refused_without_loading(fake, change, told):
    change(fake)
    with pytest.raises(BackendError, match=told) as caught:
        identified(fake)
    assert caught.value.hint
    assert "generate.options.model" in caught.value.message or "model_index.json" in caught.value.message


def test_one_big_file_is_refused_with_the_way_to_convert_it(fake):
    with pytest.raises(BackendError, match="is a file") as caught:
        identified(fake / "all-in-one.safetensors")
    assert "from_single_file" in caught.value.hint


def test_a_name_without_a_revision_is_refused_at_init(tmp_path):
    with pytest.raises(ConfigError, match="needs a revision"):
        make_run(tmp_path / "run", "generate.backend=diffusers", "generate.options={model: org/model}")


SMALL = {"miniature", "painted"}


def test_the_guide_has_every_option_and_preset():
    guide = (Path(__file__).parents[2] / "docs" / "generate.md").read_text(encoding="utf-8")
    names = [*DiffusersOptions.model_fields, *SCHEDULERS, *preset_names()]
    assert [name for name in names if name not in SMALL and f"`{name}`" not in guide] == []


PRESETS = [name for name in preset_names() if name not in SMALL]


def test_the_presets_are_there():
    assert {"paper", "sdxl-turbo", "sdxl", "flux"} <= set(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_the_generator_of_a_preset_is_pinned_and_valid(name):
    config = load_config(preset=name)
    assert config.generate.backend == "diffusers"
    options = DiffusersOptions.model_validate(config.generate.options)
    assert isinstance(DiffusersGenerator.weights(options)[0], Weights)
    assert options.revision is not None


def test_the_papers_preset_has_the_papers_settings():
    config = load_config(preset="paper")
    options = DiffusersOptions.model_validate(config.generate.options)
    assert (config.generate.size, options.steps, options.guidance) == (512, 20, 7.5)
    assert (options.counterfactual, options.noise, options.shared_steps) == ("replace", "independent", 0)
    assert "stable-diffusion-v1-5" in options.model
    assert config.labels.vocabulary == "lvis1203"


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_can_be_made_with_the_back_ends_at_hand(name, tmp_path: Path):
    made = Run.create(tmp_path / "run", load_config(preset=name, overrides=["plan.samples=8"]))
    inputs = made.fingerprints["generate"].inputs
    assert inputs["generate.weights.model"].count("@") == 1
    assert "generate.options.revision" not in inputs


def test_a_preset_whose_back_ends_are_not_installed_says_which(tmp_path, monkeypatch):
    def only(group, _path):
        return [
            entry for entry in entry_points(group=group) if entry.name in {"grammar", "painter", "pair-difference"}
        ]

    monkeypatch.setattr("magicseg.installed_backends._installed", only)
    with pytest.raises(BackendError, match=r"describe\.backend: there is no back end 'transformers'") as caught:
        Run.create(tmp_path / "run", load_config(preset="paper"))
    assert caught.value.hint == "installed: grammar; another one: --set describe.backend=NAME"
    assert not (tmp_path / "run").exists()
