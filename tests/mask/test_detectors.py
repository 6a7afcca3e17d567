"""Candidates of tiny detectors: equal to the libraries' own, label by label, in any company."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

from helpers.mask_requests import labels, picture
from magicseg.backends import DetectRequest

IMAGES = [picture(seed, *size) for seed, size in enumerate([(48, 64), (40, 60), (50, 33), (30, 90)])]
GROUNDED = ("grounding_dino", "original_grounding_dino")
NAMES = [
    ("cat",),
    ("cat", "dining table", "dog"),
    ("hot dog", "dog", "hot"),  # shared words
    ("wombat", "T-shirt", "Red Car", "d.o.g"),  # spelt in pieces, capitals, a dot inside
]


def request(image, *names):
    return DetectRequest(image=image, labels=labels(*names))


def library(folder, image, texts):
    """The library's own path for one image: candidates, raw output and inputs."""
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForZeroShotObjectDetection.from_pretrained(folder).eval()
    inputs = processor(images=[image], text=[texts], return_tensors="pt")
    with torch.inference_mode():
        output = model(**inputs)
    post_process = processor.post_process_grounded_object_detection
    more = {"text_threshold": 0} if "GroundingDino" in type(model).__name__ else {}
    (found,) = post_process(output, threshold=0, target_sizes=[image.shape[:2]], **more)
    return found, output, processor


def clipped(boxes, image):
    height, width = image.shape[:2]
    return np.clip(boxes, 0, [width, height, width, height])


def close(found, expected, tolerance=1e-5):
    """Boxes in shares of 100 pixels: the models give shares of the image."""
    np.testing.assert_allclose(found.boxes / 100, expected.boxes / 100, atol=tolerance, rtol=0)
    np.testing.assert_allclose(found.confidence, expected.confidence, atol=tolerance, rtol=0)
    np.testing.assert_allclose(found.scores, expected.scores, atol=tolerance, rtol=0)


def same_bits(found, expected):
    return all(
        np.array_equal(getattr(found, name), getattr(expected, name)) for name in ("boxes", "confidence", "scores")
    )


@pytest.mark.parametrize("image", IMAGES, ids=lambda image: "x".join(map(str, image.shape[:2])))
@pytest.mark.parametrize("names", NAMES, ids=",".join)
@pytest.mark.parametrize("model", ["grounding_dino", "mm_grounding_dino"])
def test_grounded_boxes_and_confidences_are_the_librarys(model, names, image, detector, checkpoint):
    (found,) = detector(model).detect([request(image, *names)])
    texts = [name.lower().replace(".", " ") for name in names]
    expected, _, _ = library(checkpoint(model), image, texts)
    assert len(found.boxes) == 30
    np.testing.assert_allclose(found.boxes, clipped(expected["boxes"].numpy(), image), atol=1e-3)
    np.testing.assert_allclose(found.confidence, expected["scores"].numpy(), atol=1e-5)
    assert found.confidence.std() > 0.001
    assert found.boxes.dtype == found.confidence.dtype == found.scores.dtype == np.float32


@pytest.mark.parametrize("names", NAMES, ids=",".join)
def test_a_labels_score_is_the_best_of_its_own_tokens(names, detector, checkpoint):
    (found,) = detector("grounding_dino").detect([request(IMAGES[0], *names)])
    texts = [name.lower().replace(".", " ") for name in names]
    _, output, processor = library(checkpoint("grounding_dino"), IMAGES[0], texts)
    probabilities = output.logits[0].sigmoid().numpy()
    start = 1  # after [CLS]
    for place, text in enumerate(texts):
        count = len(processor.tokenizer.tokenize(text))
        own = probabilities[:, start : start + count]
        assert (own > 0).all()
        np.testing.assert_allclose(found.scores[:, place], own.max(axis=1), atol=1e-5)
        start += count + 1  # the full stop
    assert (probabilities[:, start] > 0).all(), "[SEP]"
    assert (probabilities[:, start + 1 :] == 0).all(), "nothing is left"
    assert (found.confidence >= found.scores.max(axis=1) - 1e-6).all()


def test_labels_that_share_words_are_told_apart(detector):
    (found,) = detector("grounding_dino").detect([request(IMAGES[0], "hot dog", "dog")])
    (turned,) = detector("grounding_dino").detect([request(IMAGES[0], "dog", "hot dog")])
    assert np.abs(found.scores[:, 0] - found.scores[:, 1]).max() > 0.01
    assert np.abs(turned.scores[:, 0] - turned.scores[:, 1]).max() > 0.01


def test_labels_with_one_text_are_looked_for_by_their_names(detector):
    (found,) = detector("grounding_dino").detect([request(IMAGES[0], "Cat", "cat ", "dog")])
    assert found.scores.shape == (30, 3)
    assert (found.scores > 0).all()


@pytest.mark.parametrize("image", IMAGES, ids=lambda image: "x".join(map(str, image.shape[:2])))
@pytest.mark.parametrize(
    ("model", "count"), [*(("owlv2", count) for count in (1, 3, 8, 11, 17)), ("owlvit", 3), ("owlvit", 11)]
)
def test_queried_boxes_and_scores_are_the_librarys(model, count, image, detector, checkpoint):
    names = ["cat", "dining table", "red dog", *(f"{color} car" for color in "abcdefghijklmn")][:count]
    (found,) = detector(model).detect([request(image, *names)])
    texts = [f"a photo of a {name}" for name in names]
    expected, output, _ = library(checkpoint(model), image, texts)
    captions = -(-count // 8)
    assert len(found.boxes) == 16 * captions
    for part in range(captions):  # the boxes hang on the image alone
        rows, columns = slice(16 * part, 16 * (part + 1)), slice(8 * part, 8 * (part + 1))
        np.testing.assert_allclose(found.boxes[rows], clipped(expected["boxes"].numpy(), image), atol=1e-4)
        scores = output.logits[0].sigmoid().numpy()
        np.testing.assert_allclose(found.scores[rows, columns], scores[:, columns], atol=1e-6)
        np.testing.assert_allclose(found.confidence[rows], scores[:, columns].max(axis=1), atol=1e-6)
        others = np.delete(found.scores[rows], np.arange(count)[columns], axis=1)
        assert (others == 0).all()
    best = np.stack(np.split(found.confidence, captions)).max(axis=0)
    np.testing.assert_allclose(best, expected["scores"].numpy(), atol=1e-6)


def mixed_requests():
    """Sizes interleaved, so that batches take requests out of order, with other labels in each."""
    names = ["cat", "dog", "dining table", "hot dog", "red car", "wombat", "bird"]
    return [request(picture(10 + place, *IMAGES[place % 3].shape[:2]), *names[: 1 + place % 3]) for place in range(7)]


def test_queried_answers_do_not_depend_on_neighbours(detector):
    backend = detector("owlv2")
    requests = mixed_requests()
    together = backend.detect(requests)
    for one, answer, turned in zip(requests, together, backend.detect(requests[::-1])[::-1], strict=True):
        (alone,) = backend.detect([one])
        assert answer.scores.shape[1] == len(one.labels)
        for other in (alone, turned):
            assert np.array_equal(answer.boxes, other.boxes)
            # A CPU rounds the last elements of a tensor otherwise: a row's place shows, not its company.
            np.testing.assert_array_max_ulp(answer.scores, other.scores, maxulp=4)


def test_queried_answers_at_one_place_have_the_same_bits_in_any_company(detector):
    backend = detector("owlv2")
    one, *others = [request(picture(seed), "cat", "red dog") for seed in range(5)]
    first, second = backend.detect([others[0], one, others[1]]), backend.detect([others[2], one, others[3]])
    assert same_bits(first[1], second[1])
    assert not same_bits(first[0], second[0])


@pytest.mark.slow
@pytest.mark.parametrize("model", GROUNDED)
def test_grounded_answers_depend_on_neighbours_by_rounding_alone(model, detector):
    backend = detector(model, batch_size=2)
    requests = mixed_requests()
    together = backend.detect(requests)
    assert all(map(same_bits, together, backend.detect(requests))), "the same call, the same bits"
    for one, answer in zip(requests, together, strict=True):
        (alone,) = backend.detect([one])
        close(answer, alone)
        assert answer.scores.shape[1] == len(one.labels)
    for answer, turned in zip(together[::-1], backend.detect(requests[::-1]), strict=True):
        close(answer, turned)


@pytest.mark.parametrize("model", GROUNDED)
def test_labels_that_do_not_fit_are_split_over_captions(model, detector):
    names = ("dining table", "hot dog", "red car", "red sofa", "red chair", "the cat")  # three tokens with their stop
    backend = detector(model, text_length=16)
    (found,) = backend.detect([request(IMAGES[0], *names)])
    first, second = backend.detect([request(IMAGES[0], *names[:4]), request(IMAGES[0], *names[4:])])
    queries = len(first.boxes)
    assert len(found.boxes) == 2 * queries
    assert found.scores.shape == (2 * queries, 6)
    assert (found.scores[:queries, 4:] == 0).all()
    assert (found.scores[queries:, :4] == 0).all()
    assert (found.scores.max(axis=0) > 0).all()
    for rows, columns, alone in [
        (slice(queries), slice(4), first),
        (slice(queries, None), slice(4, 6), second),
    ]:
        np.testing.assert_allclose(found.boxes[rows], alone.boxes, atol=1e-3)
        np.testing.assert_allclose(found.scores[rows, columns], alone.scores, atol=1e-5)
        np.testing.assert_allclose(found.confidence[rows], alone.confidence, atol=1e-5)
    (whole,) = detector(model, text_length=32).detect([request(IMAGES[0], *names)])
    assert len(whole.boxes) == queries


@pytest.mark.parametrize("model", GROUNDED)
def test_the_padding_of_captions_changes_nothing(model, detector):
    one = request(IMAGES[0], "cat", "dining table")
    (short,) = detector(model, text_length=8).detect([one])
    (long,) = detector(model, text_length=64).detect([one])
    close(short, long)


def test_queried_bfloat16_is_near_float32(detector):
    one = request(IMAGES[0], "cat", "dining table")
    (exact,), (near,) = detector("owlv2").detect([one]), detector("owlv2", dtype="bfloat16").detect([one])
    assert near.scores.dtype == near.boxes.dtype == np.float32
    assert not np.array_equal(near.scores, exact.scores)
    np.testing.assert_allclose(near.scores, exact.scores, atol=0.02)
    assert np.quantile(np.abs(near.boxes - exact.boxes), 0.95) < 2


def test_grounded_bfloat16_is_near_float32(detector):
    one = request(IMAGES[0], "cat", "dining table")
    (exact,) = detector("grounding_dino").detect([one])
    backend = detector("grounding_dino", dtype="bfloat16")
    assert {values.dtype for values in backend._model._model.parameters()} == {torch.bfloat16}
    (near,) = backend.detect([one])
    assert near.scores.dtype == near.boxes.dtype == np.float32
    assert not np.array_equal(near.scores, exact.scores)
    # Rounding may choose other queries, or put them in another order.
    distances = np.abs(near.boxes[:, None] - exact.boxes[None]).max(axis=2)
    partner, same = distances.argmin(axis=1), distances.min(axis=1) < 2
    assert same.mean() >= 0.8
    assert np.median(np.abs(near.scores - exact.scores[partner])[same]) < 0.02
    np.testing.assert_allclose(near.scores.max(axis=0), exact.scores.max(axis=0), atol=0.02)
