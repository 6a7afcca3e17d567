"""The small detector and segmenter: their training data, and their export as the back ends load it."""

import dataclasses

import numpy as np
import pytest
import torch

from helpers import tiny_training
from helpers.tiny_training import PLAN
from magicseg.backends import DetectRequest, SegmentRequest
from magicseg.vision.batches import HasBatch
from magicseg.vision.model_options import DetectorOptions, SegmenterOptions
from magicseg.vision.transformers_detector import load_detector
from magicseg.vision.transformers_segmenter import load_segmenter
from training import detector, painted, scenes, segmenter


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(painted, "CHUNK", 8)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Folders of both, after one step."""
    folder = tmp_path_factory.mktemp("exported")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(painted, "CHUNK", 8)
        for kind, module in (("detector", detector), ("segmenter", segmenter)):
            tiny_training.fit(kind, folder / "work", dataclasses.replace(PLAN, steps=1, cooldown=0))
            module.export(folder / "work" / kind, folder / kind)
    return folder


def test_boxes_are_those_of_the_objects():
    mask = torch.zeros(8, 8, dtype=torch.uint8)
    mask[1:5, 2:8] = 3
    mask[6, 0] = 1
    assert detector.boxes_of(mask) == ([0, 2], [[1 / 16, 13 / 16, 1 / 8, 1 / 8], [5 / 8, 3 / 8, 6 / 8, 4 / 8]])
    assert detector.boxes_of(torch.zeros(8, 8, dtype=torch.uint8)) == ([], [])


def test_the_exported_detector_looks_for_labels_in_an_image(exported):
    options = DetectorOptions(model=str(exported / "detector"), device="cpu", dtype="float32")
    loaded = load_detector(options, exported / "detector", HasBatch(2))
    image = scenes.scene(0, seed=5, stream="test", objects=(0, 1)).image
    labels = tuple(scenes.vocabulary().by_name(name) for name in ("car", "mushroom"))
    (found,) = loaded.detect([DetectRequest(image=image, labels=labels)])
    assert found.boxes.shape == (20, 4)
    assert found.scores.shape == (20, 2)
    assert np.isfinite(found.boxes).all()


def test_training_and_back_end_see_the_same_pixels(exported):
    image = scenes.scene(0, seed=5, stream="test", objects=(0, 1)).image
    theirs = detector.processor().image_processor(images=[image], return_tensors="pt")["pixel_values"]
    ours = detector.pixels_of(torch.from_numpy(image).permute(2, 0, 1)[None].float())
    assert torch.allclose(ours, theirs, atol=0.02)  # the processor rounds to whole grey values in between


def test_every_word_of_the_detector_s_text_is_one_token():
    text = " ".join(f"{noun}." for noun in scenes.nouns())
    assert len(detector.tokenizer()(text)["input_ids"]) == 2 * len(scenes.nouns()) + 2


def test_the_exported_segmenter_outlines_a_box(exported):
    options = SegmenterOptions(model=str(exported / "segmenter"), device="cpu", dtype="float32")
    loaded = load_segmenter(options, exported / "segmenter", HasBatch(2))
    image = scenes.scene(0, seed=5, stream="test", objects=(0, 1)).image
    boxes = np.array([[8, 8, 40, 40], [0, 0, 64, 64]], np.float32)
    (found,) = loaded.segment([SegmentRequest(image=image, boxes=boxes)])
    assert found.logits.shape == (2, 64, 64)
