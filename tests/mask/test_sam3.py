"""SAM 3: instances equal to the library's post-processing, in any company; every image and label encoded once."""

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate
from transformers import Sam3Model, Sam3Processor, Sam3VideoModel

from helpers.mask_requests import labels, picture
from magicseg.backends import DetectRequest
from magicseg.core.errors import BackendError
from magicseg.vision.batches import HasBatch
from magicseg.vision.shipped_models import Sam3

NAMES = ("cat", "dog", "red photo")
LABELS = labels(*NAMES)
SIZES = [(48, 64), (64, 64), (30, 90)]


@pytest.fixture
def sam3(checkpoint):
    def make(batch_size=3, **options):
        chosen = {"model": str(checkpoint("sam3")), "device": "cpu", "candidates": 12} | options
        return Sam3(HasBatch(batch_size), Sam3.Options(**chosen))

    return make


def requests(count=4):
    return [
        DetectRequest(image=picture(seed, *SIZES[seed % 3]), labels=LABELS[: seed % 3 + 1]) for seed in range(count)
    ]


def same_bits(one, other):
    return all(
        np.array_equal(getattr(one, name), getattr(other, name))
        for name in ("boxes", "confidence", "scores", "masks")
    )


@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
def test_instances_are_those_of_the_librarys_post_processing(size, sam3, checkpoint):
    image = picture(1, *size)
    (found,) = sam3().detect([DetectRequest(image=image, labels=LABELS)])
    assert found.masks.shape[0] == len(found.boxes) == 12 * len(LABELS)
    model = Sam3Model.from_pretrained(checkpoint("sam3")).eval()
    processor = Sam3Processor.from_pretrained(checkpoint("sam3"))
    for number, label in enumerate(LABELS):
        rows = slice(12 * number, 12 * (number + 1))
        inputs = processor(images=image, text=label.name, return_tensors="pt")
        with torch.inference_mode():
            output = model(**inputs)
        (expected,) = processor.post_process_instance_segmentation(output, threshold=0.0, target_sizes=[size])
        order = expected["scores"].argsort(descending=True, stable=True)
        np.testing.assert_allclose(found.scores[rows, number], expected["scores"][order], atol=1e-5)
        assert not found.scores[rows, [other for other in range(len(LABELS)) if other != number]].any()
        limits = np.array([size[1], size[0]] * 2)
        np.testing.assert_allclose(
            found.boxes[rows], expected["boxes"][order].numpy().clip(0, limits), atol=1e-4 * max(size)
        )
        masks = interpolate(torch.from_numpy(found.masks[rows])[None], size=size, mode="bilinear")[0].numpy()
        decided = np.abs(masks) > 1e-5
        assert np.array_equal((masks > 0)[decided], expected["masks"][order].numpy()[decided] > 0)
        assert decided.mean() > 0.99
        assert 0.02 < (masks > 0).mean() < 0.98


def test_answers_do_not_depend_on_neighbours(sam3):
    detector = sam3()
    together = detector.detect(requests())
    turned = detector.detect(requests()[::-1])[::-1]
    for one, answer, other in zip(requests(), together, turned, strict=True):
        assert same_bits(answer, other)
        assert same_bits(answer, detector.detect([one])[0])
    assert not np.array_equal(together[0].scores, together[3].scores)


def test_an_image_is_encoded_once_for_all_its_labels_and_a_label_once_for_all_images(sam3, monkeypatch):
    detector = sam3()
    seen = {"images": 0, "texts": 0}
    model = detector._model._model
    for name, method in (("images", "get_vision_features"), ("texts", "get_text_features")):
        real = getattr(model, method)

        def counted(*arguments, name=name, real=real):
            seen[name] += len(arguments[0])
            return real(*arguments)

        monkeypatch.setattr(model, method, counted)
    detector.detect(requests())
    detector.detect(requests())
    assert seen == {"images": 2 * 4, "texts": 3}


def test_only_the_best_candidates_are_kept(sam3):
    (one,) = requests(1)
    (all_,), (few,) = sam3().detect([one]), sam3(candidates=3).detect([one])
    assert np.array_equal(few.scores, all_.scores[:3])
    assert np.array_equal(few.masks, all_.masks[:3])


def test_labels_that_it_cannot_query_are_refused(sam3):
    detector = sam3()
    with pytest.raises(BackendError, match="longer than the 32 tokens that SAM 3 takes"):
        detector.check_labels(labels("x" * 200))
    detector.check_labels(LABELS)


def test_a_released_checkpoint_is_that_of_the_model_for_videos(sam3, checkpoint):
    folder = checkpoint("sam3_video")
    assert '"Sam3VideoModel"' in (folder / "config.json").read_text()
    detector = sam3(model=str(folder))
    (found,) = detector.detect(requests(1))
    assert len(found.boxes) == 12
    whole = Sam3VideoModel.from_pretrained(folder).detector_model.state_dict()
    assert all(torch.equal(value, whole[name]) for name, value in detector._model._model.state_dict().items())


def test_another_model_is_refused_by_its_name(checkpoint):
    with pytest.raises(BackendError, match="is a Sam2Model, which this back end does not drive"):
        Sam3(HasBatch(1), Sam3.Options(model=str(checkpoint("sam2")), device="cpu"))
