"""The memory bank, on patches whose features are their mean colours."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from magicseg.core.errors import DataError
from magicseg.evaluate.heads.memory_bank import MemoryBankHead, build_bank
from magicseg.labels import BACKGROUND, IGNORE, Label, Vocabulary
from magicseg.model.decoder import upsample_logits

SIDE, STRIDE = 16, 4
COLOURS = {0: (128, 128, 128), 1: (255, 0, 0), 2: (0, 255, 0)}
VOCABULARY = Vocabulary(
    name="colours",
    labels=(Label(id=1, name="red", synonyms=("crimson",)), Label(id=2, name="green"), Label(id=3, name="blue")),
)


def features(images):
    """The mean colour of each patch, as a unit vector."""
    means = F.avg_pool2d(images.float(), STRIDE).flatten(2).transpose(1, 2)
    return F.normalize(means + 1, dim=-1)


class Halves:
    """Sample i: the left half shows class 1 + i % 2, the right one nothing."""

    shard_size, image_size, allowed = 4, SIDE, None

    def __init__(self, count=6):
        self.indices = np.arange(count)

    def read(self, indices):
        masks = np.zeros((len(indices), SIDE, SIDE), np.uint16)
        for place, index in enumerate(indices):
            masks[place, :, : SIDE // 2] = 1 + index % 2
        images = np.array([COLOURS[value] for value in range(3)], np.uint8)[masks]
        masks[:, 0] = IGNORE
        return images, images, masks


def make(**changes):
    bank = build_bank(Halves(), VOCABULARY, features, stride=STRIDE, **{"limit": 100, "prototypes": 2} | changes)
    return MemoryBankHead(bank, features, stride=STRIDE, identity={"encoder": "colours"})


def picture():
    image = np.full((SIDE, SIDE, 3), 128, np.uint8)
    image[8:, :8], image[8:, 8:] = COLOURS[2], COLOURS[1]
    return torch.from_numpy(image).permute(2, 0, 1)[None]


def test_a_pixel_gets_the_class_whose_prototype_is_nearest_and_none_where_the_background_is():
    head = make()
    head.prepare([["green"], ["red"]])
    logits = upsample_logits(head.logits(picture()), (SIDE, SIDE))
    scores = torch.stack([head.score(logits, torch.full((1, SIDE, SIDE), k), "log-odds") for k in (0, 1)], 1)[0]
    scores = scores.sigmoid()
    assert scores.shape == (2, SIDE, SIDE)
    assert (scores[:, :4] < 0.5 + 1e-6).all()
    assert (scores[0, 12:, :4] > 0.99).all()
    assert (scores[1, 12:, 12:] > 0.99).all()
    assert (scores[1, 12:, :4] < 0.01).all()


def test_samples_that_are_read_one_by_one_give_the_same_bank():
    class Single(Halves):
        def read(self, indices):  # as a run's samples are, unless whole shards are asked for
            return tuple(list(arrays) for arrays in super().read(indices))

    one, two = (
        build_bank(each, VOCABULARY, features, stride=STRIDE, limit=9, prototypes=2) for each in (Halves(), Single())
    )
    assert torch.equal(one.prototypes, two.prototypes)
    assert torch.equal(one.classes, two.classes)


def test_classes_are_found_by_any_of_their_names_and_unknown_ones_are_told():
    head = make()
    head.prepare([["vermilion", "Crimson"], ["yellow"], ["blue"]])
    assert head.lacking == ("yellow", "blue")  # no sample shows blue
    logits = upsample_logits(head.logits(picture()), (SIDE, SIDE))
    assert (logits[:, 1:] < -1000).all()
    assert (logits[0, 0, 12:, 12:] > 5).all()


def test_a_bank_is_a_function_of_its_samples_and_holds_a_few_prototypes_of_each():
    one, two = (build_bank(Halves(40), VOCABULARY, features, stride=STRIDE, limit=9, prototypes=3) for _ in range(2))
    assert torch.equal(one.prototypes, two.prototypes)
    assert one.samples == 9
    assert torch.allclose(one.prototypes.norm(dim=1), torch.ones(len(one.prototypes)))
    counts = torch.bincount(one.classes)
    assert len(counts) == 3
    assert all(1 <= count <= 3 for count in counts)


def test_ignored_pixels_are_no_part_of_a_prototype():
    bank = build_bank(Halves(1), VOCABULARY, features, stride=STRIDE, limit=1, prototypes=1)
    red = bank.prototypes[bank.classes == 1]
    assert torch.allclose(red, F.normalize(torch.tensor([[256.0, 1.0, 1.0]])), atol=1e-6)


def test_samples_without_a_class_make_no_bank():
    class Empty(Halves):
        def read(self, indices):
            images, others, masks = super().read(indices)
            return images, others, np.full_like(masks, BACKGROUND)

    with pytest.raises(DataError, match="nothing to make a bank of"):
        build_bank(Empty(), VOCABULARY, features, stride=STRIDE, limit=10, prototypes=1)
