"""The losses against the slow references in `helpers.reference_losses`."""

import math
from pathlib import Path

import pytest
import torch

from helpers.reference_losses import slow_counterfactual, slow_dice, slow_focal, slow_targets
from magicseg import model
from magicseg.config.training import TrainSettings
from magicseg.labels import BACKGROUND, IGNORE
from magicseg.model.losses import loss_terms
from magicseg.model.losses.masks import dice_loss, focal_loss
from magicseg.model.losses.pairs import counterfactual_loss, true_pairs
from magicseg.model.losses.term import PairedImages
from magicseg.model.targets import sample_targets


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(3)
    class_map = torch.randint(0, 6, (3, 5, 7), generator=generator)
    class_map[torch.rand(class_map.shape, generator=generator) < 0.2] = IGNORE
    class_map[1] = BACKGROUND
    targets = sample_targets(class_map, torch.rand(3, 8, generator=generator), sampled_classes=6)
    logits = torch.randn(3, 6, 5, 7, generator=generator) * 3
    return logits, targets


def test_the_example_in_the_model_guide_runs(monkeypatch):
    guide = (Path(__file__).parents[2] / "docs" / "model.md").read_text()
    lines = [line[4:] for line in guide.splitlines() if line.startswith("    ")]
    first = next(place for place, line in enumerate(lines) if line.startswith("class_map"))
    last = next(place for place, line in enumerate(lines) if line.startswith("dice ="))
    names = {"torch": torch, "F": torch.nn.functional} | {name: getattr(model, name) for name in model.__all__}
    exec("\n".join(lines[first : last + 1]), names)
    assert torch.isfinite(names["focal"] + names["dice"])
    assert names["targets"].masks.shape == names["logits"].shape == (2, 3, 16, 16)


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.6, 0.0), (0.5, 1.5)])
def test_focal_is_its_formula(case, alpha, gamma):
    logits, targets = case
    loss = focal_loss(logits, targets.masks, targets.valid, alpha=alpha, gamma=gamma)
    assert loss.item() == pytest.approx(slow_focal(logits, targets.masks, targets.valid, alpha, gamma), rel=1e-5)


def test_focal_ignores_classes_that_are_not_queried(case):
    logits, targets = case
    asked = torch.rand(3, 6, generator=torch.Generator().manual_seed(1)) < 0.5
    loss = focal_loss(logits, targets.masks, targets.valid, alpha=0.25, gamma=2, asked=asked)
    assert loss.item() == pytest.approx(slow_focal(logits, targets.masks, targets.valid, 0.25, 2, asked), rel=1e-5)


def test_losses_of_the_parts_add_up_to_that_of_the_whole(case):
    """Also where the parts have other numbers of classes, pixels and pairs."""
    logits, targets = case
    generator = torch.Generator().manual_seed(2)
    targets = targets._replace(asked=targets.present | (torch.rand(3, 6, generator=generator) < 0.5))
    cls, other = torch.randn(2, 3, 4, generator=generator)
    paired = torch.tensor([True, True, True])
    parts = [slice(0, 2), slice(2, 3)]

    def counts_of(part):
        terms = loss_terms(TrainSettings())
        pixels = torch.zeros(len(paired[part]), 3, 5, 7, dtype=torch.uint8)
        pairs = PairedImages(pixels, pixels, paired[part], torch.zeros_like(paired[part]))
        return torch.cat([term.count(targets.part(part), pairs) for term in terms])

    counts = sum(counts_of(part) for part in parts)

    def terms(part, counts):
        some = targets.part(part)
        return torch.stack(
            [
                focal_loss(
                    logits[part], some.masks, some.valid, alpha=0.25, gamma=2, asked=some.asked, count=counts[0]
                ),
                dice_loss(logits[part], some.masks, some.valid, some.present, count=counts[1]),
                counterfactual_loss(cls[part], other[part], true_pairs(some, paired[part]), count=counts[2]),
            ]
        )

    whole = slice(0, 3)
    torch.testing.assert_close(sum(terms(part, counts) for part in parts), terms(whole, counts_of(whole)))
    torch.testing.assert_close(
        terms(whole, counts)[0],
        focal_loss(logits, targets.masks, targets.valid, alpha=0.25, gamma=2, asked=targets.asked),
    )
    torch.testing.assert_close(
        terms(whole, counts)[1], dice_loss(logits, targets.masks, targets.valid, targets.present)
    )


def test_an_image_without_objects_does_not_count_as_a_pair(case):
    _, targets = case
    paired = torch.tensor([True, True, False])
    assert true_pairs(targets, paired).tolist() == [True, False, False]
    place = (~targets.present[0]).nonzero()[0].item()
    some = targets.of_classes(slice(place, place + 1))
    assert true_pairs(some, paired).tolist() == [True, False, False], "whichever classes are looked at"


def test_counterfactual_is_its_formula():
    generator = torch.Generator().manual_seed(5)
    class_map = torch.tensor([[[1, 0]], [[IGNORE, 0]], [[0, 2]], [[3, 3]], [[0, 1]]])
    cls, other = torch.randn(2, 5, 4, generator=generator)
    paired = torch.tensor([True, True, False, True, True])
    targets = sample_targets(class_map, torch.rand(5, 4, generator=generator), sampled_classes=3)
    loss = counterfactual_loss(cls, other, true_pairs(targets, paired))
    assert loss.item() == pytest.approx(slow_counterfactual(cls, other, paired, class_map), rel=1e-5)


@pytest.mark.parametrize("limited", [False, True])
def test_targets_equal_those_of_a_loop_over_classes(limited):
    generator = torch.Generator().manual_seed(6)
    for sampled in (2, 5, 9):
        class_map = torch.randint(0, 8, (4, 3, 3), generator=generator) * torch.tensor([1, 0, 1, 1])[:, None, None]
        class_map[2, 0] = IGNORE
        draws = torch.rand(4, 8, generator=generator)
        allowed = torch.rand(4, 8, generator=generator) < 0.5 if limited else None
        targets = sample_targets(class_map, draws, sampled_classes=sampled, allowed=allowed)
        for b in range(4):
            expected = slow_targets(
                class_map[b].tolist(), draws[b].tolist(), sampled, allowed[b].tolist() if limited else None
            )
            assert set(targets.classes[b].tolist()) == expected.keys()
            for place, position in enumerate(targets.classes[b].tolist()):
                found = targets.masks[b, place].tolist(), targets.present[b, place], targets.asked[b, place]
                assert found == expected[position]
            assert targets.valid[b, 0].tolist() == [[id_ != IGNORE for id_ in row] for row in class_map[b].tolist()]


def test_focal_is_torchvisions(case):
    ops = pytest.importorskip("torchvision.ops")
    logits, targets = case
    expected = ops.sigmoid_focal_loss(logits, targets.masks.float(), alpha=0.25, gamma=2)
    valid = targets.valid.expand_as(logits)
    loss = focal_loss(logits, targets.masks, targets.valid, alpha=0.25, gamma=2)
    torch.testing.assert_close(loss, expected[valid].mean())


def test_dice_is_its_formula(case):
    logits, targets = case
    loss = dice_loss(logits, targets.masks, targets.valid, targets.present)
    assert loss.item() == pytest.approx(slow_dice(logits, targets.masks, targets.valid, targets.present), rel=1e-5)


def test_dice_looks_at_present_classes_only(case):
    logits, targets = case
    absent = ~targets.present[..., None, None]
    changed = torch.where(absent, logits + 5, logits)
    torch.testing.assert_close(
        dice_loss(changed, targets.masks, targets.valid, targets.present),
        dice_loss(logits, targets.masks, targets.valid, targets.present),
    )


def test_ignored_pixels_change_nothing(case):
    logits, targets = case
    changed = torch.where(targets.valid, logits, logits + 9)
    for loss in (
        lambda z: focal_loss(z, targets.masks, targets.valid, alpha=0.25, gamma=2),
        lambda z: dice_loss(z, targets.masks, targets.valid, targets.present),
    ):
        torch.testing.assert_close(loss(changed), loss(logits))


def test_background_is_a_negative_for_every_sampled_class():
    class_map = torch.full((1, 2, 2), BACKGROUND)
    targets = sample_targets(class_map, torch.rand(1, 5), sampled_classes=4)
    logits = torch.zeros(1, 4, 2, 2, requires_grad=True)
    focal_loss(logits, targets.masks, targets.valid, alpha=0.25, gamma=2).backward()
    assert (logits.grad > 0).all()


def test_losses_without_valid_pixels_are_zero_with_finite_gradients():
    class_map = torch.full((2, 3, 3), IGNORE)
    targets = sample_targets(class_map, torch.rand(2, 4), sampled_classes=4)
    logits = torch.randn(2, 4, 3, 3, requires_grad=True)
    loss = focal_loss(logits, targets.masks, targets.valid, alpha=0.25, gamma=2)
    loss = loss + dice_loss(logits, targets.masks, targets.valid, targets.present)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.isfinite().all()


def test_extreme_logits_give_finite_losses_and_gradients():
    logits = torch.tensor([-200.0, 200.0, -200.0, 200.0]).view(1, 1, 2, 2).requires_grad_()
    masks = torch.tensor([True, True, False, False]).view(1, 1, 2, 2)
    loss = focal_loss(logits, masks, torch.ones(1, 1, 2, 2, dtype=torch.bool), alpha=0.25, gamma=2)
    loss.backward()
    assert loss.item() == pytest.approx((0.25 * 200 + 0.75 * 200) / 4)
    assert logits.grad.isfinite().all()


def test_counterfactual_is_the_mean_positive_cosine():
    cls = torch.tensor([[3.0, 0.0], [1.0, 1.0], [0.0, 2.0]])
    other = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 1.0]])
    expected = (1 + 0 + math.sqrt(0.5)) / 3
    assert counterfactual_loss(cls, other).item() == pytest.approx(expected)


def test_truth_indexes_the_sampled_classes():
    generator = torch.Generator().manual_seed(0)
    class_map = torch.randint(0, 21, (4, 6, 6), generator=generator)
    targets = sample_targets(class_map, torch.rand(4, 20, generator=generator), sampled_classes=20)
    for image in range(4):
        for place, position in enumerate(targets.classes[image].tolist()):
            assert torch.equal(targets.masks[image, place], class_map[image] == position + 1)
            assert targets.present[image, place] == (class_map[image] == position + 1).any()


def test_an_images_own_classes_are_always_sampled_and_none_twice():
    class_map = torch.tensor([[[4, 4], [9, 0]], [[IGNORE, 1], [0, 0]]])
    for seed in range(20):
        draws = torch.rand(2, 12, generator=torch.Generator().manual_seed(seed))
        classes = sample_targets(class_map, draws, sampled_classes=5).classes
        assert {3, 8} <= set(classes[0].tolist())
        assert 0 in classes[1].tolist()
        assert all(len(set(row)) == 5 for row in classes.tolist())


def test_a_small_vocabulary_is_sampled_whole():
    targets = sample_targets(torch.zeros(1, 2, 2, dtype=torch.int32), torch.rand(1, 3), sampled_classes=100)
    assert sorted(targets.classes[0].tolist()) == [0, 1, 2]


def test_pixels_of_an_unknown_class_are_counted_and_left_out():
    class_map = torch.tensor([[[7, 0], [4, IGNORE]], [[1, 2], [3, 3]]])
    targets = sample_targets(class_map, torch.rand(2, 3), sampled_classes=3)
    assert targets.unknown.tolist() == [2, 0]
    assert targets.valid[:, 0].tolist() == [[[False, True], [False, False]], [[True, True], [True, True]]]
    assert not targets.present[0].any()
    assert not targets.masks[0].any()
