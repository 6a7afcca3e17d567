"""Settings that make the pipeline faster or smaller: what they change, and who refuses them."""

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from pydantic import ValidationError

from helpers.pair_requests import request
from magicseg.config.loading import load_config, preset_names
from magicseg.core.dotted_keys import flattened
from magicseg.core.errors import BackendError
from magicseg.run.fingerprint import stage_fingerprints
from magicseg.stages.generate import acceleration
from magicseg.stages.generate.diffusers_options import DiffusersOptions
from magicseg.weights.manifest import Manifest

NAME = {"model": "org/model", "revision": "0123456789abcdef0123456789abcdef01234567"}
ON_CPU = {**NAME, "device": "cpu", "dtype": "float32"}
CACHES = [
    {"method": "first-block", "threshold": 0.3},
    {"method": "mag", "threshold": 0.9},
    {"method": "pyramid"},
    {"method": "faster"},
    {"method": "taylorseer", "interval": 3, "first_step": 2},
]
FIRST_BLOCK = CACHES[0]


def pixels(backend, count=3):
    """Both images of the first pairs, as integers."""
    pairs = backend.generate([request(index) for index in range(count)])
    return np.stack([(pair.image, pair.counterfactual) for pair in pairs]).astype(int)


# Settings


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({**ON_CPU, "attention": "cudnn"}, "is for cuda"),
        ({**NAME, "dtype": "float32", "attention": "sage"}, "float16 or bfloat16"),
        ({**NAME, "attention_slicing": True, "fuse_qkv": True}, "attention_slicing"),
        ({**NAME, "attention_slicing": True, "attention": "flash"}, "attention_slicing"),
        ({**NAME, "attention": "fastest"}, "native"),
        ({**NAME, "compile": "blocks"}, "regional"),
        ({**NAME, "cache": {"method": "first-block", "threshold": 0}}, "greater than 0"),
        ({**NAME, "cache": {"method": "first-block", "every": 3}}, "Extra"),
        ({**NAME, "cache": {"method": "pyramid", "timesteps": (800, 100)}}, "below the second"),
        ({**NAME, "cache": {"method": "tea"}}, "first-block"),
        ({**NAME, "quantization": "int8"}, "bfloat16"),
        ({**ON_CPU, "dtype": "bfloat16", "quantization": "fp8"}, "fp8-weights"),
        ({**NAME, "dtype": "bfloat16", "quantization": "fp8", "fuse_qkv": True}, "fuse_qkv"),
        ({**NAME, "dtype": "bfloat16", "quantization": "fp8", "offload": "group"}, "offload"),
        ({**ON_CPU, "offload": "group"}, "offload is for cuda"),
    ],
)
def test_settings_that_do_not_fit_are_refused(options, told):
    with pytest.raises(ValidationError, match=told):
        DiffusersOptions(**options)


def test_a_cache_and_inpainting_do_not_go_together():
    model = {"backend": "transformers", "options": NAME}
    found = {"detector": model, "segmenter": model}
    with pytest.raises(ValidationError, match="cache does not work"):
        DiffusersOptions(**NAME, counterfactual="inpaint", inpaint=found, cache=FIRST_BLOCK)


@pytest.mark.parametrize(("older", "now"), [(False, "off"), (True, "denoiser")])
def test_compile_of_older_runs_keeps_its_meaning_and_its_value_in_documents(older, now):
    options = DiffusersOptions(**NAME, compile=older)
    assert options.compile == now
    assert options == DiffusersOptions(**NAME, compile=now)
    assert options.model_dump(mode="json")["compile"] is older


SETTINGS = {
    "attention": "native",
    "fuse_qkv": True,
    "channels_last": True,
    "cache": FIRST_BLOCK,
    "quantization": "int8",
    "compile": "regional",
    "offload": "group",
}


def generate_inputs(**options):
    config = load_config(preset="flux")
    chosen = config.generate.options | options
    config = config.model_copy(update={"generate": config.generate.model_copy(update={"options": chosen})})
    return stage_fingerprints(config, "plan", Manifest())["generate"]


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_is_in_the_fingerprint_when_it_is_set(name):
    before, after = generate_inputs(), generate_inputs(**{name: SETTINGS[name]})
    assert before.digest != after.digest
    changed = {key for key in before.inputs.keys() | after.inputs if before.inputs.get(key) != after.inputs.get(key)}
    assert changed == {f"generate.options.{key}" for key in flattened({name: SETTINGS[name]})}


@pytest.mark.parametrize("name", sorted(DiffusersOptions.LATER))
def test_a_default_that_is_written_out_changes_no_fingerprint(name):
    default = DiffusersOptions.model_fields[name].default
    assert generate_inputs() == generate_inputs(**{name: default})


def test_the_large_presets_say_which_settings_change_pixels():
    for name in set(preset_names()) - {"miniature", "painted"}:
        text = (Path(acceleration.__file__).parents[2] / "presets" / f"{name}.yaml").read_text(encoding="utf-8")
        bits, visibly = text.index("# Change the last bits"), text.index("# Change pixels visibly")
        for setting in ("channels_last", "fuse_qkv", "compile"):
            assert bits < text.index(setting) < visibly, (name, setting)
        assert text.index("quantization") > visibly
        assert ("cache" in text) == ("attention" in text) == (name == "flux"), "UNets have neither"


# What they do


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd15", "sdxl", "flux", "sd3"])
@pytest.mark.parametrize("setting", ["fuse_qkv", "channels_last"])
def test_settings_of_the_layout_make_the_same_image_in_other_bits(family, setting, generator):
    backend = generator(family, **{setting: True})
    assert np.abs(pixels(backend) - pixels(generator(family))).max() <= 2
    denoiser = acceleration.denoiser_of(backend.pipeline.pipe)
    if setting == "fuse_qkv":
        assert any(getattr(module, "fused_projections", False) for module in denoiser.modules())
    else:
        convolutions = [
            each.weight for each in backend.pipeline.pipe.vae.modules() if isinstance(each, torch.nn.Conv2d)
        ]
        assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in convolutions)


def test_the_attention_back_end_is_used_by_this_model_only(generator, monkeypatch):
    default = _AttentionBackendRegistry.get_active_backend()[0]
    backend = generator("flux", attention="math")
    assert _AttentionBackendRegistry.get_active_backend()[0] == default
    called = []
    (name,) = [name for name in _AttentionBackendRegistry.list_backends() if name.value == "_native_math"]
    plain = _AttentionBackendRegistry._backends[name]
    monkeypatch.setitem(_AttentionBackendRegistry._backends, name, lambda **named: called.append(1) or plain(**named))
    assert np.abs(pixels(backend) - pixels(generator("flux"))).max() <= 2
    blocks, steps, batches = 2, 2, 2
    assert len(called) == blocks * steps * batches, "the other generator does not use it"


@pytest.mark.parametrize("family", ["sd15", "sd3", "pixart_alpha"])
def test_an_attention_back_end_without_effect_is_refused(family, generator):
    with pytest.raises(BackendError, match=r"attention is native: .* no effect") as caught:
        generator(family, attention="native")
    assert "default" in caught.value.hint


@pytest.mark.parametrize(("name", "package"), [("flash", "flash-attn"), ("sage", "sageattention")])
def test_a_missing_attention_library_is_named(name, package, generator):
    if importlib.util.find_spec(package.replace("-", "_")):
        pytest.skip(f"{package} is installed")
    denoiser = acceleration.denoiser_of(generator("flux").pipeline.pipe)
    with pytest.raises(BackendError, match=f"generate.options.attention is {name}: ") as caught:
        acceleration._set_attention(denoiser, name, "Flux")
    assert caught.value.hint.startswith(f"pip install {package}")


@pytest.mark.slow
@pytest.mark.parametrize("cache", CACHES, ids=lambda cache: cache["method"])
def test_a_cache_changes_pixels_a_little_and_repeats_them(cache, generator):
    backend = generator("flux", batch_size=1, steps=6, cache=cache)
    cached, plain = pixels(backend), pixels(generator("flux", batch_size=1, steps=6))
    assert 0 < np.abs(cached - plain).mean() < 3
    assert np.array_equal(cached, pixels(backend)), "nothing is left of the call before"


def test_a_first_block_threshold_that_no_step_passes_changes_nothing(generator):
    exact = generator("flux", batch_size=1, steps=4, cache={"method": "first-block", "threshold": 1e-9})
    assert np.array_equal(pixels(exact), pixels(generator("flux", batch_size=1, steps=4)))


def test_first_block_is_refused_for_batches_of_several_pairs(generator):
    with pytest.raises(BackendError, match=r"first-block decides for a whole batch") as caught:
        generator("flux", batch_size=2, cache=FIRST_BLOCK)
    assert "generate.batch_size=1" in caught.value.hint


def test_a_failed_call_leaves_nothing_in_the_cache(generator, monkeypatch):
    backend = generator("flux", batch_size=1, steps=6, cache=FIRST_BLOCK)
    before = pixels(backend)
    pipe = backend.pipeline.pipe
    step, calls = pipe.scheduler.step, []

    def fail_in_the_third(*arguments, **named):
        calls.append(1)
        if len(calls) == 3:
            raise ValueError("a fault between two steps")
        return step(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(pipe.scheduler, "step", fail_in_the_third)
        with pytest.raises(ValueError, match="between two steps"):
            backend.generate([request(5)])
    assert np.array_equal(before, pixels(backend))


@pytest.mark.parametrize("family", ["sd15", "sdxl", "sd3", "pixart_sigma"])
def test_a_cache_is_refused_where_the_family_has_none(family, generator):
    with pytest.raises(BackendError, match=r"generate\.options\.cache: caches across steps are for Flux") as caught:
        generator(family, batch_size=1, cache=FIRST_BLOCK)
    assert "null" in caught.value.hint


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd15", "sdxl", "flux", "sd3"])
def test_group_offload_keeps_the_pixels(family, generator, monkeypatch):
    """The CPU stands in for the GPU: the hooks of every layer run, but they copy no weights between devices."""
    plain = pixels(generator(family))
    monkeypatch.setattr(acceleration, "_move", lambda pipe, _options: acceleration.offload_groups(pipe, "cpu"))
    assert np.array_equal(plain, pixels(generator(family)))


@pytest.mark.parametrize("family", ["sd3", "pixart_alpha"])
def test_regional_compilation_is_refused_where_no_blocks_are_named(family, generator):
    with pytest.raises(BackendError, match="compile is regional: diffusers names no repeated blocks") as caught:
        generator(family, compile="regional")
    assert "denoiser" in caught.value.hint


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
def test_compiled_blocks_repeat_their_bits(generator, quick_linker):
    backend = generator("flux", compile="regional")
    compiled = pixels(backend)
    assert np.array_equal(compiled, pixels(backend))
    assert np.abs(compiled - pixels(generator("flux"))).max() <= 8


def test_a_model_that_torch_cannot_compile_is_refused(generator, monkeypatch):
    """The compiler's error is a stand-in."""

    def fails(*_arguments, **_named):
        raise torch._dynamo.exc.TorchDynamoException("InvalidCxxCompiler: no C++ compiler\nlong trace")

    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **_named: setattr(module, "forward", fails))
    with pytest.raises(BackendError, match="compile is denoiser: torch cannot compile") as caught:
        generator("flux", compile="denoiser")
    assert "compile to off" in caught.value.hint
    assert "long trace" not in caught.value.message


# Quantization


def test_without_torchao_the_error_names_it(generator, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        acceleration.importlib.util, "find_spec", lambda name, *rest: None if name == "torchao" else find(name, *rest)
    )
    with pytest.raises(BackendError, match="quantization is int8: torchao is not installed") as caught:
        generator("flux", dtype="bfloat16", quantization="int8")
    assert "pip install 'magicseg[quantization]'" in caught.value.hint


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd15", "flux"])
@pytest.mark.parametrize("name", ["int8-weights", "int8", "fp8-weights"])
def test_a_quantized_denoiser_makes_nearly_the_same_image(family, name, generator):
    pytest.importorskip("torchao", reason="torchao is not installed")
    plain = pixels(generator(family, dtype="bfloat16"))
    backend = generator(family, dtype="bfloat16", quantization=name)
    quantized = pixels(backend)
    assert 0 < np.abs(quantized - plain).mean() < 3
    assert np.array_equal(quantized, pixels(backend))


# Text


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd15", "sdxl", "sd3", "pixart_alpha"])
def test_each_caption_is_encoded_once(family, generator, monkeypatch):
    backend, encoded = generator(family, batch_size=1, guidance=5.0, negative_prompt="red"), []
    pipe = backend.pipeline.pipe
    encoders = [getattr(pipe, f"text_encoder{end}", None) for end in ("", "_2", "_3")]
    encoders = [encoder for encoder in encoders if encoder is not None]
    for encoder in encoders:
        plain = encoder.forward
        monkeypatch.setattr(
            encoder,
            "forward",
            lambda *rows, _plain=plain, **named: encoded.append(rows[0].tolist()) or _plain(*rows, **named),
        )
    pixels(backend)
    captions = [rows for rows in encoded if rows[0] != rows[1]]
    assert len(captions) == 3 * len(encoders)
