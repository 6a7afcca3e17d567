"""Checkpoints that lack something, batches that do not fit: what is wrong, where, and what to do."""

import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.pair_requests import request
from magicseg.core.errors import BackendError
from magicseg.stages.generate.diffusion import DiffusersGenerator

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def copied(checkpoint, tmp_path):
    """A copy of a checkpoint that a test may damage."""

    def copy(name="sd15"):
        return shutil.copytree(checkpoint(name), tmp_path / f"{name}-copy")

    return copy


def truncate(folder, other):
    file = folder / UNET
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def garble(folder, other):
    (folder / "text_encoder" / "model.safetensors").write_bytes(b"no weights at all" * 9)


def remove_weights(folder, other):
    (folder / UNET).unlink()


def pickle_weights(folder, other):
    torch.save(load_file(folder / UNET), folder / "unet" / "diffusion_pytorch_model.bin")
    (folder / UNET).unlink()


def other_weights(folder, other):
    shutil.copy(other / UNET, folder / UNET)


def other_part(folder, other):
    shutil.rmtree(folder / "unet")
    shutil.copytree(other / "unet", folder / "unet")


def drop_a_weight(file):
    def drop(folder, other):
        weights = load_file(folder / file)
        del weights[sorted(weights)[3]]
        save_file(weights, folder / file, metadata={"format": "pt"})

    return drop


def remove_tokenizer(folder, other):
    for file in (folder / "tokenizer").iterdir():
        file.unlink()


def break_config(folder, other):
    (folder / "unet" / "config.json").write_text("{")


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (truncate, "cannot be loaded"),
        (garble, "SafetensorError"),
        (remove_weights, "no file named"),
        (pickle_weights, "no file named diffusion_pytorch_model.safetensors"),
        (other_weights, "expected shape"),
        (other_part, "a first batch fails"),
        (drop_a_weight(UNET), "weights do not fit the architecture"),
        (drop_a_weight("text_encoder/model.safetensors"), "weights do not fit the architecture"),
        (drop_a_weight("vae/diffusion_pytorch_model.safetensors"), "weights do not fit the architecture"),
        (remove_tokenizer, "tokenizer"),
        (break_config, "not a valid JSON"),
    ],
)
def test_a_damaged_checkpoint_is_refused_before_the_first_shard(damage, told, copied, checkpoint, generator):
    folder = copied()
    damage(folder, checkpoint("sdxl"))
    with pytest.raises(BackendError, match=told) as caught:
        generator(folder)
    assert f"generate.options.model: {folder}" in caught.value.message
    assert "safetensors" in caught.value.hint
    assert "\x1b" not in caught.value.message


def test_a_variant_that_is_not_there_is_refused(generator):
    with pytest.raises(BackendError, match="fp16"):
        generator("sd2", variant="fp16")


@pytest.mark.parametrize(
    ("family", "size", "told"), [("sd2", 36, "multiple of 8"), ("flux", 40, "multiple of 16"), ("sd3", 40, "16")]
)
def test_a_size_that_the_family_cannot_paint_is_refused(family, size, told, generator):
    with pytest.raises(BackendError, match=told) as caught:
        generator(family, size=size)
    assert "32 or" in caught.value.hint


@pytest.mark.parametrize(
    ("family", "options", "told"),
    [
        ("flux", {"negative_prompt": "blurry"}, "takes none"),
        ("sd2", {"text_length": 64}, "no T5"),
        ("sd3", {"scheduler": "ddim"}, "flow-euler"),
        ("sd2", {"scheduler": "flow-euler"}, "ddim"),
    ],
)
def test_options_that_do_not_fit_the_family_are_refused(family, options, told, generator):
    with pytest.raises(BackendError) as caught:
        generator(family, **options)
    assert told in f"{caught.value.message} {caught.value.hint}"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_a_missing_gpu_is_an_error_not_a_slow_run(generator):
    with pytest.raises(BackendError, match="finds no CUDA device") as caught:
        generator("sd2", device="cuda", dtype="float16")
    assert "generate.options.device" in caught.value.hint


def limit_memory(backend, rows):
    """Let the pipeline's denoiser run out of memory on more than so many rows."""

    def check(module, positional, named):
        if len(positional[0]) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ...")

    return backend.pipeline.pipe.unet.register_forward_pre_hook(check, with_kwargs=True)


def test_a_device_that_fails_stops_the_stage_instead_of_dropping_samples(generator):
    backend = generator("sd2")

    def fail(module, positional, named):
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")

    backend.pipeline.pipe.unet.register_forward_pre_hook(fail, with_kwargs=True)
    with pytest.raises(BackendError, match="cpu failed: RuntimeError: CUDA error: an illegal") as caught:
        backend.generate([request()])
    assert "nothing committed is lost" in caught.value.hint


def test_a_batch_that_does_not_fit_names_the_setting_and_a_size_that_does(generator):
    backend = generator("sd2", batch_size=8)
    requests = [request(index) for index in range(8)]
    hook = limit_memory(backend, rows=4 * 3)  # three pairs, each with and without guidance
    for call in (lambda: backend.generate(requests), lambda: backend.pipeline.warm_up(8)):
        with pytest.raises(BackendError, match=r"generate\.batch_size is 8 pairs of 32 px in float32") as caught:
            call()
        assert "Tried to allocate 2.00 GiB." in caught.value.message
        assert "generate.batch_size to 2 " in caught.value.hint
    hook.remove()
    assert len(backend.generate(requests)) == 8, "nothing is lost"


def test_a_device_on_which_nothing_fits_gets_other_advice(generator):
    backend = generator("sd2", batch_size=4)
    limit_memory(backend, rows=1)
    with pytest.raises(BackendError, match="out of memory") as caught:
        backend.generate([request()])
    assert "vae_slicing" in caught.value.hint


LOAD = """
import sys
from types import SimpleNamespace
from magicseg.core.errors import BackendError
from magicseg.stages.generate.diffusion import DiffusersGenerator
from magicseg.stages.generate.diffusion import DiffusersGenerator as Generator
for revision in sys.argv[1:]:
    options = Generator.Options(model="org/tiny", revision=revision, device="cpu", dtype="float32", steps=1)
    try:
        print(type(Generator(SimpleNamespace(size=32, batch_size=1), options).pipeline.pipe).__name__)
    except BackendError as error:
        print(error, "HINT", error.hint)
"""


@pytest.mark.slow
def test_a_name_is_loaded_from_the_hubs_cache_offline_or_refused_with_the_command_to_type(checkpoint, tmp_path):
    revision = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "hub" / "models--org--tiny" / "snapshots" / revision
    snapshot.parent.mkdir(parents=True)
    shutil.copytree(checkpoint("sd15"), snapshot)
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    other = revision[::-1]
    words = [sys.executable, "-c", LOAD, revision, other]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    loaded, missing = done.stdout.splitlines()
    assert loaded == "StableDiffusionPipeline"
    assert f"org/tiny at {other} is not in this machine's cache" in missing
    assert "magicseg fetch RUN" in missing.split("HINT")[1]


def test_a_folder_with_one_variant_alone_names_it(checkpoint, tmp_path, generator):
    folder = shutil.copytree(checkpoint("sd2"), tmp_path / "fp16")
    for file in list(folder.glob("*/*.safetensors")):
        file.rename(file.with_name(f"{file.stem}.fp16.safetensors"))
    with pytest.raises(BackendError, match="only weights of the variant fp16") as caught:
        generator(folder)
    assert caught.value.hint == "set generate.options.variant to fp16"
    assert type(generator(folder, variant="fp16").pipeline.pipe).__name__ == "StableDiffusionPipeline"


def test_stable_diffusion_3_does_without_its_t5_encoder_and_the_others_refuse(checkpoint, tmp_path, generator):
    folder = shutil.copytree(checkpoint("sd3"), tmp_path / "sd3")
    for part in ("text_encoder_3", "tokenizer_3"):
        shutil.rmtree(folder / part)
    with pytest.raises(BackendError, match="lacks the folder 'text_encoder_3'"):
        generator(folder)
    made = generator(folder, drop_t5=True)
    assert made.pipeline.pipe.text_encoder_3 is None
    assert made.pipeline.paint(["a cat", "a sofa"], [1, 2]).images.shape == (2, 32, 32, 3)
    with pytest.raises(BackendError, match="only Stable Diffusion 3"):
        generator("sd2", drop_t5=True)


def test_dropping_the_t5_encoder_is_another_data_set_and_keeping_it_is_the_one_before():
    options = DiffusersGenerator.Options(model="owner/name", revision="0" * 40)
    assert "drop_t5" not in DiffusersGenerator.identity(options)
    dropped = options.model_copy(update={"drop_t5": True})
    assert DiffusersGenerator.identity(dropped)["drop_t5"] == 1
    (weights,) = DiffusersGenerator.weights(dropped)
    assert not any("encoder_3" in name or name.startswith("*/") for name in weights.files)
