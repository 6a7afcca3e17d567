"""The shipped weights: intact, small enough, and loadable offline."""

import hashlib
import json
import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pytest

import magicseg.miniature
from magicseg.backends import GenerateRequest
from magicseg.config.model import OpenClipSettings
from magicseg.labels import load_vocabulary
from magicseg.model.encoder import build_encoder
from magicseg.stages.generate.diffusion import DiffusersGenerator

WEIGHTS = Path(magicseg.miniature.__file__).parent / "weights"

pytestmark = pytest.mark.skipif(not WEIGHTS.is_dir(), reason="this version ships no learned weights")


def test_the_shipped_weights_match_their_digests_and_size_limit():
    digests = json.loads((WEIGHTS / "digests.json").read_text())
    files = {file.relative_to(WEIGHTS).as_posix(): file for file in WEIGHTS.glob("*/**/*") if file.is_file()}
    assert digests == {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items()}
    assert sum(file.stat().st_size for file in files.values()) < 15_000_000
    package = (file for file in WEIGHTS.parents[1].rglob("*") if "__pycache__" not in file.parts and file.is_file())
    assert sum(file.stat().st_size for file in package) < 25_000_000
    assert {"diffusion/README.md", "diffusion/model_index.json", "clip/README.md"} <= files.keys()


def test_the_shipped_weights_load_with_their_libraries_without_magicseg():
    import open_clip
    import torch
    from diffusers import AutoPipelineForText2Image

    pipeline = AutoPipelineForText2Image.from_pretrained(WEIGHTS / "diffusion", torch_dtype=torch.float32)
    made = pipeline("A large red car on the left, on a beach at noon", num_inference_steps=1, output_type="np")
    assert made.images.shape == (1, 64, 64, 3)
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{WEIGHTS / 'clip'}")
    text = open_clip.get_tokenizer(f"local-dir:{WEIGHTS / 'clip'}")(["a photo of a car"])
    assert model.encode_text(text).shape[0] == 1


def _car():
    caption, empty = "A photo of a large red car on the left, on a beach at noon", "A photo of an empty beach at noon"
    label = load_vocabulary("miniature").by_name("car")
    return GenerateRequest(index=0, labels=(label,), caption=caption, counterfactual=empty, seed=0)


def test_the_shipped_generator_makes_a_pair(models_apart):
    class Stage:
        size = 64
        batch_size = 1

    options = DiffusersGenerator.Options(
        model=str(WEIGHTS / "diffusion"), device="cpu", dtype="float32", steps=4, noise="shared", guidance=3
    )
    (pair,) = DiffusersGenerator(Stage(), options).generate([_car()])
    assert pair.image.shape == pair.counterfactual.shape == (64, 64, 3)
    assert not np.array_equal(pair.image, pair.counterfactual)


def test_the_shipped_clip_is_an_encoder():
    settings = OpenClipSettings(name="open-clip", weights={"model": str(WEIGHTS / "clip")})
    encoder = build_encoder(settings)
    assert encoder.encode_text(["a photo of a car"]).shape == (1, encoder.embed_dim)
