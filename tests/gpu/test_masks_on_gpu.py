"""Detectors and segmenters on a GPU: near the CPU's results, and bfloat16 near float32."""

import numpy as np
import pytest

from helpers.mask_requests import labels, picture, segment_request
from magicseg.backends import DetectRequest


def agreement(first, second):
    """Return the share of pixels with equal masks."""
    pairs = zip(first, second, strict=True)
    return np.mean([((one.logits > 0) == (other.logits > 0)).mean() for one, other in pairs])


@pytest.mark.parametrize("name", ["grounding_dino", "owlv2"])
def test_detections_are_near_the_cpus(name, detector):
    requests = [DetectRequest(image=picture(seed), labels=labels("cat", "dog")) for seed in range(3)]
    on_gpu, on_cpu = (detector(name, **own).detect(requests) for own in ({}, {"device": "cpu"}))
    for found, expected in zip(on_gpu, on_cpu, strict=True):
        best, expected_best = found.scores.max(axis=0), expected.scores.max(axis=0)
        np.testing.assert_allclose(best, expected_best, atol=0.01)


@pytest.mark.parametrize("name", ["sam", "sam_hq", "sam2"])
def test_masks_are_near_the_cpus(name, segmenter):
    requests = [segment_request(seed) for seed in range(3)]
    on_gpu, on_cpu = (segmenter(name, **own).segment(requests) for own in ({}, {"device": "cpu"}))
    assert agreement(on_gpu, on_cpu) > 0.995


@pytest.mark.parametrize("name", ["sam", "sam_hq", "sam2"])
def test_masks_in_bfloat16_are_near_float32(name, segmenter):
    requests = [segment_request(seed) for seed in range(3)]
    half, full = (segmenter(name, dtype=dtype).segment(requests) for dtype in ("bfloat16", "float32"))
    assert agreement(half, full) > 0.95
