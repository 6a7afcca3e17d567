"""The masker of detector and segmenter, in a world where both see without faults."""

import json

import numpy as np
import pytest

from helpers.mask_requests import labels
from helpers.tiny_runs import change, do, make_run
from magicseg.backends import GenerateRequest, Masked, MaskRequest, Rejection
from magicseg.core.errors import BackendError, PlanMismatch
from magicseg.labels import IGNORE
from magicseg.run import Run
from magicseg.stages.mask.detect_segment import DetectSegmentMasker

pytestmark = pytest.mark.usefixtures("faulty")

MODELS = {"detector": {"backend": "patches"}, "segmenter": {"backend": "patches"}}


def colour(label):
    import patch_backends  # there while a test runs

    return patch_backends.colour(label)


class Stage:
    """What back ends need of a stage's settings."""

    size = 48
    batch_size = 4


def masker(**options):
    return DetectSegmentMasker(Stage(), DetectSegmentMasker.Options.model_validate({**MODELS, **options}))


def request(*names, seed=1, **options):
    from patch_backends import Patches

    asked = GenerateRequest(index=0, labels=labels(*names), caption="", counterfactual="", seed=seed)
    (pair,) = Patches(Stage(), Patches.Options(**options)).generate([asked])
    return MaskRequest(
        index=0, labels=asked.labels, caption="", image=pair.image, counterfactual=pair.counterfactual, seed=0
    )


def truth(asked):
    mask = np.zeros(asked.image.shape[:2], np.uint16)
    for label in asked.labels:
        mask[(asked.image == colour(label)).all(axis=2)] = label.id
    return mask


def reason(answer):
    assert isinstance(answer, Rejection), answer
    return answer.reason


def test_every_label_s_pixels_get_its_id():
    asked = [request("cat", seed=1), request("cat", "dog", seed=2), request("dog", "bird", seed=3)]
    for answer, one in zip(masker().mask(asked), asked, strict=True):
        assert isinstance(answer, Masked)
        assert np.array_equal(answer.mask, truth(one))
        assert answer.quality["objects"] == len(one.labels)
        assert answer.quality["scores"] == pytest.approx([0.9] * len(one.labels))
        assert answer.quality["areas"] == pytest.approx([12 * 16 / 48**2] * len(one.labels), abs=1e-4)
        assert answer.quality["box_agreement"] == 1
        assert answer.quality["outline_quality"] == pytest.approx(0.8)
        assert answer.quality["counterfactual_score"] == pytest.approx(0.1)


def test_unsure_borders_may_become_ignore():
    asked = request("cat")
    (answer,) = masker(border_margin=1).mask([asked])
    assert (answer.mask == IGNORE).sum() == 12 * 16 - 10 * 14


def test_a_pair_without_its_object_is_dropped():
    (answer,) = masker().mask([request("cat", "dog", forget=4)])
    assert reason(answer) == "object-missing"
    assert answer.detail == "cat: best score 0.100"


def test_of_two_labels_one_may_be_missing_if_the_settings_say_so():
    asked = request("cat", "dog")
    asked.image[(asked.image == colour(asked.labels[1])).all(axis=2)] = 90
    dropped, kept = masker().mask([asked])[0], masker(missing_labels="keep").mask([asked])[0]
    assert reason(dropped) == "object-missing"
    assert dropped.detail.startswith("dog")
    assert set(np.unique(kept.mask)) == {0, 1}
    assert reason(masker(missing_labels="keep").mask([request("cat", forget=4)])[0]) == "object-missing"


def test_a_counterfactual_with_the_object_is_dropped_unless_it_is_not_looked_at():
    asked = request("cat", leave=4)
    assert reason(masker().mask([asked])[0]) == "object-remains"
    unchecked = masker(check_counterfactual=False).mask([asked])[0]
    assert isinstance(unchecked, Masked)
    assert "counterfactual_score" not in unchecked.quality


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"min_area": 0.2}, "too-small"),
        ({"max_area": 0.05}, "too-large"),
        ({"cross_check": True, "min_pair_agreement": 1.0}, "maskers-disagree"),
    ],
)
def test_thresholds_drop_with_a_reason(options, expected):
    assert reason(masker(**options).mask([request("cat")])[0]) == expected


def test_an_outline_that_leaves_its_box_is_dropped(monkeypatch):
    import patch_backends

    monkeypatch.setattr(
        patch_backends.PatchSegmenter,
        "segment",
        lambda self, requests: [
            patch_backends.Segments(
                logits=np.ones((len(one.boxes), 48, 48), np.float32), quality=np.ones(len(one.boxes), np.float32)
            )
            for one in requests
        ],
    )
    asked = request("cat")
    assert reason(masker(max_area=1, min_box_agreement=0.5).mask([asked])[0]) == "mask-leaves-box"
    assert masker(max_area=1).mask([asked])[0].quality["box_agreement"] == pytest.approx(12 * 16 / 48**2, abs=1e-3)


def test_the_two_maskers_are_compared():
    (answer,) = masker(cross_check=True).mask([request("cat")])
    assert answer.quality["pair_agreement"] > 0.9
    (other,) = masker(cross_check=True, check_counterfactual=False).mask([request("cat", leave=4)])
    assert other.quality["pair_agreement"] == 0


def test_a_photograph_needs_no_counterfactual():
    asked = request("cat")
    photograph = MaskRequest(index=0, labels=asked.labels, caption="", image=asked.image, counterfactual=None, seed=0)
    (answer,) = masker(cross_check=True).mask([photograph])
    assert np.array_equal(answer.mask, truth(asked))


def run_of(path, *more):
    return make_run(
        path,
        "plan.samples=32",
        "plan.max_labels=2",
        "generate.backend=patches",
        "mask.backend=detect-segment",
        "mask.options={detector: {backend: patches}, segmenter: {backend: patches}}",
        *more,
    )


def qualities(run, stage):
    return [json.loads(text) for text in run.store.read(f"{stage}/quality", 0, run.plan.samples)]


def test_a_run_drops_invalid_pairs_with_their_reasons(tmp_path):
    run = run_of(tmp_path / "run", "generate.options={forget: 1, leave: 1}")
    do(run)
    dropped = {}
    for record in run.ledger("mask").commits().values():
        for name, count in record.dropped.items():
            dropped[name] = dropped.get(name, 0) + count
    assert set(dropped) == {"object-missing", "object-remains"}
    assert sum(dropped.values()) < 32
    counted = {name: sum(entry.get("reason") == name for entry in qualities(run, "mask")) for name in dropped}
    assert counted == dropped


def test_a_label_that_the_detector_cannot_look_for_is_told_before_the_first_shard(tmp_path, monkeypatch):
    import patch_backends

    def refuse(self, labels):
        raise BackendError(f"cannot look for {labels[-1].name}")

    monkeypatch.setattr(patch_backends.PatchDetector, "check_labels", refuse, raising=False)
    run = run_of(tmp_path / "run", "generate.validity={detector: {backend: patches}}")
    do(run, "describe")
    with pytest.raises(BackendError, match=f"cannot look for {run.vocabulary.labels[-1].name}"):
        do(run, "generate")
    assert run.ledger("generate").commits() == {}


def test_what_a_detector_is_told_is_part_of_the_fingerprint(tmp_path):
    run = run_of(tmp_path / "run")
    do(run)
    change(run, "mask.options.box_threshold", 0.4)
    with pytest.raises(PlanMismatch, match=r"box_threshold is 0\.4, was 0\.3"):
        Run.open(run.path).checked_commits("mask")


def test_a_detector_of_boxes_needs_a_segmenter():
    with pytest.raises(ValueError, match="segmenter is missing: detector 'patches' gives boxes only"):
        masker(segmenter=None)


def test_masks_of_a_detector_are_stretched_over_the_image(monkeypatch):
    import patch_backends

    whole = patch_backends.ellipses
    monkeypatch.setattr(
        patch_backends, "ellipses", lambda image, boxes: whole(image[::2, ::2], boxes / 2).astype(np.float16)
    )
    asked = request("cat")
    (answer,) = masker(detector={"backend": "blobs-with-masks"}, segmenter=None).mask([asked])
    assert answer.mask.shape == (48, 48)
    assert (answer.mask == truth(asked)).mean() > 0.97
    assert "outline_quality" not in answer.quality
