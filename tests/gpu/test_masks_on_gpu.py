"""Detectors and segmenters on a GPU: near the CPU's results, and bfloat16 near float32."""

import numpy as np
import pytest

from helpers.mask_requests import labels, picture, segment_request
from magicseg.backends import DetectRequest


def agreement(first, second):
    """Return the share of pixels with equal masks."""
    pairs = zip(first, second, strict=True)
    return np.mean([((one.logits > 0) == (other.logits > 0)).mean() for one, other in pairs])


@pytest.mark.parametrize("options", [{"dtype": "float32"}, {"dtype": "auto"}], ids=lambda one: one["dtype"])
@pytest.mark.parametrize("name", ["grounding_dino", "owlv2"])
def test_detections_are_near_the_cpus(name, options, detector):
    requests = [DetectRequest(image=picture(seed), labels=labels("cat", "dog")) for seed in range(3)]
    on_gpu, on_cpu = (detector(name, **own).detect(requests) for own in (options, {"device": "cpu"}))
    for found, expected in zip(on_gpu, on_cpu, strict=True):
        best, expected_best = found.scores.max(axis=0), expected.scores.max(axis=0)
        np.testing.assert_allclose(best, expected_best, atol=0.01 if options["dtype"] == "float32" else 0.05)


@pytest.mark.parametrize("name", ["sam", "sam_hq", "sam2"])
def test_masks_are_near_the_cpus(name, segmenter):
    requests = [segment_request(seed) for seed in range(3)]
    on_gpu, on_cpu = (segmenter(name, **own).segment(requests) for own in ({}, {"device": "cpu"}))
    assert agreement(on_gpu, on_cpu) > 0.995


@pytest.mark.parametrize(
    "options", [{"dtype": "bfloat16"}, {"dtype": "auto"}, {"compile": "encoder"}], ids=lambda one: str(*one.values())
)
@pytest.mark.parametrize("name", ["sam", "sam_hq", "sam2"])
def test_fast_masks_are_near_those_in_float32(name, options, segmenter):
    requests = [segment_request(seed) for seed in range(3)]
    fast, full = (segmenter(name, **own).segment(requests) for own in (options, {}))
    assert agreement(fast, full) > 0.95
