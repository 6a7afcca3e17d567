"""Counterfactuals by removal: the object's pixels are filled, all others are the image's own."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from helpers.pair_requests import request
from helpers.tiny_runs import change, do, make_run
from magicseg.backends import ImagePair, Rejection, SegmentRequest
from magicseg.core.errors import BackendError, PlanMismatch
from magicseg.run import Run
from magicseg.run.digest import logical_digest
from magicseg.stages.generate.inpainting import grown

pytestmark = pytest.mark.usefixtures("faulty")

MODELS = {"detector": {"backend": "corner"}, "segmenter": {"backend": "patches"}}


def requests(count):
    return [request(index) for index in range(count)]


def removing(**more):
    return {"counterfactual": "inpaint", "inpaint": MODELS | more}


@pytest.mark.parametrize("family", ["sd15", "sd2", "sdxl", "sd3", "flux"])
def test_only_the_object_s_pixels_change(family, generator):
    backend = generator(family, batch_size=3, steps=3, **removing(grow=0.07))
    pairs = backend.generate(requests(3))
    expected = np.zeros((32, 32), bool)
    expected[4 - 2 : 16 + 2, 4 - 2 : 16 + 2] = True
    for pair in pairs:
        assert isinstance(pair, ImagePair), pair
        changed = (pair.image != pair.counterfactual).any(axis=2)
        assert not changed[~expected].any()
        assert changed[expected].mean() > 0.5
        assert pair.quality["object-missing"] == 0


def test_the_image_is_that_of_the_other_methods_and_does_not_hang_on_the_neighbours(generator):
    asked = requests(3)
    backend = generator("sd2", batch_size=3, **removing())
    together = backend.generate(asked)
    (alone,) = backend.generate(asked[1:2])
    assert np.array_equal(alone.image, together[1].image)
    assert np.array_equal(alone.counterfactual, together[1].counterfactual)
    for one, two in zip(together, backend.generate(asked), strict=True):
        assert np.array_equal(one.counterfactual, two.counterfactual)


def test_an_image_without_its_object_is_painted_again_and_then_given_up(generator):
    values = sorted(pair.image[0, 0, 0] for pair in generator("sd2", batch_size=4).generate(requests(8)))
    limit = int(values[4])
    inpaint = MODELS | {"detector": {"backend": "corner", "options": {"missing_below": limit}}}
    backend = generator("sd2", batch_size=4, retries=12, counterfactual="inpaint", inpaint=inpaint)
    pairs = backend.generate(requests(8))
    assert all(isinstance(pair, ImagePair) and pair.image[0, 0, 0] >= limit for pair in pairs)
    assert sum(pair.quality["object-missing"] for pair in pairs) > 0
    assert all(pair.quality["attempts"] == pair.quality["object-missing"] + 1 for pair in pairs)

    inpaint = MODELS | {"detector": {"backend": "corner", "options": {"missing_below": 256}}}
    backend = generator("sd2", batch_size=4, retries=1, counterfactual="inpaint", inpaint=inpaint)
    (answer,) = backend.generate(requests(1))
    assert answer == Rejection(
        reason="object-missing", detail="2 attempts: image object-missing, image object-missing"
    )


def test_a_detector_that_gives_masks_removes_objects_without_a_segmenter(generator, monkeypatch):
    from patch_backends import CornerDetector, PatchSegmenter

    two_steps = generator("sd2", batch_size=2, **removing()).generate(requests(2))
    detect = CornerDetector.detect

    def with_masks(self, asked):
        found = detect(self, asked)
        segmented = [
            SegmentRequest(image=one.image, boxes=each.boxes) for one, each in zip(asked, found, strict=True)
        ]
        outlines = PatchSegmenter.segment(self, segmented)
        return [replace(each, masks=drawn.logits) for each, drawn in zip(found, outlines, strict=True)]

    monkeypatch.setattr(CornerDetector, "GIVES_MASKS", True, raising=False)
    monkeypatch.setattr(CornerDetector, "detect", with_masks)
    one_step = generator("sd2", batch_size=2, **removing(segmenter=None)).generate(requests(2))
    for one, other in zip(one_step, two_steps, strict=True):
        assert np.array_equal(one.counterfactual, other.counterfactual)


def test_a_batch_that_cannot_be_filled_names_one_that_can(generator):
    backend = generator("sd2", batch_size=4, **removing())
    whole = backend._remover._pipe.__class__.__call__

    def filling_two(pipe, **arguments):
        if len(arguments["prompt"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return whole(pipe, **arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend._remover._pipe.__class__, "__call__", filling_two)
        with pytest.raises(BackendError, match=r"generate\.batch_size is 4: no memory to fill so many") as caught:
            backend.generate(requests(4))
    assert caught.value.hint.startswith("2 fits: set generate.batch_size to 2")


def test_a_hole_that_is_most_of_the_image_is_no_counterfactual(generator):
    backend = generator("sd2", retries=0, **removing(max_area=0.1))
    assert backend.generate(requests(1))[0].reason == "object-too-large"


@pytest.mark.parametrize("family", ["lcm", "pixart_alpha"])
def test_families_without_inpainting_say_so(family, generator):
    with pytest.raises(BackendError, match="inpaint is not possible with"):
        generator(family, **removing())


def test_settings_that_do_not_go_together_are_refused(generator):
    for wrong, words in (
        ({"counterfactual": "inpaint"}, "go together"),
        ({"inpaint": MODELS}, "go together"),
        (removing() | {"noise": "shared"}, "no effect"),
        (removing(strength=0.1), "leaves none"),
    ):
        with pytest.raises(ValidationError, match=words):
            generator("sd2", **wrong)


def test_a_margin_is_added_around_the_object():
    inside = np.zeros((20, 20), bool)
    inside[8:10, 8:12] = True
    assert np.array_equal(grown(inside, 0), inside)
    assert np.argwhere(grown(inside, 0.1)).min(axis=0).tolist() == [6, 6]
    assert grown(inside, 0.1).sum() == 6 * 8


@pytest.mark.slow
def test_a_run_with_removal_repeats_and_is_fingerprinted(checkpoint, tmp_path):
    model = checkpoint("sd2")
    overrides = [
        "plan.samples=12",
        "plan.shard_size=5",
        "generate.backend=diffusers",
        "generate.batch_size=2",
        f"generate.options={{model: {model}, device: cpu, dtype: float32, steps: 2, counterfactual: inpaint, "
        "inpaint: {detector: {backend: corner}, segmenter: {backend: patches}}}",
    ]
    one, two = (make_run(tmp_path / name, *overrides) for name in ("one", "two"))
    do(one)
    for stage in ("describe", "generate", "mask"):
        do(two, stage, shards=[1, 2, 0])
    assert logical_digest(one) == logical_digest(two)
    entries = [json.loads(text) for text in one.store.read("mask/quality", 0, 12)]
    assert all(entry["status"] == "kept" for entry in entries), "the difference of the pair is the object"
    change(one, "generate.options.inpaint.grow", 0.1)
    with pytest.raises(PlanMismatch, match=r"inpaint\.grow is 0\.1, was 0\.03"):
        Run.open(one.path).checked_commits("generate")
