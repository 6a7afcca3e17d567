"""CLIP as a judge of whole images, against open_clip's own model and tokenizer."""

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from helpers import tiny_clip
from helpers.tiny_runs import do, make_run
from magicseg.backends import DetectRequest
from magicseg.config.finding import FindOptions
from magicseg.core.errors import BackendError, ConfigError
from magicseg.labels import Label
from magicseg.vision.batches import HasBatch
from magicseg.vision.finder import Finder
from magicseg.vision.shipped_models import ClipDetector

CAT, DOG = Label(id=1, name="cat"), Label(id=2, name="dog")
AGAINST = ["dog", "cat", "empty scene"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("clip")
    tiny_clip.build("open_clip", made)
    return made / "open_clip"


def detector(folder, *, batch_size=3, **options):
    chosen = ClipDetector.Options(**{"model": str(folder), "device": "cpu", "against": AGAINST, **options})
    return ClipDetector(HasBatch(batch_size), chosen)


def pictures(count, size=32):
    return list(np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8))


def shares_by_open_clip(folder: Path, image, texts):
    """The softmax over texts at the model's temperature, by the library itself."""
    model = open_clip.create_model(f"local-dir:{folder}").eval()
    with torch.no_grad():
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
        mean, std = (torch.tensor(value).view(3, 1, 1) for value in (tiny_clip.MEAN, tiny_clip.STD))
        seen = F.normalize(model.encode_image((pixels - mean) / std), dim=-1)
        told = F.normalize(model.encode_text(open_clip.tokenize(texts)), dim=-1)
        return (model.logit_scale.exp() * seen @ told.T).softmax(dim=-1)[0]


def test_a_score_is_the_labels_share_by_clip_itself(folder):
    images = pictures(4)
    found = detector(folder).detect([DetectRequest(image=image, labels=(CAT,)) for image in images])
    for image, one in zip(images, found, strict=True):
        texts = [f"a photo of a {name}" for name in ("cat", "dog", "empty scene")]
        expected = float(shares_by_open_clip(folder, image, texts)[0])
        assert one.scores.shape == (1, 1)
        assert float(one.scores[0, 0]) == pytest.approx(expected, abs=1e-5)
        assert one.confidence[0] == one.scores[0, 0]
        assert one.boxes.tolist() == [[0, 0, 32, 32]]


def test_labels_that_were_asked_for_do_not_compete_with_each_other(folder):
    (image,) = pictures(1)
    (both,) = detector(folder).detect([DetectRequest(image=image, labels=(CAT, DOG))])
    for place, name in enumerate(("cat", "dog")):
        texts = [f"a photo of a {each}" for each in (name, "empty scene")]
        assert float(both.scores[place, place]) == pytest.approx(
            float(shares_by_open_clip(folder, image, texts)[0]), abs=1e-5
        )
    assert both.scores[0, 1] == both.scores[1, 0] == 0


def test_other_sizes_are_resized_to_the_models_own(folder):
    (small,) = pictures(1)
    large = np.asarray(Image.fromarray(small).resize((64, 64), Image.Resampling.NEAREST))
    one, two = (
        detector(folder).detect([DetectRequest(image=image, labels=(CAT,))])[0].scores for image in (small, large)
    )
    assert one == pytest.approx(two, abs=0.02)


def test_batches_change_nothing(folder):
    asked = [DetectRequest(image=image, labels=(CAT,)) for image in pictures(5)]
    whole = [one.scores for one in detector(folder, batch_size=3).detect(asked)]
    parts = [one.scores for request in asked for one in detector(folder, batch_size=3).detect([request])]
    assert np.allclose(np.stack(whole), np.stack(parts), atol=1e-6)


def test_a_finder_takes_it_for_found_above_the_threshold(folder):
    (image,) = pictures(1)
    options = {"model": str(folder), "device": "cpu", "against": AGAINST}
    for threshold, count in ((0.0, 1), (1.0, 0)):
        chosen = FindOptions(
            detector={"backend": "clip", "options": options}, box_threshold=threshold, text_threshold=threshold
        )
        (objects,) = Finder(chosen, HasBatch(1)).find([DetectRequest(image=image, labels=(CAT,))])
        assert len(objects) == count
        assert 0 < float(objects.best[0]) < 1


def test_it_is_the_judge_of_a_runs_pairs(tmp_path, folder):
    def kept(threshold):
        validity = {
            "detector": {
                "backend": "clip",
                "options": {"model": str(folder), "device": "cpu", "against": ["car", "tree", "empty scene"]},
            },
            "box_threshold": threshold,
            "text_threshold": threshold,
            "retries": 0,
        }
        run = make_run(tmp_path / f"run-{threshold}", "plan.samples=16", f"generate.validity={json.dumps(validity)}")
        do(run, "describe", "generate")
        qualities = [json.loads(text) for text in run.store.read("generate/quality", 0, 16)]
        assert "generate.weights.validity.detector.options.model" in run.fingerprints["generate"].inputs
        return [one.get("reason", one["status"]) for one in qualities]

    assert set(kept(0.0)) == {"object-remains"}  # it sees everything everywhere
    assert set(kept(1.0)) == {"object-missing"}


def test_faults_are_told(folder, tmp_path):
    missing = {"backend": "clip", "options": {"model": str(tmp_path / "none"), "device": "cpu", "against": ["cat"]}}
    with pytest.raises(BackendError, match="no such folder"):
        do(
            make_run(tmp_path / "run", f"generate.validity={json.dumps({'detector': missing})}"),
            "describe",
            "generate",
        )
    with pytest.raises(ConfigError, match="ViT-9"):
        detector(folder, architecture="ViT-9")
    with pytest.raises(ValueError, match="no_such_set"):
        detector(folder, class_prompt="no_such_set")
    with pytest.raises(ValueError, match="against"):
        ClipDetector.Options(model=str(folder), device="cpu", against=[])
