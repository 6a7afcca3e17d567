"""Bootstrap intervals against a plain loop over resamples."""

import numpy as np
import pytest

from magicseg.evaluate.intervals import ImageCounts, intervals, measures
from magicseg.evaluate.metrics import Scores

FIELDS = ("hits", "truth", "predicted", "boundary_hits", "boundary_truth", "boundary_predicted")


def made_counts(images=12, classes=5, seed=0):
    """Counts of confusion matrices in which class 3 is only ever predicted and class 4 never occurs."""
    rng = np.random.default_rng(seed)
    matrices = rng.integers(0, 50, (images, classes, classes)) * (rng.random((images, classes, 1)) < 0.4)
    matrices[:, 3] = 0
    matrices[:, 4] = 0
    matrices[:, :, 4] = 0
    hits = np.diagonal(matrices, axis1=1, axis2=2)
    tables = (hits, matrices.sum(2), matrices.sum(1))
    return matrices, ImageCounts(*tables, *(table // 3 for table in tables))


def test_measures_equal_the_scores_of_the_summed_matrix():
    matrices, counts = made_counts()
    found = measures({name: getattr(counts, name).sum(axis=0).astype(float) for name in FIELDS})
    scores = Scores(matrices.sum(axis=0))
    for name in (
        "miou",
        "miou_over_classes_in_ground_truth",
        "pixel_accuracy",
        "mean_accuracy",
        "frequency_weighted_iou",
    ):
        assert float(found[name]) == pytest.approx(getattr(scores, name), abs=1e-12)
    assert [None if np.isnan(value) else value for value in found["iou"].tolist()] == pytest.approx(list(scores.iou))
    assert scores.iou[3] == 0
    assert scores.iou[4] is None


def test_intervals_are_percentiles_of_scores_of_resampled_images():
    """The same bootstrap in a loop; its draws differ, so its quantiles differ by their own noise only."""
    matrices, counts = made_counts(images=40)
    found = intervals(counts, seed=1, resamples=2000)
    rng = np.random.default_rng(7)
    drawn = [Scores(matrices[rng.integers(0, 40, 40)].sum(axis=0)) for _ in range(2000)]
    for name in ("miou", "miou_over_classes_in_ground_truth", "pixel_accuracy", "mean_accuracy"):
        values = [getattr(scores, name) for scores in drawn]
        low, high = np.quantile(values, [0.025, 0.975])
        assert found[name][0] == pytest.approx((low, high), abs=0.15 * (high - low))
    first = [scores.iou[0] for scores in drawn if scores.iou[0] is not None]
    assert found["iou"][0] == pytest.approx(np.quantile(first, [0.025, 0.975]), abs=0.02)
    assert found["iou"][4] is None


def test_intervals_depend_on_their_seed_alone():
    _, counts = made_counts()
    assert intervals(counts, seed=3) == intervals(counts, seed=3)
    assert intervals(counts, seed=3) != intervals(counts, seed=4)


def test_one_image_has_intervals_without_width():
    _, counts = made_counts(images=1, seed=0)
    low, high = intervals(counts)["pixel_accuracy"][0]
    assert low == high


def test_intervals_of_scores_cover_the_truth_about_as_often_as_they_say():
    """Images drawn from a known population: the share of intervals that hold its score, 95 % give or take."""
    rng = np.random.default_rng(11)
    held = 0
    for trial in range(120):
        recall = rng.beta(4, 2, 60)
        truth = np.full((60, 1), 1000)
        hits = np.round(recall * 1000).astype(int)[:, None]
        counts = ImageCounts(hits, truth, hits, hits, truth, hits)
        low, high = intervals(counts, seed=trial, resamples=400)["pixel_accuracy"][0]
        held += low <= 4 / 6 <= high
    assert 0.88 <= held / 120 <= 1
