"""`magicseg.load_model`: a saved model in use."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import magicseg
from helpers.tiny_models import tiny_settings
from magicseg import load_model
from magicseg.core.errors import DataError
from magicseg.model.saved_model import save_segmenter
from magicseg.model.segmenter import build_segmenter

SETTINGS = tiny_settings(image_size=16, stride=4, embed_dim=8, decoder_width=8)
NAMES = ["cat", "dog", "grass"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "model"
    save_segmenter(build_segmenter(SETTINGS, seed=0), path)
    return path


@pytest.fixture(scope="module")
def model(folder):
    return load_model(folder)


def photograph(height=20, width=28, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_an_image_of_a_fitting_size_gets_the_networks_logits(model):
    image = photograph()
    found = model.segment(image, NAMES, threshold=0.2)
    with torch.no_grad():
        text = model.segmenter.encode_classes(NAMES)
        expected = model.segmenter(torch.from_numpy(image).permute(2, 0, 1)[None], text).logits[0].sigmoid().numpy()
    np.testing.assert_allclose(found.scores, expected, rtol=1e-5, atol=1e-6)
    assert found.scores.dtype == np.float32
    labels = np.where(expected.max(0) < 0.2, 0, expected.argmax(0) + 1)
    assert np.issubdtype(found.labels.dtype, np.integer)
    assert (found.labels == labels).all()


@pytest.mark.parametrize("threshold", [0.0, 1.01])
def test_the_threshold_decides_between_classes_and_background(model, threshold):
    found = model.segment(photograph(), NAMES, threshold=threshold)
    assert (found.labels == 0).all() if threshold > 1 else set(np.unique(found.labels)) <= {1, 2, 3}


@pytest.mark.parametrize("size", [(1, 1), (7, 33), (20, 28), (61, 5)])
@pytest.mark.parametrize(
    "options", [{}, {"short_side": 16}, {"window": 16}, {"window": 8, "stride": 4, "short_side": 20}]
)
def test_a_segmentation_has_the_size_of_its_image(model, size, options):
    found = model.segment(photograph(*size), NAMES, **options)
    assert found.labels.shape == size
    assert found.scores.shape == (3, *size)
    assert np.isfinite(found.scores).all()


def test_segmenting_a_list_gives_each_images_own_result(model):
    images = [photograph(), photograph(16, 40, seed=1)]
    together = model.segment(images, NAMES)
    for image, found in zip(images, together, strict=True):
        assert (found.scores == model.segment(image, NAMES).scores).all()
    assert model.segment([], NAMES) == []


def test_every_image_mode_is_segmented_as_its_rgb_pixels(model):
    grey = photograph()[..., 0]
    expected = model.segment(np.stack([grey] * 3, -1), NAMES).scores
    clear = np.dstack([np.zeros((20, 28, 3), np.uint8), np.zeros((20, 28), np.uint8)])
    sideways = Image.fromarray(np.rot90(photograph()).copy())
    sideways.getexif()[0x0112] = 6  # to be turned by 90 degrees clockwise
    for image in (grey, grey[..., None], Image.fromarray(grey), Image.fromarray(grey).convert("P")):
        assert (model.segment(image, NAMES).scores == expected).all()
    white = model.segment(np.full((20, 28, 3), 255, np.uint8), NAMES).scores
    assert (model.segment(clear, NAMES).scores == white).all()
    assert (model.segment(sideways, NAMES).scores == model.segment(photograph(), NAMES).scores).all()


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (photograph(), [], "at least one"),
        (photograph(), ["cat", " "], "must be names"),
        (photograph(), ["cat", "dog", "cat "], "'cat' more than once"),
        (photograph(), "cat", "not a list of names"),
        (photograph().astype(np.float32), ["cat"], "float32"),
        (photograph()[:, :, :2], ["cat"], r"\(20, 28, 2\)"),
        (np.zeros((0, 4, 3), np.uint8), ["cat"], r"\(0, 4, 3\)"),
        (["x.jpg"], ["cat"], "is a str"),
    ],
)
def test_invalid_images_and_labels_are_refused(model, images, labels, message):
    with pytest.raises(DataError, match=message):
        model.segment(images, labels)


@pytest.mark.parametrize("options", [{"window": 10}, {"window": 2}, {"window": 16, "stride": 17}])
def test_windows_that_do_not_fit_are_refused(model, options):
    with pytest.raises(DataError, match="window"):
        model.segment(photograph(), NAMES, **options)


def test_load_model_takes_a_runs_folder(folder, model):
    image = photograph()
    assert (load_model(folder.parent).segment(image, NAMES).scores == model.segment(image, NAMES).scores).all()
    with pytest.raises(DataError, match="holds no trained model"):
        load_model(folder.parent.parent)


def test_importing_the_package_and_its_settings_loads_no_torch():
    code = (
        "import sys, magicseg, magicseg.model, magicseg.config.model, magicseg.config; "
        "assert 'torch' not in sys.modules; magicseg.load_model; from magicseg.model import focal_loss, MaskDecoder; "
        "assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert "load_model" in dir(magicseg) or "load_model" in magicseg.__all__


def test_every_public_name_of_the_model_package_is_there():
    import magicseg.model

    assert all(getattr(magicseg.model, name) is not None for name in magicseg.model.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = magicseg.model.nothing


def test_omitting_scores_changes_no_other_result(model):
    image = photograph(33, 47)
    full, short = (
        model.segment(image, NAMES, threshold=0.2, window=16, scores=with_scores) for with_scores in (True, False)
    )
    assert np.array_equal(full.labels, short.labels)
    assert np.array_equal(full.best, short.best)
    assert np.array_equal(full.best, full.scores.max(axis=0))
    assert short.scores.shape == (0, 33, 47)
