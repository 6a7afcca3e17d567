"""Boundary IoU against the paper's own recipe: erosion by a small square, again and again, class by class."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from magicseg.evaluate.metrics.boundary import band_width, boundary_counts

IGNORED = 255


def eroded_once(mask):
    """Pixels whose 3 x 3 neighbourhood lies in the mask; beyond the border is nothing."""
    padded = np.pad(mask, 1)
    kept = np.zeros_like(mask)
    for y in range(mask.shape[0]):
        for x in range(mask.shape[1]):
            kept[y, x] = padded[y : y + 3, x : x + 3].all()
    return kept


def band(mask, width):
    inner = mask
    for _ in range(width):
        inner = eroded_once(inner)
    return mask & ~inner


@given(
    arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 12)), elements=st.sampled_from([1, 2, 3, IGNORED])),
    st.integers(1, 3),
    st.integers(0, 99),
)
def test_bands_are_masks_less_their_repeated_erosion(truth, width, seed):
    rng = np.random.default_rng(seed)
    prediction = np.where(rng.random(truth.shape) < 0.7, truth, rng.integers(1, 4, truth.shape)).astype(np.uint8)
    counted = truth != IGNORED
    prediction[~counted] = rng.integers(0, 256, np.count_nonzero(~counted))
    found = boundary_counts(truth, prediction, 3, IGNORED, first=1, width=width)
    for number in range(3):
        of_truth = band((truth == number + 1) & counted, width)
        of_prediction = band((prediction == number + 1) & counted, width)
        expected = [(of_truth & of_prediction).sum(), of_truth.sum(), of_prediction.sum()]
        assert found[:, number].tolist() == expected


def test_a_perfect_prediction_fits_whatever_is_ignored():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, (6, 6)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
    truth[rng.random(truth.shape) < 0.1] = IGNORED
    prediction = np.where(truth == IGNORED, 1, truth)
    hits, of_truth, of_prediction = boundary_counts(truth, prediction, 3, IGNORED, first=0, width=3)
    assert hits.tolist() == of_truth.tolist() == of_prediction.tolist()
    assert hits.all()


def test_a_ragged_outline_costs_a_large_object_more_in_its_band_than_in_its_area():
    truth = np.zeros((100, 100), np.uint8)
    truth[10:90, 10:90] = 1
    prediction = np.zeros_like(truth)
    prediction[12:88, 12:88] = 1
    hits, of_truth, of_prediction = boundary_counts(truth, prediction, 2, IGNORED, first=0, width=3)[:, 1]
    area = 76 * 76 / (80 * 80)
    assert hits / (of_truth + of_prediction - hits) < 0.4 < 0.9 < area


@pytest.mark.parametrize(("size", "expected"), [((375, 500), 12), ((1024, 2048), 46), ((5, 5), 1)])
def test_the_band_is_two_hundredths_of_the_diagonal(size, expected):
    assert band_width(size) == expected
