"""Bootstrap intervals against scipy's BCa bootstrap over images, and what they must hold."""

import numpy as np
import pytest
from scipy.stats import bootstrap

from magicseg.evaluate.metrics.confusion import Scores
from magicseg.evaluate.metrics.intervals import ImageCounts, difference_interval, intervals, measures

FIELDS = ("hits", "truth", "predicted", "boundary_hits", "boundary_truth", "boundary_predicted")
SINGLE = ("miou", "miou_over_classes_in_ground_truth", "pixel_accuracy", "mean_accuracy", "frequency_weighted_iou")


def counts_of(matrices):
    hits = np.diagonal(matrices, axis1=1, axis2=2)
    tables = (hits, matrices.sum(2), matrices.sum(1))
    return ImageCounts(*tables, *(table // 3 for table in tables))


def made_counts(images=12, classes=5, seed=0):
    """Counts of confusion matrices in which class 3 is only ever predicted and class 4 never occurs."""
    rng = np.random.default_rng(seed)
    matrices = rng.integers(0, 50, (images, classes, classes)) * (rng.random((images, classes, 1)) < 0.4)
    matrices[:, 3] = 0
    matrices[:, 4] = 0
    matrices[:, :, 4] = 0
    return matrices, counts_of(matrices)


def summed(counts):
    return {name: table.sum(axis=0) for name, table in counts.tables.items()}


def with_rare_predictions(images=150, seed=4):
    """Two common classes; ten more that are only ever predicted, wrongly and in one image each."""
    rng = np.random.default_rng(seed)
    matrices = np.zeros((images, 12, 12), int)
    matrices[:, :2, :2] = rng.integers(10, 100, (images, 2, 2)) + 200 * np.eye(2, dtype=int)
    for number in range(2, 12):
        matrices[number, 0, number] = 5
    return counts_of(matrices)


def test_measures_equal_the_scores_of_the_summed_matrix():
    matrices, counts = made_counts()
    found = measures(summed(counts))
    scores = Scores(matrices.sum(axis=0))
    for name in SINGLE:
        assert float(found[name]) == pytest.approx(getattr(scores, name), abs=1e-12)
    assert [None if np.isnan(value) else value for value in found["iou"].tolist()] == pytest.approx(list(scores.iou))
    assert scores.iou[3] == 0
    assert scores.iou[4] is None


@pytest.mark.parametrize("name", SINGLE)
def test_intervals_are_scipys_bca_intervals_of_the_scores(name):
    """The draws differ, so the ends differ by their own noise only."""
    matrices, counts = made_counts(images=40)
    whole = summed(counts)

    def score(indices, axis):
        tables = {key: table[indices].sum(axis=axis - 1) for key, table in counts.tables.items()}
        return measures(tables, whole)[name]

    expected = bootstrap((np.arange(40),), score, method="BCa", n_resamples=2000, rng=np.random.default_rng(7))
    low, high = expected.confidence_interval
    (found,) = intervals(counts, seed=1, resamples=2000)[name]
    assert found == pytest.approx((low, high), abs=0.15 * (high - low))
    assert found[0] < getattr(Scores(matrices.sum(axis=0)), name) < found[1]


def test_a_class_has_an_interval_where_enough_images_show_it():
    matrices, counts = made_counts(images=40)
    ends = intervals(counts)["iou"]
    for place, iou in enumerate(Scores(matrices.sum(axis=0)).iou[:3]):
        assert ends[place][0] < iou < ends[place][1]
    assert ends[3] == (0, 0)
    assert ends[4] is None
    assert intervals(with_rare_predictions())["iou"][2:] == [None] * 10


def test_rare_classes_that_a_resample_lacks_do_not_move_the_interval_above_the_score():
    counts = with_rare_predictions()
    score = float(measures(summed(counts))["miou"])
    low, high = intervals(counts)["miou"][0]
    assert low < score < high
    assert high - low < 0.02
    assert score == pytest.approx((low + high) / 2, abs=0.005)


def test_intervals_depend_on_their_seed_alone():
    _, counts = made_counts()
    assert intervals(counts, seed=3) == intervals(counts, seed=3)
    assert intervals(counts, seed=3) != intervals(counts, seed=4)


@pytest.mark.parametrize("images", [1, 2, 9])
def test_a_few_images_have_no_interval(images):
    _, counts = made_counts(images=images, seed=0)
    assert {interval for each in intervals(counts).values() for interval in each} == {None}
    assert difference_interval(counts, counts, "miou") is None


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


def test_the_difference_over_the_same_images_has_a_paired_interval():
    rng = np.random.default_rng(2)
    base = rng.integers(0, 400, 80)  # images differ much, the two models little
    better = base + rng.integers(10, 30, 80)
    truth = np.full((80, 1), 1000)
    first, second = (ImageCounts(*(hits[:, None], truth, hits[:, None]) * 2) for hits in (base, better))
    score = float(better.sum() - base.sum()) / 80_000
    low, high = difference_interval(first, second, "pixel_accuracy")
    assert low < score < high
    assert low > 0
    alone = intervals(first)["pixel_accuracy"][0]
    assert high - low < (alone[1] - alone[0]) / 5
    assert difference_interval(second, first, "pixel_accuracy") == pytest.approx((-high, -low), abs=0.002)
    assert difference_interval(first, first, "miou") == (0, 0)
