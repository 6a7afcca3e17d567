import colorsys

import numpy as np

from magicseg.images.colours import class_colour, overlay
from magicseg.labels import IGNORE
from magicseg.report.sample_gallery import choose_spread


def test_every_class_gets_an_equal_share_of_samples():
    classes = np.array([1] * 90 + [2] * 8 + [3] * 2)
    chosen = choose_spread(np.arange(100), classes, 9)
    assert sorted(classes[chosen].tolist()) == [1, 1, 1, 1, 2, 2, 2, 3, 3]


def test_the_choice_of_samples_depends_only_on_the_arguments():
    indices, classes = np.arange(0, 3000, 3), np.random.default_rng(0).integers(1, 8, 1000)
    assert choose_spread(indices, classes, 12) == choose_spread(indices, classes, 12)


def test_evenly_spaced_classes_are_chosen_if_there_are_many():
    indices = np.arange(1203)
    chosen = choose_spread(indices, indices + 1, 12)
    assert len(chosen) == len(set(chosen)) == 12
    assert np.diff(chosen).min() > 90


def test_fewer_samples_than_wanted_are_all_chosen():
    assert choose_spread(np.array([4, 7, 9]), np.array([2, 2, 5]), 12) == [4, 7, 9]
    assert choose_spread(np.array([], np.int64), np.array([], np.int64), 12) == []


def test_an_overlay_colours_classes_and_stripes_ignored_pixels():
    mask = np.zeros((12, 12), np.uint16)
    mask[:4], mask[8:] = 3, IGNORE
    shown = overlay(np.full((12, 12, 3), 128, np.uint8), mask)
    hue = colorsys.rgb_to_hsv(*(shown[0, 0] / 255))[0]
    assert abs(hue - colorsys.rgb_to_hsv(*(channel / 255 for channel in class_colour(3)))[0]) < 0.02
    assert np.ptp(shown[5, 5]) == 0
    assert len(np.unique(shown[8:])) == 2


def test_the_first_classes_have_different_colours():
    colours = np.array([class_colour(id_) for id_ in range(1, 22)], dtype=int)
    distances = np.abs(colours[:, None] - colours[None]).sum(axis=2) + 1000 * np.eye(21, dtype=int)
    assert distances.min() > 40
    assert distances[:10, :10].min() > 100
