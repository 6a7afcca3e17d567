"""In which type detectors and segmenters compute if ``dtype`` is ``auto``. A CPU stands in for the GPU."""

import numpy as np
import pytest
import torch

from helpers.mask_requests import labels, picture, segment_request
from magicseg.backends import DetectRequest
from magicseg.vision import inference
from magicseg.vision.batches import HasBatch
from magicseg.vision.model_options import (
    ClipOptions,
    DetectorOptions,
    OriginalDetectorOptions,
    OriginalSegmenterOptions,
    SegmenterOptions,
)
from magicseg.vision.transformers_detector import load_detector
from magicseg.vision.transformers_segmenter import load_segmenter

IMAGES = [picture(seed) for seed in range(6)]


@pytest.fixture
def on_gpu(checkpoint, monkeypatch):
    """Load a detector or segmenter as a GPU with this 16-bit type would, on the CPU."""

    def load(family, options, load_model, dtype=torch.bfloat16):
        monkeypatch.setattr(inference, "gpu_dtype", lambda: dtype)
        cpu = options(model=str(checkpoint(family)), device="cpu")
        return load_model(cpu.model_copy(update={"dtype": "auto"}), checkpoint(family), HasBatch(3))

    return load


@pytest.mark.parametrize("options", [DetectorOptions, SegmenterOptions])
@pytest.mark.parametrize(("device", "dtype"), [("cuda", "auto"), ("cpu", "float32")])
def test_a_cpu_computes_in_float32_unless_told_otherwise(options, device, dtype, tmp_path):
    folder = str(tmp_path)
    assert options(model=folder, device=device).dtype == dtype
    assert options(model=folder, device=device, dtype="auto") == options(model=folder, device=device)
    for chosen in ("float32", "bfloat16"):
        assert options(model=folder, device=device, dtype=chosen).dtype == chosen


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_models_that_compute_in_float32_only_say_so(device, tmp_path):
    given = {"model": str(tmp_path), "device": device}
    assert ClipOptions(**given, against=("dog",)).dtype == "float32"
    assert OriginalDetectorOptions(**given, text_encoder={"model": str(tmp_path)}).dtype == "float32"
    assert OriginalSegmenterOptions(**given).dtype == "float32"


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float16)])
def test_a_gpu_without_bfloat16_in_hardware_computes_in_float16(native, dtype, monkeypatch):
    def is_supported(including_emulation=True):
        return native or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_supported)
    assert inference.gpu_dtype() == dtype


def distances(found, exact):
    """The distance of every box to the nearest exact one, in pixels: rounding may change their order."""
    return np.abs(found.boxes[:, None] - exact.boxes[None]).max(axis=2).min(axis=1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_a_detectors_coordinates_in_float32(dtype, detector, on_gpu):
    requests = [DetectRequest(image=image, labels=labels("cat", "dining table")) for image in IMAGES]
    backend = on_gpu("grounding_dino", DetectorOptions, load_detector, dtype)
    assert {values.dtype for values in backend._model.parameters()} == {torch.float32}
    exact = detector("grounding_dino").detect(requests)
    cast = detector("grounding_dino", dtype="bfloat16").detect(requests)
    near = backend.detect(requests)
    assert not np.array_equal(near[0].scores, exact[0].scores)
    for one, other in zip(near, exact, strict=True):
        assert one.boxes.dtype == one.scores.dtype == np.float32
        np.testing.assert_allclose(one.scores.max(axis=0), other.scores.max(axis=0), atol=0.05)
    far, close = (np.median([distances(a, b) for a, b in zip(each, exact, strict=True)]) for each in (cast, near))
    assert close < far / 5


@pytest.mark.parametrize("family", ["owlv2", "owlvit"])
def test_queried_detectors_compute_by_autocast(family, detector, on_gpu):
    request = DetectRequest(image=IMAGES[0], labels=labels("cat", "dining table"))
    (exact,) = detector(family).detect([request])
    (near,) = on_gpu(family, DetectorOptions, load_detector).detect([request])
    assert not np.array_equal(near.scores, exact.scores)
    np.testing.assert_allclose(near.scores, exact.scores, atol=0.02)
    assert np.quantile(np.abs(near.boxes - exact.boxes), 0.95) < 2


@pytest.mark.parametrize("family", ["sam", "sam_hq", "sam2"])
def test_a_segmenters_weights_are_of_the_gpus_type(family, segmenter, on_gpu):
    one = segment_request(2)
    backend = on_gpu(family, SegmenterOptions, load_segmenter)
    (found,), (chosen,) = backend.segment([one]), segmenter(family, dtype="bfloat16").segment([one])
    assert np.array_equal(found.logits, chosen.logits)
    (half,) = on_gpu(family, SegmenterOptions, load_segmenter, torch.float16).segment([one])
    (exact,) = segmenter(family).segment([one])
    assert not np.array_equal(half.logits, exact.logits)
    assert ((half.logits > 0) == (exact.logits > 0)).mean() > 0.98
