"""Outlines of tiny segmenters: equal to the libraries' own, in any company, every image embedded once."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskGeneration, AutoProcessor

from helpers.mask_requests import segment_request
from magicseg.backends import SegmentRequest

FAMILIES = ("sam", "sam_hq", "sam2", "sam2_video", "sam3_tracker")
ONE_BY_ONE = ("edgetam", "sam3_tracker")
ALL = (*FAMILIES, "edgetam", "original_sam")
SIZES = [(48, 64), (64, 64), (50, 33), (30, 90), (200, 150)]


def library(folder, one):
    """The library's own path: one image with all its boxes."""
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForMaskGeneration.from_pretrained(folder).eval()
    inputs = processor(images=one.image, input_boxes=[one.boxes.tolist()], return_tensors="pt")
    sizes = [inputs["original_sizes"]]
    if "reshaped_input_sizes" in inputs:
        sizes.append(inputs["reshaped_input_sizes"])
    with torch.inference_mode():
        output = model(**{key: inputs[key] for key in ("pixel_values", "input_boxes")}, multimask_output=False)
        (logits,) = processor.image_processor.post_process_masks(output.pred_masks, *sizes, binarize=False)
        (masks,) = processor.image_processor.post_process_masks(output.pred_masks, *sizes)
    return logits[:, 0].numpy(), masks[:, 0].numpy(), output.iou_scores[0, :, 0].numpy()


def close(found, logits, masks, quality):
    """Logits and qualities up to rounding, masks wherever rounding does not decide."""
    rounding = 1e-5 * np.abs(logits).max()
    np.testing.assert_allclose(found.logits, logits, atol=rounding)
    np.testing.assert_allclose(found.quality, quality, atol=1e-5)
    decided = np.abs(logits) > rounding
    assert np.array_equal((found.logits > 0)[decided], masks[decided])
    assert decided.mean() > 0.999
    assert 0.1 < masks.mean() < 0.99


def same_bits(found, expected):
    return np.array_equal(found.logits, expected.logits) and np.array_equal(found.quality, expected.quality)


@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
@pytest.mark.parametrize("family", FAMILIES)
def test_outlines_are_the_librarys(family, size, segmenter, checkpoint):
    one = segment_request(1, size)
    (found,) = segmenter(family).segment([one])
    logits, masks, quality = library(checkpoint(family), one)
    assert found.logits.shape == (5, *size)
    assert found.logits.dtype == found.quality.dtype == np.float32
    close(found, logits, masks, quality)


def test_outlines_of_edgetam_are_the_librarys_up_to_what_its_random_backbone_makes_of_rounding(segmenter, checkpoint):
    one = segment_request(1, (64, 64))
    (found,) = segmenter("edgetam").segment([one])
    logits, _, quality = library(checkpoint("edgetam"), one)
    np.testing.assert_allclose(found.logits, logits, atol=1e-3 * np.abs(logits).max())
    np.testing.assert_allclose(found.quality, quality, atol=1e-3)


@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
def test_outlines_of_the_original_are_its_predictors(size, segmenter):
    from segment_anything import SamPredictor

    one = segment_request(1, size)
    backend = segmenter("original_sam")
    (found,) = backend.segment([one])
    predictor = SamPredictor(backend._model._model)
    predictor.set_image(one.image)
    boxes = predictor.transform.apply_boxes_torch(torch.from_numpy(one.boxes), one.image.shape[:2])
    with torch.inference_mode():
        logits, quality, _ = predictor.predict_torch(None, None, boxes, multimask_output=False, return_logits=True)
        masks, _, _ = predictor.predict_torch(None, None, boxes, multimask_output=False)
    assert found.logits.shape == (5, *size)
    close(found, *(values[:, 0].numpy() for values in (logits, masks, quality)))


def count_calls(monkeypatch, backend, family):
    """Sizes of the batches that are embedded."""
    loaded = backend._model._model
    owner, name = (loaded.image_encoder, "forward") if family == "original_sam" else (loaded, "get_image_embeddings")
    whole, seen = getattr(owner, name), []

    def counted(pixels):
        seen.append(len(pixels))
        return whole(pixels)

    monkeypatch.setattr(owner, name, counted)
    return seen


@pytest.mark.parametrize("family", ALL)
def test_an_image_is_embedded_once_whatever_its_boxes(family, segmenter, monkeypatch):
    backend = segmenter(family, batch_size=2)
    seen = count_calls(monkeypatch, backend, family)
    (found,) = backend.segment([segment_request(0, count=23)])
    assert found.logits.shape == (23, 48, 64)
    assert sum(seen) == (1 if family in ONE_BY_ONE else 2), "once, with a row of padding where images are batched"
    seen.clear()
    answers = backend.segment([segment_request(seed, count=count) for seed, count in enumerate([1, 9, 0, 4, 2])])
    assert [len(answer.logits) for answer in answers] == [1, 9, 0, 4, 2]
    assert sum(seen) == 4, "the four with boxes"


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("family", ALL)
def test_parts_of_an_image_are_the_whole_and_it_is_embedded_once(family, batch_size, segmenter, monkeypatch):
    backend = segmenter(family, batch_size=batch_size)
    one = segment_request(5, count=11)
    (whole,) = backend.segment([one])
    seen = count_calls(monkeypatch, backend, family)
    parts = list(backend.segment_parts(one))
    assert len(seen) == 1
    assert max(len(part.logits) for part in parts) <= 4 * batch_size
    assert np.array_equal(np.concatenate([part.logits for part in parts]), whole.logits)
    assert np.array_equal(np.concatenate([part.quality for part in parts]), whole.quality)
    assert list(backend.segment_parts(segment_request(0, count=0))) == []


@pytest.mark.parametrize("family", ALL)
def test_images_without_boxes_are_not_looked_at(family, segmenter, monkeypatch):
    backend = segmenter(family)
    seen = count_calls(monkeypatch, backend, family)
    for answer, size in zip(
        backend.segment([segment_request(0, size, count=0) for size in SIZES]), SIZES, strict=True
    ):
        assert answer.logits.shape == (0, *size)
        assert answer.quality.shape == (0,)
        assert answer.logits.dtype == answer.quality.dtype == np.float32
    assert backend.segment([]) == []
    assert not seen


@pytest.mark.parametrize("family", ALL)
def test_answers_do_not_depend_on_neighbours(family, segmenter):
    backend = segmenter(family)
    requests = [segment_request(seed, SIZES[seed % 3], count=seed % 3 * 4 + 1) for seed in range(8)]
    together = backend.segment(requests)
    turned = backend.segment(requests[::-1])[::-1]
    for one, answer, other in zip(requests, together, turned, strict=True):
        assert answer.logits.shape == (len(one.boxes), *one.image.shape[:2])
        (alone,) = backend.segment([one])
        assert same_bits(answer, alone)
        assert same_bits(answer, other)
    assert not np.array_equal(together[0].logits, together[3].logits)


@pytest.mark.parametrize("family", ALL)
def test_a_boxs_outline_does_not_depend_on_the_images_other_boxes(family, segmenter):
    backend = segmenter(family)
    one = segment_request(3, count=6)
    (whole,) = backend.segment([one])
    for place in range(6):
        (alone,) = backend.segment([SegmentRequest(image=one.image, boxes=one.boxes[place : place + 1])])
        np.testing.assert_allclose(whole.logits[place], alone.logits[0], atol=1e-5 * np.abs(whole.logits).max())
        np.testing.assert_allclose(whole.quality[place], alone.quality[0], atol=1e-5)
    assert np.abs(whole.logits[0] - whole.logits[1]).max() > 1e-3 * np.abs(whole.logits).max()


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_is_near_float32(family, segmenter):
    one = segment_request(2)
    (exact,) = segmenter(family).segment([one])
    backend = segmenter(family, dtype="bfloat16")
    assert torch.bfloat16 in {values.dtype for values in backend._model._model.parameters()}
    (near,) = backend.segment([one])
    assert near.logits.dtype == near.quality.dtype == np.float32
    assert not np.array_equal(near.logits, exact.logits)
    scale = np.abs(exact.logits).max()
    np.testing.assert_allclose(near.logits, exact.logits, atol=0.05 * scale)
    np.testing.assert_allclose(near.quality, exact.quality, atol=0.05)
    assert ((near.logits > 0) == (exact.logits > 0)).mean() > 0.95


@pytest.mark.parametrize("family", ALL)
def test_logits_leave_the_device_once_at_the_images_size(family, segmenter, monkeypatch):
    """They are resized before, and those of padding stay."""
    backend = segmenter(family)
    requests = [segment_request(seed, (50, 33), count=count) for seed, count in enumerate([5, 1, 3])]
    left, copied = torch.Tensor.cpu, []

    def noting(values):
        copied.append(tuple(values.shape))
        return left(values)

    def refused(*_arguments):
        raise AssertionError("another way off the device")

    monkeypatch.setattr(torch.Tensor, "cpu", noting)
    monkeypatch.setattr(torch.Tensor, "item", refused)
    backend.segment(requests)
    for part in backend.segment_parts(requests[0]):
        assert part.logits.shape[1:] == (50, 33)
    masks = [shape for shape in copied if len(shape) > 1]
    assert {shape[1:] for shape in masks} == {(50, 33)}
    assert sum(shape[0] for shape in masks) == (5 + 1 + 3) + 5
