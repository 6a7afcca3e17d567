"""Metrics against a naive loop and against torchmetrics."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from magicseg.evaluate.metrics.confusion import Scores, ValueOutOfRange, confusion_matrix

IGNORE_VALUE = 255


@st.composite
def maps(draw):
    """A number of classes, a truth with ignored pixels, and a prediction that may hold anything under these."""
    classes = draw(st.integers(2, 6))
    shape = (draw(st.integers(1, 5)), draw(st.integers(1, 5)))
    known = st.integers(0, classes - 1)
    truth = draw(arrays(np.uint8, shape, elements=known | st.just(IGNORE_VALUE)))
    prediction = draw(arrays(np.uint16, shape, elements=known))
    anything = draw(arrays(np.uint16, shape, elements=st.integers(0, 65535)))
    return classes, truth, np.where(truth == IGNORE_VALUE, anything, prediction)


@given(maps())
def test_the_confusion_matrix_counts_every_pixel_that_is_not_ignored(case):
    classes, truth, prediction = case
    expected = np.zeros((classes, classes), np.int64)
    for actual, predicted in zip(truth.flat, prediction.flat, strict=True):
        if actual != IGNORE_VALUE:
            expected[int(actual), int(predicted)] += 1
    found = confusion_matrix(truth, prediction, classes, IGNORE_VALUE)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, expected)


@given(maps())
def test_classes_may_begin_at_another_value(case):
    classes, truth, prediction = case
    shifted = np.where(truth == IGNORE_VALUE, truth, truth + 1)
    np.testing.assert_array_equal(
        confusion_matrix(shifted, prediction + np.int64(1), classes, IGNORE_VALUE, first=1),
        confusion_matrix(truth, prediction, classes, IGNORE_VALUE),
    )


@given(maps())
def test_scores_follow_their_definitions_pixel_by_pixel(case):
    classes, truth, prediction = case
    scores = Scores(confusion_matrix(truth, prediction, classes, IGNORE_VALUE))
    counted = truth != IGNORE_VALUE
    iou, in_truth, recalls = [], [], []
    for number in range(classes):
        is_truth, is_predicted = (truth == number) & counted, (prediction == number) & counted
        union = np.count_nonzero(is_truth | is_predicted)
        iou.append(np.count_nonzero(is_truth & is_predicted) / union if union else None)
        in_truth.append(bool(is_truth.any()))
        if is_truth.any():
            recalls.append(np.count_nonzero(is_truth & is_predicted) / np.count_nonzero(is_truth))
    assert scores.iou == pytest.approx(iou, abs=1e-12)
    assert scores.pixels == np.count_nonzero(counted)
    if not counted.any():
        assert scores.miou is scores.miou_over_classes_in_ground_truth is scores.pixel_accuracy is None
        assert scores.mean_accuracy is None
        return
    assert scores.miou == pytest.approx(np.mean([value for value in iou if value is not None]), abs=1e-12)
    present = [value for value, there in zip(iou, in_truth, strict=True) if there]
    assert scores.miou_over_classes_in_ground_truth == pytest.approx(np.mean(present), abs=1e-12)
    assert scores.pixel_accuracy == pytest.approx((truth == prediction)[counted].mean(), abs=1e-12)
    assert scores.mean_accuracy == pytest.approx(np.mean(recalls), abs=1e-12)


@given(maps())
@settings(max_examples=30)
def test_scores_equal_those_of_torchmetrics(case):
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("torchmetrics.functional.classification")
    classes, truth, prediction = case
    scores = Scores(confusion_matrix(truth, prediction, classes, IGNORE_VALUE))
    if not scores.pixels:
        return
    target = torch.from_numpy(truth.astype(np.int64))
    predicted = torch.from_numpy(np.where(truth == IGNORE_VALUE, 0, prediction).astype(np.int64))
    arguments = {"preds": predicted, "target": target, "num_classes": classes, "ignore_index": IGNORE_VALUE}
    matrix = functional.multiclass_confusion_matrix(**arguments)
    np.testing.assert_array_equal(scores.confusion, matrix.numpy())
    jaccard = functional.multiclass_jaccard_index(**arguments, average=None)
    ours = [0.0 if value is None else value for value in scores.iou]
    np.testing.assert_allclose(ours, jaccard.numpy(), atol=1e-6)
    accuracy = functional.multiclass_accuracy(**arguments, average="micro")
    assert scores.pixel_accuracy == pytest.approx(float(accuracy), abs=1e-6)


def test_the_two_means_differ_by_a_class_that_is_predicted_but_never_shown():
    scores = Scores(np.array([[3, 0, 1], [0, 0, 0], [0, 0, 0]], np.int64))
    assert scores.iou == (0.75, None, 0.0)
    assert scores.miou == 0.375
    assert scores.miou_over_classes_in_ground_truth == 0.75


def test_scores_as_json_values_name_the_classes():
    values = Scores(np.array([[3, 1], [0, 0]], np.int64)).to_dict(["sky", "bird"])
    assert values == {
        "pixels": 4,
        "miou": 0.375,
        "miou_over_classes_in_ground_truth": 0.75,
        "iou": {"sky": 0.75, "bird": 0.0},
        "pixel_accuracy": 0.75,
        "mean_accuracy": 0.75,
        "confusion": [[3, 1], [0, 0]],
    }


@pytest.mark.parametrize(
    ("truth", "prediction", "where", "value"),
    [([0, 7], [0, 0], "truth", 7), ([0, 1], [0, 3], "prediction", 3), ([0, 1], [0, 255], "prediction", 255)],
)
def test_a_value_that_is_no_class_is_refused(truth, prediction, where, value):
    with pytest.raises(ValueOutOfRange, match="classes are 0 to 2") as caught:
        confusion_matrix(np.array([truth], np.uint8), np.array([prediction], np.uint8), 3, IGNORE_VALUE)
    assert (caught.value.where, caught.value.value) == (where, value)


def test_maps_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match="shape"):
        confusion_matrix(np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8), 3, IGNORE_VALUE)


ADVERSARIAL = {
    "empty classes": (9, [[0, 0], [8, 8]], [[0, 8], [8, 8]]),
    "one class": (1, [[0, 0], [0, 255]], [[0, 0], [0, 7]]),
    "everything wrong": (3, [[0, 1], [2, 255]], [[1, 2], [0, 0]]),
    "a class only predicted": (3, [[0, 0], [1, 1]], [[2, 2], [1, 1]]),
    "many classes": (256, [[0, 254], [3, 255]], [[254, 254], [3, 0]]),
}


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64])
@pytest.mark.parametrize("name", ADVERSARIAL)
def test_adversarial_maps_score_as_in_torchmetrics(name, dtype):
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("torchmetrics.functional.classification")
    classes, truth, prediction = ADVERSARIAL[name]
    ours = confusion_matrix(np.array(truth, dtype), np.array(prediction, dtype), classes, IGNORE_VALUE)
    if classes == 1:  # torchmetrics has no multiclass of one
        assert ours.tolist() == [[3]]
        return
    target = torch.tensor(truth)
    predicted = torch.where(target == IGNORE_VALUE, 0, torch.tensor(prediction))
    theirs = functional.multiclass_confusion_matrix(predicted, target, num_classes=classes, ignore_index=IGNORE_VALUE)
    np.testing.assert_array_equal(ours, theirs.numpy())


def test_maps_that_ignore_everything_have_no_scores():
    ignored = np.full((3, 3), IGNORE_VALUE, np.uint8)
    scores = Scores(confusion_matrix(ignored, np.zeros((3, 3), np.uint8), 4, IGNORE_VALUE))
    assert scores.pixels == 0
    assert scores.iou == (None,) * 4
    assert scores.miou is scores.frequency_weighted_iou is None


def test_maps_of_large_numbers_are_counted_as_well():
    truth = np.array([[300, 301], [65535, 300]], np.uint16)
    found = confusion_matrix(truth, np.array([[301, 301], [7, 300]], np.int64), 2, 65535, first=300)
    assert found.tolist() == [[1, 1], [0, 1]]


@given(maps())
def test_frequency_weighted_iou_weighs_classes_by_their_pixels(case):
    classes, truth, prediction = case
    scores = Scores(confusion_matrix(truth, prediction, classes, IGNORE_VALUE))
    counted = truth[truth != IGNORE_VALUE]
    if not counted.size:
        assert scores.frequency_weighted_iou is None
        return
    expected = np.mean([scores.iou[value] for value in counted.tolist()])
    assert scores.frequency_weighted_iou == pytest.approx(expected, abs=1e-12)
