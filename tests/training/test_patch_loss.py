"""The patch loss against its formula, written out patch by patch."""

import math

import pytest
import torch

from magicseg.miniature.caption import parse
from training import scenes
from training.clip import _RANKED_WEIGHT, patch_loss
from training.painted import answers_to

SIDE = 8
CAPTIONS = (
    "A large red car on the left, on a beach at dusk.",
    "A small blue fish on the right and a large pink kite in the middle, by a lake at noon.",
    "An empty meadow in fog.",
)


def loss_of(logits, specs):
    return patch_loss(logits, answers_to(specs), (torch.arange(SIDE**2) % SIDE)[None], SIDE)


def written_out(logits, specs):
    """The loss of several scenes: (B, patches, nouns + 1)."""
    answers = answers_to(specs)
    partial, ranked, objects = [], 0.0, 0
    for row, patches in enumerate(logits.double().tolist()):
        likely = [[value - math.log(sum(map(math.exp, patch))) for value in patch] for patch in patches]
        named = [place for place in range(len(scenes.nouns())) if answers.present[row, place]]
        inside = {
            noun: [
                patch
                for patch in range(len(likely))
                if answers.columns[row, noun, 0] < (patch % SIDE + 0.5) / SIDE < answers.columns[row, noun, 1]
            ]
            for noun in named
        }
        for patch, of_patch in enumerate(likely):
            may = [math.exp(of_patch[-1]), *(math.exp(of_patch[noun]) for noun in named if patch in inside[noun])]
            partial.append(-math.log(sum(may)))
        for noun in named:
            objects += 1
            least, most = (max(1.0, float(area) * SIDE**2) for area in answers.areas[row, noun])
            best_first = sorted(inside[noun], key=lambda patch, likely=likely, noun=noun: -likely[patch][noun])
            for rank, patch in enumerate(best_first):
                share = min(max(math.log(most / (rank + 0.5)) / math.log(most / least), 0), 1)
                ranked -= share * likely[patch][noun]
                if len(named) == 1:
                    ranked -= (1 - share) * likely[patch][-1]
    return sum(partial) / len(partial) + _RANKED_WEIGHT * ranked / SIDE**2 / max(objects, 1)


@pytest.mark.parametrize("captions", [CAPTIONS, CAPTIONS[:1], CAPTIONS[2:]])
def test_the_patch_loss_equals_its_formula(captions):
    specs = [parse(caption) for caption in captions]
    logits = 3 * torch.randn(len(specs), SIDE**2, len(scenes.nouns()) + 1, generator=torch.manual_seed(0))
    assert float(loss_of(logits, specs)) == pytest.approx(written_out(logits, specs), rel=1e-4)


def test_the_patch_loss_falls_if_patches_show_the_caption_and_stays_finite():
    specs = [parse(caption) for caption in CAPTIONS]
    answers = answers_to(specs)
    logits = torch.zeros(len(specs), SIDE**2, len(scenes.nouns()) + 1, requires_grad=True)
    loss = loss_of(logits, specs)
    loss.backward()
    assert logits.grad.isfinite().all()
    right = torch.zeros_like(logits.detach())
    right[..., -1] = 5
    for row, spec in enumerate(specs):
        for item in spec.objects:
            noun = scenes.nouns().index(item.noun)
            middle = float(answers.columns[row, noun].mean()) * SIDE
            grid = right[row].view(SIDE, SIDE, -1)
            columns = slice(max(0, round(middle) - 2), round(middle) + 1)
            grid[2:6, columns, noun] = 10
    assert float(loss_of(right, specs)) < 0.6 * float(loss.detach())


def test_words_of_place_and_size_hold_for_what_is_painted():
    """The least and the most of all that the painter does with these words, on 300 scenes."""
    for index in range(300):
        one = scenes.scene(index, seed=3, stream="words", objects=(0.0, 0.6, 0.4))
        answers = answers_to([one.spec])
        for item in one.spec.objects:
            noun = scenes.nouns().index(item.noun)
            across = torch.from_numpy(one.mask == noun + 1).any(dim=0).nonzero().flatten() / scenes.SIZE
            if not len(across):
                continue  # behind another object
            low, high = answers.columns[0, noun]
            assert float(across.min()) > float(low) - 0.03
            assert float(across.max()) < float(high) + 0.03
            assert float((one.mask == noun + 1).mean()) < float(answers.areas[0, noun, 1])
