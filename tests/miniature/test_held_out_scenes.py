"""Held-out scenes: exact, reproducible, with a separate random stream."""

import numpy as np
import pytest

from magicseg.core.errors import ConfigError
from magicseg.labels import load_vocabulary
from magicseg.miniature.held_out_scenes import heldout_scene

MINIATURE = load_vocabulary("miniature")


def scene(index, *, seed=0, max_objects=2, size=32, vocabulary=MINIATURE):
    return heldout_scene(index, vocabulary=vocabulary, seed=seed, max_objects=max_objects, size=size)


def test_a_scene_depends_only_on_seed_and_index():
    for index in range(5):
        first, again = scene(index), scene(index)
        for name in ("image", "empty", "mask"):
            np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    images = {scene(index, seed=seed).image.tobytes() for index in range(10) for seed in range(3)}
    assert len(images) == 30


def test_scenes_show_one_to_max_objects_labels_and_cover_all_labels():
    masks = [scene(index).mask for index in range(80)]
    counts = [len(np.unique(mask[mask > 0])) for mask in masks]
    assert set(counts) == {1, 2}
    assert set(np.unique(masks)) == set(range(11))
    assert all(mask.shape == (32, 32) and mask.dtype == np.uint16 for mask in masks)


@pytest.mark.parametrize(("name", "most"), [("miniature", 0), ("miniature", 4), ("voc20", 1)])
def test_labels_that_cannot_be_painted_and_invalid_counts_are_refused(name, most):
    with pytest.raises(ConfigError):
        scene(0, vocabulary=load_vocabulary(name), max_objects=most)


def test_a_scenes_counterfactual_is_the_same_image_without_objects():
    for index in range(5):
        painted = scene(index)
        lost = painted.mask > 0
        changed = (painted.image != painted.empty).any(axis=2)
        assert changed[lost].mean() > 0.9
        assert changed[~lost].mean() < 0.5  # shadows and the edges of objects
