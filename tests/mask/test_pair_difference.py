"""Masks from the difference of a pair, measured against the painter's exact masks."""

from types import SimpleNamespace

import numpy as np
import pytest

from magicseg.backends import DescribeRequest, GenerateRequest, Masked, MaskRequest, Rejection
from magicseg.installed_backends import find_backend
from magicseg.labels import load_vocabulary
from magicseg.miniature.painter import Painter, paint
from magicseg.stages.describe.grammar import GrammarCaptioner
from magicseg.stages.mask.pair_difference import PairDifferenceMasker, difference_mask

LABELS = load_vocabulary("miniature").labels
FLAT = np.full((40, 40, 3), 120, dtype=np.uint8)


def masker(**options):
    return PairDifferenceMasker(None, PairDifferenceMasker.Options(**options))


def request(image, counterfactual=FLAT, labels=LABELS[:1], index=0):
    return MaskRequest(index=index, labels=labels, caption="", image=image, counterfactual=counterfactual, seed=0)


def with_square(side, value=220):
    image = FLAT.copy()
    image[5 : 5 + side, 5 : 5 + side, 0] = value
    return image


def test_the_entry_point_returns_this_back_end():
    assert find_backend("maskers", "pair-difference") is PairDifferenceMasker


@pytest.mark.slow
def test_masks_of_painted_pairs_agree_with_the_exact_ones(capsys):
    labels = [LABELS[index % 10] for index in range(300)]
    described = GrammarCaptioner(None, GrammarCaptioner.Options()).describe(
        [DescribeRequest(index=i, labels=(label,), seed=i) for i, label in enumerate(labels)]
    )
    generated = Painter(SimpleNamespace(size=64), Painter.Options()).generate(
        [
            GenerateRequest(
                index=i, labels=(label,), caption=text.caption, counterfactual=text.counterfactual, seed=i
            )
            for i, (label, text) in enumerate(zip(labels, described, strict=True))
        ]
    )
    answers = masker().mask(
        [
            request(pair.image, pair.counterfactual, (label,), i)
            for i, (label, pair) in enumerate(zip(labels, generated, strict=True))
        ]
    )
    scores = []
    for i, (text, label, answer) in enumerate(zip(described, labels, answers, strict=True)):
        assert isinstance(answer, Masked), (text.caption, answer)
        exact = paint(text.caption, seed=i, labels=LABELS).mask == label.id
        found = answer.mask == label.id
        scores.append((exact & found).sum() / (exact | found).sum())
        assert set(np.unique(answer.mask)) == {0, label.id}
    with capsys.disabled():
        worst, low = np.min(scores), np.quantile(scores, 0.05)
        print(f"\npair difference at 64 px: mean IoU {np.mean(scores):.3f}, 5 % {low:.3f}, worst {worst:.3f}")
    assert np.mean(scores) >= 0.9
    assert np.quantile(scores, 0.05) >= 0.78


def test_a_square_is_found_but_for_its_corners():
    (answer,) = masker().mask([request(with_square(20))])
    assert isinstance(answer, Masked)
    expected = np.zeros((40, 40), dtype=np.uint16)
    expected[5:25, 5:25] = LABELS[0].id
    assert (answer.mask != expected).sum() <= 4
    assert answer.mask.dtype == np.uint16
    assert answer.quality["area"] == pytest.approx(0.25, abs=0.01)
    assert answer.quality["box"] == pytest.approx(0.25, abs=0.01)
    assert answer.quality["difference_inside"] == pytest.approx(100)
    assert answer.quality["difference_outside"] < 1


def test_a_shadow_is_not_the_object():
    image = with_square(20)
    image[30:38] = 90  # the background, darker
    (answer,), (with_shadow,) = masker().mask([request(image)]), masker(shadow_tolerance=0).mask([request(image)])
    assert not (answer.mask[28:] > 0).any()
    assert (with_shadow.mask[31:37] > 0).all()


def test_single_pixels_are_not_the_object():
    image = with_square(20)
    image[35, ::5] = 255
    (answer,) = masker().mask([request(image)])
    assert not (answer.mask[30:] > 0).any()


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (request(FLAT), "no-difference"),
        (request(with_square(20, value=125)), "no-difference"),
        (request(with_square(3)), "too-small"),
        (request(FLAT // 4), "too-large"),
        (request(with_square(20), labels=LABELS[:2]), "ambiguous-labels"),
        (request(with_square(20), labels=()), "ambiguous-labels"),
        (request(with_square(20), FLAT[:20]), "not-aligned"),
    ],
)
def test_what_cannot_be_masked_is_rejected_and_the_rest_is_masked(bad, reason):
    first, second = masker(min_area=0.01).mask([bad, request(with_square(20))])
    assert isinstance(first, Rejection)
    assert first.reason == reason
    assert isinstance(second, Masked)


def test_an_answer_does_not_depend_on_the_rest_of_the_batch():
    requests = [request(with_square(side), index=side) for side in (8, 14, 25)]
    for one, answer in zip(requests, masker().mask(requests), strict=True):
        (alone,) = masker().mask([one])
        np.testing.assert_array_equal(alone.mask, answer.mask)
        assert alone.quality == answer.quality


def _with_hole_and_island():
    """A ring of 20 x 20 with a hole of 8 x 8, a slit of two pixels through it, and an island of 4 x 4 far off."""
    where = np.zeros((64, 64), bool)
    where[10:30, 10:30] = True
    where[16:24, 16:24] = False
    where[19:21, 8:18] = False
    where[50:54, 50:54] = True
    image = np.full((64, 64, 3), 90, np.uint8)
    changed = image.copy()
    changed[where] = 200
    return changed, image


def test_masks_are_cleaned_as_the_options_say():
    image, other = _with_hole_and_island()
    found = difference_mask(image, other, PairDifferenceMasker.Options())
    assert not found[20, 20]
    assert found[51, 51]
    assert not found[20, 12]
    whole = difference_mask(
        image, other, PairDifferenceMasker.Options(close_gaps=3, fill_holes=True, min_island=0.01)
    )
    expected = np.zeros((64, 64), bool)
    expected[10:30, 10:30] = True
    assert (whole != expected).sum() < 16  # corners
    assert whole[20, 20]
    assert not whole[51, 51]
    assert whole[20, 12]


def test_closing_gaps_leaves_an_object_at_the_border_as_it_is():
    image = np.full((32, 32, 3), 90, np.uint8)
    changed = image.copy()
    changed[:, :9] = 200
    changed[20:, 5:] = 200
    plain = difference_mask(changed, image, PairDifferenceMasker.Options())
    assert (difference_mask(changed, image, PairDifferenceMasker.Options(close_gaps=3)) & plain == plain).all()
