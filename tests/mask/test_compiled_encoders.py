"""The option ``compile``: what is compiled, for which shapes, and where it shows."""

import json
import shutil

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from helpers.mask_requests import labels, picture, segment_request
from magicseg.backends import DetectRequest
from magicseg.config.loading import load_config
from magicseg.core.errors import BackendError
from magicseg.labels import parse_labels
from magicseg.run.fingerprint import stage_fingerprints
from magicseg.stages.mask import image_folder
from magicseg.vision.model_options import ClipOptions, OriginalDetectorOptions
from magicseg.weights.manifest import Manifest

DETECTORS = {
    "grounding_dino": "model.backbone.conv_encoder",
    "mm_grounding_dino": "model.backbone.conv_encoder",
    "omdet_turbo": "vision_backbone",
    "owlv2": "owlv2.vision_model",
    "owlvit": "owlvit.vision_model",
}
SEGMENTERS = dict.fromkeys(("sam", "sam_hq", "sam2"), "vision_encoder")
ALL = DETECTORS | SEGMENTERS | {"original_sam": "image_encoder"}


def answers(backend, family, count):
    """Arrays of what a back end finds in so many images."""
    if family in DETECTORS:
        found = backend.detect([DetectRequest(image=picture(i), labels=labels("cat", "dog")) for i in range(count)])
        return [values for one in found for values in (one.boxes, one.scores)]
    found = backend.segment([segment_request(i, count=1 + i) for i in range(count)])
    return [values for one in found for values in (one.logits, one.quality)]


@pytest.mark.parametrize("family", ALL)
def test_the_encoder_alone_is_compiled_and_sees_one_shape(family, monkeypatch, detector, segmenter, checkpoint):
    """The compiler is a stand-in that notes the shapes of images."""
    compiled, shapes = [], []

    def note(_module, given, named):
        shapes.append(tuple((given[0] if given else named["pixel_values"]).shape))

    def compile_(module, *, dynamic):
        assert not dynamic, "every shape would be a program for all shapes"
        compiled.append(module)
        module.register_forward_pre_hook(note, with_kwargs=True)

    make = detector if family in DETECTORS else segmenter
    plain = answers(make(family), family, 5)
    monkeypatch.setattr(torch.nn.Module, "compile", compile_)
    backend = make(checkpoint(family), compile="encoder")
    assert compiled == [backend._model._model.get_submodule(ALL[family])]
    for one, other in zip(answers(backend, family, 5), plain, strict=True):
        assert np.array_equal(one, other)
    assert len(shapes) == 2
    assert len(set(shapes)) == 1, "the batch of two has a row of padding"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
@pytest.mark.parametrize("family", ["owlv2", "sam_hq"])
def test_a_compiled_encoder_agrees_and_repeats_its_bits(family, detector, segmenter, checkpoint, quick_linker):
    make = detector if family in DETECTORS else segmenter
    plain = answers(make(family), family, 4)
    backend = make(checkpoint(family), compile="encoder")
    torch._dynamo.utils.counters.clear()
    compiled = answers(backend, family, 4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert not torch._dynamo.utils.counters["graph_break"]
    for one, again, other in zip(compiled, answers(backend, family, 4), plain, strict=True):
        assert np.array_equal(one, again)
        np.testing.assert_allclose(one, other, atol=1e-4 * max(1, np.abs(other).max()))


def test_an_encoder_that_torch_cannot_compile_is_refused(segmenter, checkpoint, monkeypatch):
    """The compiler's error is a stand-in."""

    def fails(*_arguments, **_named):
        raise torch._dynamo.exc.TorchDynamoException("InvalidCxxCompiler: no C++ compiler\nlong trace")

    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **_named: setattr(module, "forward", fails))
    backend = segmenter(checkpoint("sam"), compile="encoder")
    with pytest.raises(BackendError, match=r"sam is encoder: torch cannot compile the model here: Inv") as caught:
        backend.segment([segment_request(0)])
    assert "to off" in caught.value.hint
    assert "long trace" not in caught.value.message


def test_models_whose_encoder_is_not_compiled_refuse_the_option(tmp_path):
    given = {"model": str(tmp_path), "device": "cpu", "compile": "encoder"}
    with pytest.raises(ValidationError, match="'off'"):
        ClipOptions(**given, against=("dog",))
    with pytest.raises(ValidationError, match="'off'"):
        OriginalDetectorOptions(**given, text_encoder={"model": str(tmp_path)})


def mask_settings(**options):
    """The settings of the preset ``sdxl`` for masks, with more options for its segmenter."""
    settings = load_config(preset="sdxl").mask
    segmenter = settings.options["segmenter"]
    chosen = settings.options | {"segmenter": {**segmenter, "options": segmenter["options"] | options}}
    return settings.model_copy(update={"options": chosen})


def mask_inputs(**options):
    """The mask stage's fingerprint with these settings."""
    config = load_config(preset="sdxl").model_copy(update={"mask": mask_settings(**options)})
    return stage_fingerprints(config, "plan", Manifest())["mask"]


def test_it_is_in_the_fingerprint_when_it_is_set():
    before, after = mask_inputs(), mask_inputs(compile="encoder")
    assert mask_inputs(compile="off") == before
    assert before.digest != after.digest
    assert set(after.inputs) - set(before.inputs) == {"mask.options.segmenter.options.compile"}
    assert not any("compile" in key for key in before.inputs if "detector" in key or "segmenter" in key)


def test_records_of_masked_images_have_it_only_when_it_is_set():
    """Folders that an older version masked have records without it."""
    vocabulary = parse_labels("cat")
    assert "compile" not in json.dumps(image_folder._deciding(vocabulary, mask_settings()))
    chosen = image_folder._deciding(vocabulary, mask_settings(compile="encoder"))
    assert chosen["mask"]["options"]["segmenter"]["options"]["compile"] == "encoder"
    assert "compile" not in chosen["mask"]["options"]["detector"]["options"]
