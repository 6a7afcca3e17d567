"""Diffusion on a GPU: near the CPU's pixels, with every speed setting, and out of memory with a hint."""

import importlib.util

import numpy as np
import pytest

from helpers.gpus import DEVICE
from helpers.pair_requests import request
from magicseg.backends import ImagePair
from magicseg.core.errors import OutOfMemory

FAMILIES = ("sd15", "sdxl", "flux")
SETTINGS = {
    "channels_last": ("sd15", {"channels_last": True}),
    "fuse_qkv": ("sd15", {"fuse_qkv": True}),
    "compile denoiser": ("sd15", {"compile": "denoiser"}),
    "compile regional": ("flux", {"compile": "regional"}),
    "all exact": ("flux", {"channels_last": True, "fuse_qkv": True, "compile": "regional", "attention": "cudnn"}),
    "attention cudnn": ("flux", {"attention": "cudnn"}),
    "attention native-flash": ("flux", {"attention": "native-flash"}),
    "offload model": ("sdxl", {"offload": "model"}),
    "offload group": ("sdxl", {"offload": "group"}),
    "offload sequential": ("sdxl", {"offload": "sequential"}),
}
LOSSY = {
    **{f"cache {name}": {"cache": {"method": name}} for name in ("first-block", "mag", "pyramid", "faster")},
    "cache taylorseer": {"cache": {"method": "taylorseer", "first_step": 1}},
    "cache, compiled": {"cache": {"method": "first-block"}, "compile": "regional", "fuse_qkv": True},
    **{f"quantization {name}": {"quantization": name} for name in ("int8-weights", "int8", "fp8-weights", "fp8")},
}


def images_of(backend, count=1):
    answers = backend.generate([request(index) for index in range(count)])
    assert all(isinstance(answer, ImagePair) for answer in answers), answers
    return np.stack([image for answer in answers for image in (answer.image, answer.counterfactual)]).astype(int)


@pytest.mark.parametrize("family", FAMILIES)
def test_pixels_are_near_the_cpus(family, generator):
    on_gpu = images_of(generator(family, batch_size=2), count=3)
    on_cpu = images_of(generator(family, batch_size=2, device="cpu"), count=3)
    assert np.abs(on_gpu - on_cpu).mean() < 1
    assert np.abs(on_gpu[0] - on_gpu[1]).mean() > 1


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_call_gives_the_same_bits(family, generator):
    backend = generator(family, dtype="bfloat16")
    assert np.array_equal(images_of(backend), images_of(backend))


@pytest.mark.parametrize("name", SETTINGS)
def test_an_exact_speed_setting_leaves_the_image(name, generator):
    family, settings = SETTINGS[name]
    before = images_of(generator(family, dtype="bfloat16"))
    after = images_of(generator(family, dtype="bfloat16", **settings))
    assert np.abs(after - before).mean() < 4


@pytest.mark.parametrize("name", LOSSY)
def test_a_lossy_speed_setting_runs(name, generator):
    if "quantization" in name and importlib.util.find_spec("torchao") is None:
        pytest.skip("torchao is not installed")
    images = images_of(generator("flux", dtype="bfloat16", steps=6, **LOSSY[name]))
    assert images.std() > 1


def test_a_batch_that_is_too_large_names_one_that_fits(little_memory, generator):
    with pytest.raises(OutOfMemory, match=r"generate\.batch_size is 64 pairs of 256 px") as caught:
        generator("sd2", size=256, batch_size=64)
    assert f"{DEVICE} is out of memory" in caught.value.message
    fitting = int(caught.value.hint.split()[0])
    assert caught.value.hint.startswith(f"{fitting} fits: set generate.batch_size to {fitting}")
    assert len(images_of(generator("sd2", size=256, batch_size=fitting))) == 2
