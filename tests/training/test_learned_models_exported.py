"""The exported models and their measures: loaded by the libraries' own loaders and by the back ends."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import open_clip
import pytest
import torch

from helpers import tiny_training
from helpers.tiny_training import PLAN

os.environ["HF_HUB_OFFLINE"] = "1"

from magicseg.backends import ImagePair
from magicseg.config.model import OpenClipSettings
from magicseg.data.kept_samples import KeptSamples
from magicseg.miniature.caption import parse
from magicseg.model.encoder import build_encoder
from training import autoencoder, clip, denoiser, judge, measure, painted, scenes, tokens


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with every model trained and exported: ``diffusion``, ``local-clip``, ``judge``."""
    folder = tmp_path_factory.mktemp("trained")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(painted, "CHUNK", 8)
        for kind in ("autoencoder", "denoiser", "clip", "judge"):
            tiny_training.fit(kind, folder)
    model, tokenizer, step = denoiser.load(folder / "denoiser", tiny_training.SIZES)
    assert step == PLAN.steps
    vae, _ = autoencoder.load(folder / "autoencoder", channels=tiny_training.CHANNELS)
    denoiser.export(model, vae, tokenizer, folder / "diffusion")
    towers, tokenizer, _ = clip.load(folder / "clip", tiny_training.CLIP_SIZES)
    clip.export(towers, tokenizer, folder / "local-clip", tiny_training.CLIP_SIZES)
    yield folder
    torch.set_num_threads(before)


def test_every_word_of_a_caption_is_one_token_and_no_caption_is_cut(tmp_path):
    tokenizer = tokens.write_tokenizer(tmp_path)
    for index in range(200):
        caption = scenes.scene(index, seed=1, stream="test", objects=(0.5, 0, 0.5)).caption
        ids = tokenizer(caption).input_ids
        assert len(ids) <= tokens.LENGTH
        pieces = caption.replace(",", " ,").replace("-", " - ").split()
        assert len(ids) == len(pieces) + 2, caption
    assert tokenizer.tokenize("a zebra") == ["a</w>", "z", "e", "b", "r", "a</w>"]


def test_scenes_without_objects_have_the_texts_of_both_kinds_of_counterfactual():
    captions = [scenes.scene(index, seed=0, stream="test", objects=(1.0,)).caption for index in range(40)]
    assert {"nothing" in caption for caption in captions} == {True, False}
    assert all(("empty" in caption) != ("nothing" in caption) for caption in captions)


@pytest.mark.slow
def test_the_pipeline_loads_offline_in_a_new_process(trained):
    script = (
        "import sys, torch; from diffusers import AutoPipelineForText2Image as Auto\n"
        "pipe = Auto.from_pretrained(sys.argv[1], dtype=torch.float32)\n"
        "image = pipe('a red car', num_inference_steps=2, output_type='np').images\n"
        "print(type(pipe).__name__, image.shape)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(trained / "diffusion")],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "StableDiffusionPipeline (1, 64, 64, 3)"


def test_the_exported_pipeline_is_the_trained_one_in_half_precision(trained):
    wanted = measure.requests(2)
    first, again = (measure.generate(trained / "diffusion", wanted, measure.Sampling(steps=2)) for _ in range(2))
    for pair, other in zip(first, again, strict=True):
        assert isinstance(pair, ImagePair)
        assert pair.image.shape == (64, 64, 3)
        assert np.array_equal(pair.image, other.image)
        assert pair.quality["truncated_tokens"] == 0
    files = list((trained / "diffusion").rglob("*.safetensors"))
    parameters = sum(
        value.numel()
        for part in (
            denoiser.load(trained / "denoiser", tiny_training.SIZES)[0],
            autoencoder.load(trained / "autoencoder", channels=tiny_training.CHANNELS)[0],
        )
        for value in part.state_dict().values()
    )
    assert sum(file.stat().st_size for file in files) < 2 * parameters + 100_000


def test_the_clip_is_open_clips_and_an_encoder_with_prompts(trained):
    folder = trained / "local-clip"
    model = open_clip.create_model(f"local-dir:{folder}").eval()
    towers, _, _ = clip.load(trained / "clip", tiny_training.CLIP_SIZES)
    image = scenes.scene(0, seed=0, stream="test").image
    encoder = build_encoder(OpenClipSettings(name="open-clip", weights={"model": str(folder)}))
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
    with torch.no_grad():
        own, _ = towers.images(pixels.float())
        assert encoder.layers == tiny_training.CLIP_SIZES.layers
        theirs = encoder.head(encoder.block(1, encoder.block(0, encoder.embed(pixels))))[:, 0]
        torch.testing.assert_close(torch.nn.functional.normalize(theirs, dim=-1), own, rtol=2e-2, atol=2e-2)
        text = open_clip.get_tokenizer(f"local-dir:{folder}")(["a photo of a car"])
        torch.testing.assert_close(encoder.encode_text(["a photo of a car"]), model.encode_text(text).float())


def test_measures_are_complete_and_say_which_targets_are_missed(trained, tmp_path):
    judged = judge.load(trained / "judge", widths=tiny_training.WIDTHS)
    wanted = measure.requests(10)
    pairs = measure.generate(trained / "diffusion", wanted, measure.Sampling(steps=2))
    measured = measure.measures_of([request.caption for request in wanted], pairs, judged, trained=8)
    measured |= measure.clip_measures(trained / "local-clip", 10)
    assert set(measure.TARGETS) <= set(measured)
    assert all(np.isfinite(value) for value in measured.values())
    assert "MISSES 0.90" in measure.table(measured)
    measure.save_grid(pairs, tmp_path / "pairs.png")
    assert json.loads(json.dumps(measured)) == measured


def test_pairs_that_a_run_kept_are_measured_with_their_own_captions(finished_run):
    captions, pairs = measure.kept_pairs(finished_run.path)
    kept = KeptSamples.of(finished_run)
    assert 0 < len(pairs) == len(captions) == len(kept.indices)
    labels = finished_run.plan.vocabulary.labels
    images = finished_run.store.read_images("generate/image", 0, finished_run.plan.samples)
    for index, caption, pair, planned in zip(kept.indices, captions, pairs, kept.labels(), strict=True):
        assert (pair.image == images[index]).all()
        assert (pair.counterfactual != images[index]).any()
        named = {labels[number - 1].name for number in planned if number}
        assert {one.noun for one in parse(caption).objects} == named


def test_a_copied_training_image_is_noticed():
    paint = [scenes.scene(n, seed=0, stream="test", noise=0.0).image for n in range(30)]
    trained, new = np.stack(paint[:15]), np.stack(paint[15:])
    assert measure.variety(trained[:5], new, trained)["copies"] == 1
    assert measure.variety(new, new, trained)["copies"] < 0.2


def test_agreement_falls_if_pixels_outside_the_object_change():
    empty = scenes.scene(0, seed=0, stream="test", objects=(1.0,)).image
    shown = empty.copy()
    shown[20:40, 20:40] = 255 - shown[20:40, 20:40] // 2
    pair = ImagePair(image=shown, counterfactual=empty)
    assert measure.agreement([pair])["equal_outside"] == 1
    moved = dataclasses.replace(pair, counterfactual=np.roll(empty, 9, axis=0))
    assert measure.agreement([moved])["equal_outside"] < 1
