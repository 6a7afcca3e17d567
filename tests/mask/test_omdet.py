"""OmDet-Turbo: boxes and scores equal to the library's post-processing, in any company."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

from helpers.mask_requests import labels, picture
from magicseg.backends import DetectRequest
from magicseg.core.errors import BackendError

QUERIES = 12
FEW = ("cat", "dog", "red photo")
MANY = tuple(
    f"{first} {second}" for first in ("cat", "dog", "red", "photo") for second in ("in", "on", "with", "the")
)


@pytest.mark.parametrize("size", [(48, 64), (64, 64), (30, 90)], ids=lambda size: "x".join(map(str, size)))
def test_boxes_and_scores_are_the_librarys(size, detector, checkpoint):
    """The library's processor names the same labels, padded to eight, in the same task."""
    image = picture(1, *size)
    (found,) = detector("omdet_turbo").detect([DetectRequest(image=image, labels=labels(*FEW))])
    assert found.boxes.shape == (QUERIES, 4)
    assert found.scores.shape == (QUERIES, 3)
    model = AutoModelForZeroShotObjectDetection.from_pretrained(checkpoint("omdet_turbo")).eval()
    processor = AutoProcessor.from_pretrained(checkpoint("omdet_turbo"))
    padded = [*FEW, *[""] * 5]
    inputs = processor(images=image, text=padded, task=f"Detect {', '.join(FEW)}.", return_tensors="pt")
    with torch.inference_mode():
        output = model(**inputs)
    (expected,) = processor.post_process_grounded_object_detection(
        output, threshold=-1.0, nms_threshold=1.0, target_sizes=[size], max_num_det=QUERIES * 8
    )
    for number in range(3):
        chosen = expected["labels"] == number
        order = expected["scores"][chosen].argsort(descending=True)
        own = np.argsort(-found.scores[:, number], kind="stable")
        np.testing.assert_allclose(found.scores[own, number], expected["scores"][chosen][order], atol=1e-5)
        np.testing.assert_allclose(found.boxes[own], expected["boxes"][chosen][order], atol=1e-3)
    assert np.array_equal(found.confidence, found.scores.max(axis=1))


def same_bits(one, other):
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("boxes", "confidence", "scores"))


def test_answers_at_one_place_have_the_same_bits_in_any_company_and_after_any_history(detector, checkpoint):
    requests = [DetectRequest(image=picture(seed), labels=labels(*(FEW[: seed % 3 + 1]))) for seed in range(6)]
    one = detector("omdet_turbo")
    first = one.detect(requests[:3])
    again = one.detect([requests[0], *requests[4:]])
    other = detector(checkpoint("omdet_turbo")).detect([requests[0], requests[5], requests[3]])
    assert same_bits(first[0], again[0])
    assert same_bits(first[0], other[0])
    assert not np.array_equal(first[0].boxes, first[1].boxes)


def test_many_labels_are_divided_among_several_rows(detector):
    (found,) = detector("omdet_turbo").detect([DetectRequest(image=picture(2), labels=labels(*MANY))])
    assert found.scores.shape[1] == 16
    assert found.boxes.shape[0] % QUERIES == 0
    assert (found.scores.max(axis=0) > 0).all(), "every label was looked for"
    assert ((found.scores > 0).sum(axis=1) <= 8).all()


def test_labels_that_it_cannot_query_are_refused(detector):
    with pytest.raises(BackendError, match="alone is longer than the text encoder takes"):
        detector("omdet_turbo").check_labels(labels("x" * 200))
