"""False positives on counterfactual images, against a loop over images and pixels."""

import numpy as np
import pytest
from scipy.stats import bootstrap

from magicseg.evaluate.metrics.counts import count_image, scored, tabulate
from magicseg.evaluate.metrics.false_positives import FALSE_POSITIVE_CONVENTIONS, false_positives

CLASSES, IGNORED = 6, 65535


def example(rng):
    """Return a mask, a prediction on the image, and a sparse one on its counterfactual, (10, 20) each."""
    truth = np.zeros((10, 20), int)
    own = rng.choice(np.arange(1, CLASSES), size=rng.integers(1, 3), replace=False)
    for place, number in enumerate(own):
        truth[3 * place : 3 * place + 3, 4:12] = number
    truth[9] = IGNORED
    predicted = np.where(truth == IGNORED, rng.integers(0, CLASSES), truth) * (
        rng.random(truth.shape) < rng.choice([0, 0.5, 1])
    )
    spots = rng.random(truth.shape) < rng.choice([0, 0.008, 0.1])
    return truth, predicted, np.where(spots, rng.choice([own[0], *range(CLASSES)], truth.shape), 0)


def by_loop(examples):
    """Return the four shares, pixel by pixel."""
    pixels = wrong = own_wrong = shown = found = 0
    for truth, predicted, counterfactual in examples:
        own = {int(value) for value in truth.ravel() if value not in (0, IGNORED)}
        hits, sizes, counted = dict.fromkeys(own, 0), dict.fromkeys(own, 0), 0
        for true, on_image, value in zip(truth.ravel(), predicted.ravel(), counterfactual.ravel(), strict=True):
            pixels += 1
            wrong += int(value != 0)
            own_wrong += int(value in own)
            if value in own:
                hits[value] += 1
            if true != IGNORED:
                counted += 1
                if on_image in own:
                    sizes[on_image] += 1
        shown += any(hit / truth.size >= 0.01 for hit in hits.values())
        found += any(size / counted >= 0.01 for size in sizes.values())
    return [wrong / pixels, own_wrong / pixels, shown / len(examples), found / len(examples)]


def results_of(examples):
    counted = [
        count_image(truth, predicted, CLASSES, IGNORED, counterfactual=counterfactual)
        for truth, predicted, counterfactual in examples
    ]
    return scored(*tabulate(counted, CLASSES), [f"c{number}" for number in range(CLASSES)])["false_positives"]


@pytest.mark.parametrize("seed", range(4))
def test_the_shares_are_those_of_a_loop_over_pixels(seed):
    rng = np.random.default_rng(seed)
    examples = [example(rng) for _ in range(30)]
    expected = by_loop(examples)
    found = results_of(examples)
    assert found["images"] == 30
    assert [found[name] for name in FALSE_POSITIVE_CONVENTIONS] == pytest.approx(expected)
    assert 0 < expected[2] < expected[3] < 1
    for name in FALSE_POSITIVE_CONVENTIONS:
        low, high = found[f"{name}_interval"]
        assert low <= found[name] <= high


@pytest.mark.parametrize("covered", [1, 2])
def test_an_image_counts_from_one_percent_of_one_of_its_own_classes_on(covered):
    truth = np.zeros((10, 20), int)
    truth[0, :], truth[1, :] = 1, 2
    counterfactual = np.zeros_like(truth)
    counterfactual[5, :covered] = 1
    counterfactual[6, :1] = 2  # the classes are not added up
    counterfactual[7:] = 3  # not an own class
    found = results_of([(truth, truth, counterfactual)])
    assert found["own_images"] == (covered == 2)
    assert found["own_pixels"] == (covered + 1) / 200
    assert found["pixels"] == (covered + 61) / 200
    assert found["pixels_interval"] is None  # of a single image


def test_the_interval_is_scipys_bca_interval():
    rng = np.random.default_rng(7)
    examples = [example(rng) for _ in range(60)]
    shares = np.array([(counterfactual > 0).mean() for _, _, counterfactual in examples])
    expected = bootstrap((shares,), np.mean, n_resamples=20_000, rng=0).confidence_interval
    low, high = results_of(examples)["pixels_interval"]
    assert (low, high) == pytest.approx(tuple(expected), rel=0.06)


def test_images_without_counterfactuals_have_no_such_scores():
    truth = np.zeros((4, 4), int)
    total, counts = tabulate([count_image(truth, truth, 2, IGNORED)], 2)
    assert false_positives(counts) is None
    assert "false_positives" not in scored(total, counts, ["background", "cat"])
