"""Hard negatives: the strongest absent classes replace random ones, and nothing else changes."""

import pytest
import torch

from helpers.reference_losses import slow_hard_negatives, slow_responses
from magicseg.config.training import TrainSettings
from magicseg.labels import BACKGROUND, IGNORE
from magicseg.model.hard_negatives import class_responses, with_hard_negatives
from magicseg.model.losses import loss_terms
from magicseg.model.losses.pairs import true_pairs
from magicseg.model.losses.term import PairedImages
from magicseg.model.targets import sample_targets

IMAGES, CLASSES = 10, 12
ALL_TERMS = {
    "deep_supervision_weight": 1.0, "silence_weight": 1.0, "aligned_pair_weight": 1.0, "text_direction_weight": 1.0,
}  # fmt: skip


def drawn(seed, queried, *, limited=True):
    """Images with 0 to 3 own classes; image 4 has more than are queried, image 5 is not paired."""
    generator = torch.Generator().manual_seed(seed)
    class_map = torch.randint(0, 3, (IMAGES, 4, 6), generator=generator) * torch.randint(
        0, 5, (IMAGES, 1, 1), generator=generator
    )
    class_map[4] = torch.arange(24).view(4, 6) % (CLASSES + 1)
    class_map[0, 0], class_map[1], class_map[2] = IGNORE, BACKGROUND, IGNORE
    allowed = torch.rand(IMAGES, CLASSES, generator=generator) < 0.5 if limited else None
    draws = torch.rand(IMAGES, CLASSES, generator=generator)
    targets = sample_targets(class_map, draws, sampled_classes=queried, allowed=allowed)
    responses = torch.randn(IMAGES, CLASSES, generator=generator)
    return targets, allowed, responses, torch.arange(IMAGES) != 5


@pytest.mark.parametrize("count", [1, 2, 5, 50])
@pytest.mark.parametrize("limited", [False, True], ids=["one source", "sources"])
def test_the_strongest_absent_classes_replace_the_last_random_ones(count, limited):
    for seed, queried in enumerate((2, 5, 8, CLASSES)):
        targets, allowed, responses, paired = drawn(seed, queried, limited=limited)
        images = true_pairs(targets, paired)
        changed = with_hard_negatives(targets, responses, count=count, images=images, allowed=allowed)
        for b in range(IMAGES):
            found = changed.classes[b].tolist()
            assert len(set(found)) == queried
            if not images[b]:
                assert torch.equal(changed.classes[b], targets.classes[b])
                continue
            may = [True] * CLASSES if allowed is None else allowed[b].tolist()
            present, asked = targets.present[b].tolist(), targets.asked[b].tolist()
            own, others, unasked = slow_hard_negatives(
                targets.classes[b].tolist(), present, asked, responses[b].tolist(), count, may
            )
            named = list(zip(found, present, asked, strict=True))
            assert {c for c, is_own, _ in named if is_own} == own
            assert {c for c, is_own, is_asked in named if is_asked and not is_own} == others
            assert {c for c, _, is_asked in named if not is_asked} == unasked


def test_nothing_but_the_absent_classes_changes_so_the_losses_counts_do_not():
    terms = loss_terms(TrainSettings(**ALL_TERMS))
    assert len(terms) == 7
    changes = 0
    for seed in range(5):
        targets, allowed, responses, paired = drawn(seed, 6)
        pixels = torch.randint(0, 256, (2, IMAGES, 3, 4, 6), generator=torch.Generator().manual_seed(seed))
        pairs = PairedImages(*pixels.to(torch.uint8), paired, torch.arange(IMAGES) % 2 == 0)
        images = true_pairs(targets, paired)
        changed = with_hard_negatives(targets, responses, count=3, images=images, allowed=allowed)
        changes += int((changed.classes != targets.classes).sum())
        assert not (changed.classes != targets.classes)[targets.present | ~targets.asked].any()
        for one, other in zip(changed[1:], targets[1:], strict=True):
            assert torch.equal(one, other)
        assert torch.equal(changed.masks, targets.masks), "the masks of absent classes are empty"
        for term in terms:
            assert torch.equal(term.count(changed, pairs), term.count(targets, pairs)), term.name
    assert changes > 5


def test_an_image_gets_the_same_classes_alone_and_in_a_batch():
    targets, allowed, responses, paired = drawn(1, 6)
    images = true_pairs(targets, paired)
    whole = with_hard_negatives(targets, responses, count=3, images=images, allowed=allowed).classes
    for b in range(IMAGES):
        one = slice(b, b + 1)
        alone = with_hard_negatives(
            targets.part(one), responses[one], count=3, images=images[one], allowed=allowed[one]
        )
        assert torch.equal(alone.classes, whole[one])


def test_a_response_is_the_largest_cosine_with_a_patch_that_has_a_valid_pixel():
    generator = torch.Generator().manual_seed(4)
    patches = torch.randn(3, 6, 5, generator=generator, requires_grad=True)
    texts = torch.randn(7, 5, generator=generator)
    valid = torch.rand(3, 1, 4, 6, generator=generator) < 0.3
    valid[1] = False
    found = class_responses(patches, texts, valid)
    assert not found.requires_grad
    torch.testing.assert_close(found, torch.tensor(slow_responses(patches.detach(), texts, valid, 2)))
    assert found[1].tolist() == [-torch.inf] * 7
    assert len(set(found[0].tolist())) > 1
