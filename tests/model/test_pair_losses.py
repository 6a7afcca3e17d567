"""The optional losses on pairs against the slow references in `helpers.reference_losses`: values and gradients."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from helpers.reference_losses import slow_aligned_pair, slow_silence, slow_text_direction
from magicseg.config.training import TrainSettings
from magicseg.labels import BACKGROUND, IGNORE
from magicseg.model.losses import loss_terms
from magicseg.model.losses.term import ForwardPass, ImageTokens, PairedImages
from magicseg.model.targets import Targets, sample_targets

OFF = {"counterfactual_weight": 0.0}
SILENCE = {**OFF, "silence_weight": 1.0}
ALIGNED = {**OFF, "aligned_pair_weight": 1.0}
DIRECTION = {**OFF, "text_direction_weight": 1.0, "text_direction_margin": 0.8}
CLASSES, QUERIED, HEIGHT, WIDTH, DIM = 7, 4, 4, 5, 6


class Case(NamedTuple):
    """Eight images, their targets and what a model could say of them. Logits and tokens have gradients."""

    class_map: Tensor
    targets: Targets
    pairs: PairedImages
    logits: Tensor
    other: Tensor
    cls: Tensor
    other_cls: Tensor
    text: Tensor

    def part(self, images: slice) -> "Case":
        return Case(
            self.class_map[images],
            self.targets.part(images),
            PairedImages(*(values[images] for values in self.pairs)),
            *(values[images] for values in self[3:]),
        )

    def leaves(self):
        return self.logits, self.other, self.cls, self.other_cls

    def found(self) -> ForwardPass:
        nothing = torch.zeros(len(self.logits), 1, DIM)
        return ForwardPass(
            targets=self.targets,
            masks=self.targets.masks,
            pairs=self.pairs,
            text=self.text,
            images=ImageTokens(self.cls, nothing),
            counterfactuals=ImageTokens(self.other_cls, nothing),
            logits=self.logits,
            counterfactual_logits=self.other,
            earlier_logits=(),
        )


@pytest.fixture
def case() -> Case:
    """Image 1 has no object, 2 no counterfactual, 3 no labelled pixel, 4 more classes than are queried."""
    generator = torch.Generator().manual_seed(11)
    class_map = torch.randint(0, 3, (8, HEIGHT, WIDTH), generator=generator)
    class_map[1] = BACKGROUND
    class_map[4] = torch.arange(HEIGHT * WIDTH).view(HEIGHT, WIDTH) % (CLASSES + 1)
    class_map[torch.rand(class_map.shape, generator=generator) < 0.15] = IGNORE
    class_map[3] = IGNORE
    allowed = torch.rand(8, CLASSES, generator=generator) < 0.6
    draws = torch.rand(8, CLASSES, generator=generator)
    images = torch.randint(0, 256, (8, 3, HEIGHT, WIDTH), generator=generator)
    noise = torch.randint(-20, 21, images.shape, generator=generator)
    logits, other = torch.randn(2, 8, QUERIED, HEIGHT, WIDTH, generator=generator) * 2
    cls, other_cls = torch.randn(2, 8, DIM, generator=generator)
    case = Case(
        class_map=class_map,
        targets=sample_targets(class_map, draws, sampled_classes=QUERIED, allowed=allowed),
        pairs=PairedImages(
            images.to(torch.uint8),
            (images + noise).clamp(0, 255).to(torch.uint8),
            torch.arange(8) != 2,
            torch.tensor([True, True, True, True, True, False, False, True]),
        ),
        logits=logits,
        other=other,
        cls=cls,
        other_cls=other_cls,
        text=torch.randn(8, QUERIED, DIM, generator=generator),
    )
    for leaf in case.leaves():
        leaf.requires_grad_()
    return case


def term(changes):
    """The one optional term that is on."""
    terms = {each.name: each for each in loss_terms(TrainSettings(**changes))}
    (name,) = terms.keys() - {"focal", "dice"}
    return terms[name]


def value(case, changes, counts=None):
    one = term(changes)
    return one.compute(case.found(), one.count(case.targets, case.pairs) if counts is None else counts)


def reference(case, changes):
    settings = TrainSettings(**changes)
    targets, pairs = case.targets, case.pairs
    if settings.text_direction_weight:
        tokens = case.cls.double(), case.other_cls.double(), case.text.double()
        return slow_text_direction(
            *tokens, case.class_map, targets.classes, pairs.paired, settings.text_direction_margin
        )
    if settings.aligned_pair_weight:
        return slow_aligned_pair(
            case.logits.double(),
            case.other.double(),
            pairs.images.tolist(),
            pairs.counterfactuals.tolist(),
            case.class_map,
            targets.classes,
            targets.asked,
            pairs.paired,
            settings.aligned_pair_margin,
            settings.aligned_pair_tolerance,
        )
    return slow_silence(
        case.other.double(),
        case.class_map,
        targets.classes,
        targets.asked,
        pairs.paired,
        pairs.validated,
        settings.focal_alpha,
        settings.focal_gamma,
    )


def gradients(loss, case):
    found = torch.autograd.grad(loss, case.leaves(), allow_unused=True)
    return [torch.zeros_like(leaf) if grad is None else grad for leaf, grad in zip(case.leaves(), found, strict=True)]


TERMS = [
    SILENCE,
    {**SILENCE, "focal_alpha": 0.6, "focal_gamma": 0.0},
    ALIGNED,
    {**ALIGNED, "aligned_pair_tolerance": 0, "aligned_pair_margin": 0.5},
    {**ALIGNED, "aligned_pair_tolerance": 255},
    DIRECTION,
]
terms = pytest.mark.parametrize("changes", TERMS, ids=lambda changes: " ".join(sorted(changes.keys() - OFF.keys())))


def test_the_optional_terms_are_off_by_default():
    assert [each.name for each in loss_terms(TrainSettings())] == ["focal", "dice", "counterfactual"]


@terms
def test_values_and_gradients_are_the_references(case, changes):
    found, expected = value(case, changes), reference(case, changes)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    assert found.item() > 0.01
    for one, other in zip(gradients(found, case), gradients(expected, case), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@terms
@pytest.mark.parametrize("sizes", [(1, 7), (3, 3, 2), (1,) * 8])
def test_parts_of_a_batch_add_up_to_the_whole(case, changes, sizes):
    ends = torch.tensor(sizes).cumsum(0).tolist()
    parts = [case.part(slice(end - size, end)) for size, end in zip(sizes, ends, strict=True)]
    counts = sum(term(changes).count(part.targets, part.pairs) for part in parts)
    together = sum(value(part, changes, counts) for part in parts)
    whole = value(case, changes)
    torch.testing.assert_close(together, whole)
    for one, other in zip(gradients(together, case), gradients(whole, case), strict=True):
        torch.testing.assert_close(one, other)


@terms
@pytest.mark.parametrize("image", [1, 2, 3], ids=["no object", "no counterfactual", "no label"])
def test_an_image_that_differs_from_no_counterfactual_does_not_count(case, changes, image):
    alone = case.part(slice(image, image + 1))
    assert not term(changes).count(alone.targets, alone.pairs).any()
    loss = value(alone, changes)
    assert loss.item() == 0
    assert all(not grad.any() for grad in gradients(loss, case))
    assert all(not grad[image].any() for grad in gradients(value(case, changes), case))


@terms
def test_extreme_logits_give_finite_values_and_gradients(case, changes):
    far = case._replace(logits=case.logits * 1e4, other=case.other * 1e4)
    loss = value(far, changes)
    assert loss.isfinite()
    assert all(grad.isfinite().all() for grad in gradients(loss, case))


def test_silence_asks_only_for_own_classes_where_the_pair_was_not_validated(case):
    grad = gradients(value(case, SILENCE), case)[1]
    reached = grad.abs().sum((2, 3)) > 0
    for image in (0, 4, 7):
        assert torch.equal(reached[image], case.targets.asked[image])
    for image in (5, 6):
        assert torch.equal(reached[image], case.targets.present[image])
        assert case.targets.asked[image].sum() > case.targets.present[image].sum()


def test_aligned_pairs_agree_outside_only_where_the_pixels_do(case):
    """A pair whose images differ everywhere has the margin inside alone."""
    pairs = case.pairs._replace(counterfactuals=(case.pairs.images.int() + 128).to(torch.uint8))
    apart = case._replace(pairs=pairs)
    outside, inside = term(ALIGNED).count(apart.targets, apart.pairs).tolist()
    assert outside == 0 < inside
    grad = gradients(value(apart, ALIGNED), apart)
    assert not any(each.masked_select(~case.targets.masks).any() for each in grad[:2])
    torch.testing.assert_close(grad[0], -grad[1])
    assert (grad[0] <= 0).all(), "higher in the image, lower in the counterfactual"


def test_text_direction_moves_the_tokens_along_the_text_of_present_classes_only(case):
    (whole,) = term(DIRECTION).count(case.targets, case.pairs).tolist()
    assert whole == sum(case.targets.present[image].sum() for image in range(8) if image != 2)
    absent = ~case.targets.present[:, :, None]
    changed = case._replace(text=torch.where(absent, -case.text, case.text))
    torch.testing.assert_close(value(changed, DIRECTION), value(case, DIRECTION))
    settled = case._replace(other_cls=-case.cls, text=case.cls.detach()[:, None].expand_as(case.text))
    assert value(settled, DIRECTION).item() == 0
