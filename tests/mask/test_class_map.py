"""Outlines to class maps: who wins where they overlap, what is too small, what is unsure."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from magicseg.labels import BACKGROUND, IGNORE
from magicseg.stages.mask.class_map import agreement, box_agreement, class_map, outline, without_islands


def square(top, left, size, *, label_id, score, margin=0.0, shape=(20, 20)):
    logits = np.full(shape, -5, np.float32)
    logits[top : top + size, left : left + size] = 5
    return outline(logits, label_id=label_id, score=score, min_island=0, margin=margin)


def test_where_objects_overlap_the_better_score_wins():
    better, worse = square(0, 0, 12, label_id=3, score=0.8), square(6, 6, 12, label_id=7, score=0.5)
    for outlines in ([better, worse], [worse, better]):
        result = class_map(outlines, (20, 20))
        assert result.dtype == np.uint16
        assert (result[:12, :12] == 3).all()
        assert result[15, 15] == 7
        assert result[0, 15] == BACKGROUND


def test_of_equal_scores_the_smaller_object_lies_in_front():
    small, large = square(5, 5, 4, label_id=3, score=0.5), square(0, 0, 16, label_id=7, score=0.5)
    for outlines in ([small, large], [large, small]):
        result = class_map(outlines, (20, 20))
        assert (result[5:9, 5:9] == 3).all()
        assert (result == 7).sum() == 16 * 16 - 4 * 4


def test_unsure_pixels_become_ignore_unless_a_better_object_is_sure():
    logits = np.full((20, 20), -5, np.float32)
    logits[4:10, 4:10] = 0.5
    logits[5:9, 5:9] = 5
    logits[12, 12] = -0.5
    unsure = outline(logits, label_id=3, score=0.5, min_island=0, margin=1)
    alone = class_map([unsure], (20, 20))
    assert (alone[5:9, 5:9] == 3).all()
    assert (alone == IGNORE).sum() == 36 - 16 + 1
    both = class_map([unsure, square(0, 0, 7, label_id=7, score=0.9)], (20, 20))
    assert (both[:7, :7] == 7).all()


@pytest.mark.parametrize("seed", range(20))
def test_one_outline_after_the_other_gives_what_painting_from_back_to_front_gives(seed):
    random = np.random.default_rng(seed)
    outlines = [
        outline(
            random.normal(size=(12, 15)).astype(np.float32),
            label_id=int(random.integers(1, 5)),
            score=float(random.choice([0.3, 0.5, 0.8])),
            min_island=0,
            margin=float(random.choice([0, 0.4])),
        )
        for _ in range(8)
    ]
    expected = np.full((12, 15), BACKGROUND, np.uint16)
    for one in sorted(outlines, key=lambda one: (one.score, -int(one.inside.sum()))):
        expected[one.inside] = one.label_id
        expected[one.unsure] = IGNORE
    assert np.array_equal(class_map(iter(outlines), (12, 15)), expected)


def test_no_margin_ignores_nothing():
    assert IGNORE not in class_map([square(0, 0, 5, label_id=1, score=1)], (20, 20))


def test_small_islands_go_and_the_greatest_part_stays():
    inside = np.zeros((20, 20), bool)
    inside[0:5, 0:5] = True
    inside[5, 5] = True  # touches by a corner: belongs to it
    inside[10:12, 10:12] = True
    inside[18, 18] = True
    kept = without_islands(inside, 4 / 400)
    assert kept.sum() == 25 + 1 + 4
    assert not kept[18, 18]
    assert without_islands(inside, 0.9).sum() == 26
    assert np.array_equal(without_islands(inside, 0), inside)


def test_an_island_that_was_dropped_is_not_unsure_but_gone():
    logits = np.full((20, 20), -5, np.float32)
    logits[0:8, 0:8] = 5
    logits[15, 15] = 0.5
    one = outline(logits, label_id=1, score=1, min_island=0.01, margin=1)
    assert class_map([one], (20, 20))[15, 15] == BACKGROUND


@given(arrays(np.bool_, (12, 12)), st.floats(0.001, 0.5))
def test_islands_are_only_ever_removed(inside, share):
    kept = without_islands(inside, share)
    assert not (kept & ~inside).any()
    assert kept.any() == inside.any()
    assert np.array_equal(without_islands(kept, share), kept)


def test_box_agreement_is_the_iou_with_the_bounding_box():
    inside = np.zeros((20, 20), bool)
    inside[2:6, 4:12] = True
    assert box_agreement(inside, np.array([4, 2, 12, 6], np.float32)) == pytest.approx(1)
    assert box_agreement(inside, np.array([4, 2, 12, 10], np.float32)) == pytest.approx(0.5)
    assert box_agreement(inside, np.array([15, 15, 19, 19], np.float32)) == 0
    assert box_agreement(np.zeros((20, 20), bool), np.array([0, 0, 5, 5], np.float32)) == 0


def test_agreement_of_areas():
    one, other = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    assert agreement(one, other) == 1
    one[:2], other[1:3] = True, True
    assert agreement(one, other) == pytest.approx(1 / 3)
