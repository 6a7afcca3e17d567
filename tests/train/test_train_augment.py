"""Augmentations: aligned over image, counterfactual and mask, drawn per sample, equal to a slow reference."""

import colorsys
from dataclasses import dataclass

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from magicseg.config.training_data import DataSettings
from magicseg.core.errors import ConfigError
from magicseg.data import augmentation
from magicseg.data.augmentation import Crop, choose_crop, cut_image, cut_mask, distort, draw_distortion
from magicseg.data.dataset import Mixture, Pick, SampleDataset, input_size, order_of
from magicseg.data.loader import load_batches
from magicseg.data.sampler import Steps
from magicseg.labels import IGNORE

STEP = 20  # between the colours of neighbouring ids


@dataclass(frozen=True)
class Painted:
    """Images of different sizes whose colour is their id: red STEP * id in the image, green in the counterfactual."""

    count: int = 12
    paired: bool = True
    image_size: None = None
    shard_size: int = 4
    allowed: None = None
    validated: bool = False

    @property
    def indices(self):
        return np.arange(self.count)

    def labels(self):
        return np.ones((self.count, 1), np.uint16)

    def read(self, indices):
        images, others, masks = [], [], []
        for index in indices:
            rng = np.random.default_rng(int(index))
            height, width = rng.integers(40, 100, 2)
            mask = np.zeros((height, width), np.uint16)
            for id_ in range(1, 5):
                top, left = rng.integers(0, height - 10), rng.integers(0, width - 10)
                mask[top : top + 24, left : left + 24] = id_
            images.append(np.stack([mask * STEP, 0 * mask, 0 * mask], -1).astype(np.uint8))
            others.append(np.stack([0 * mask, mask * STEP, 0 * mask], -1).astype(np.uint8))
            masks.append(mask)
        return images, others if self.paired else None, masks


def settings(**changes):
    """Crops of 48 from images scaled to about 32 to 128."""
    return DataSettings(
        **{"crop": 48, "resize_short": 64, "resize_long": 256, "photometric": False, "loader_workers": 0, **changes}
    )


def inner(mask):
    """Pixels whose neighbours all have the same id: interpolation mixes no colours there."""
    low = np.stack([cv2.erode(each.astype(np.uint16), np.ones((5, 5))) for each in mask])
    high = np.stack([cv2.dilate(each.astype(np.uint16), np.ones((5, 5))) for each in mask])
    return (low == high) & (mask != IGNORE)


@pytest.mark.parametrize("paste", [0.0, 1.0])
def test_image_counterfactual_and_mask_stay_aligned(paste):
    samples = Painted()
    changes = settings(flip=0.5, paste=paste)
    picks = [Pick(epoch, index, (index + 1) % 12) for epoch in range(4) for index in range(12)]
    batch = SampleDataset(samples, changes, seed=3).__getitems__(picks)
    assert batch.images.shape == (48, 3, 48, 48)
    assert batch.masks.shape == (48, 48, 48)
    mask = batch.masks.numpy()
    where = inner(mask)
    assert where.mean() > 0.2
    off = np.abs(batch.images[:, 0].numpy().astype(int) - mask * STEP)[where] > 2
    assert off.mean() <= (0.03 if paste else 0)  # a pasted object brings a rim of mixed colours, on any ground
    if not paste:
        assert np.abs(batch.counterfactuals[:, 1].numpy().astype(int) - mask * STEP)[where].max() <= 2
    padded = (mask == IGNORE) & (batch.images.numpy().transpose(0, 2, 3, 1) == augmentation.MEAN_COLOUR).all(-1)
    assert 0 < padded.mean() < 0.5
    assert np.array_equal(padded, mask == IGNORE)


def test_a_sample_without_counterfactual_says_so_and_shows_its_image():
    mixture = Mixture((Painted(), Painted(paired=False)), (1.0, 1.0))
    changes = settings(paste=0.5, photometric=True)
    batch = SampleDataset(mixture, changes, seed=0).__getitems__(order_of(mixture, changes, seed=0).batch(0, 16))
    assert batch.paired.tolist() == [source == 0 for source in batch.sources.tolist()]
    assert 0 < batch.paired.sum() < 16
    assert torch.equal(batch.images[~batch.paired], batch.counterfactuals[~batch.paired])
    assert not torch.equal(batch.images[batch.paired], batch.counterfactuals[batch.paired])


def test_a_sample_is_changed_alike_in_any_batch_and_anew_in_every_epoch_copy_and_source():
    changes = settings(paste=0.5, photometric=True)
    dataset = SampleDataset(Mixture((Painted(), Painted()), (1, 1)), changes, seed=3)
    picks = [Pick(epoch, 5, 6, source, copy) for epoch in range(2) for source in range(2) for copy in range(2)]
    together = dataset.__getitems__(picks)
    for place, pick in enumerate(picks):
        alone = dataset.__getitems__([pick])
        assert all(torch.equal(one[0], many[place]) for one, many in zip(alone, together, strict=True))
    images = together.images.numpy()
    assert all(not np.array_equal(images[a], images[b]) for a in range(8) for b in range(a))


@pytest.mark.slow
def test_reader_processes_and_ranks_do_not_change_the_batches():
    changes = settings(paste=0.3, photometric=True)
    samples = Painted()
    order, dataset = order_of(samples, changes, seed=1), SampleDataset(samples, changes, seed=1)
    whole = list(load_batches(dataset, Steps(order, batch_size=6, start=0, stop=4), workers=0))
    for workers, world in ((2, 1), (0, 3), (1, 2)):
        parts = [
            list(
                load_batches(
                    dataset,
                    Steps(order, batch_size=6, start=0, stop=4, rank=rank, world=world),
                    workers=workers,
                )
            )
            for rank in range(world)
        ]
        for step, batch in enumerate(whole):
            for rank in range(world):
                for expected, got in zip(batch, parts[rank][step], strict=True):
                    assert torch.equal(expected[rank::world], got)


def test_images_of_different_sizes_need_a_crop():
    assert input_size(Painted(), settings()) == 48
    with pytest.raises(ConfigError, match=r"differ in size.*train\.crop is null"):
        input_size(Painted(), settings(crop=None))


def share(region):
    """The largest share that one class has of the pixels that count."""
    _, counts = np.unique(region[region != IGNORE], return_counts=True)
    return counts.max() / counts.sum() if counts.size > 1 else 1.0


@given(seed=st.integers(0, 2**32), height=st.integers(1, 90), width=st.integers(1, 90))
def test_a_crop_is_inside_the_image_and_keeps_its_scale_and_aspect(seed, height, width):
    crop = choose_crop(np.zeros((height, width), np.uint16), settings(), np.random.default_rng(seed))
    assert 0 <= crop.top <= height - crop.height
    assert 0 <= crop.left <= width - crop.width
    assert 1 <= crop.to_height <= 48
    assert 1 <= crop.to_width <= 48
    ratio = np.random.default_rng(seed).uniform(0.5, 2)
    scale = ratio * min(256 / max(height, width), 64 / min(height, width))
    for taken, became, side in ((crop.height, crop.to_height, height), (crop.width, crop.to_width, width)):
        if became < 48:
            assert taken == side
            assert became == max(1, int(side * scale + 0.5))
        else:
            assert abs(taken - min(side, 48 / scale)) <= 1


def test_the_first_crop_is_taken_in_which_no_class_has_more_than_its_share():
    rng = np.random.default_rng(0)
    tried = taken = 0
    for seed in range(200):
        mask = np.zeros((128, 128), np.uint16)
        top, left = rng.integers(0, 100, 2)
        mask[top : top + 40, left : left + 40] = 7
        mask[:4] = IGNORE
        changes = settings(scale_low=2.0)
        crop = choose_crop(mask, changes, np.random.default_rng(seed))
        draws = np.random.default_rng(seed)
        draws.uniform()
        tops, lefts = (draws.integers(0, 128 - crop.height + 1, augmentation.TRIES) for _ in range(2))
        windows = [mask[y : y + crop.height, x : x + crop.width] for y, x in zip(tops, lefts, strict=True)]
        good = [place for place, window in enumerate(windows) if share(window) <= 0.75]
        expected = good[0] if good else augmentation.TRIES - 1
        assert (crop.top, crop.left) == (tops[expected], lefts[expected])
        tried, taken = tried + bool(good), taken + (expected > 0)
    assert tried > 20
    assert taken > 20


def test_a_crop_that_is_cut_alone_is_the_resized_image_cut():
    image = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8), (0, 0), 3)
    crop = Crop(top=16, left=32, height=48, width=48, to_height=96, to_width=96)
    whole = cv2.resize(image, (256, 192), interpolation=cv2.INTER_LINEAR)[32:128, 64:160]
    inside = (slice(2, -2), slice(2, -2))
    assert np.abs(whole.astype(int) - cut_image(image, crop))[inside].max() <= 1
    mask = np.arange(96 * 128, dtype=np.uint16).reshape(96, 128)
    assert np.array_equal(cut_mask(mask, crop), mask[16:64, 32:80].repeat(2, 0).repeat(2, 1))


def reference(image, draws):
    """SSD's distortion pixel by pixel, in real numbers; ``draws`` as `draw_distortion` takes them."""
    brighter, contrasted, first, saturated, turned = (draws.random(5) < 0.5).tolist()
    delta, contrast, saturation = draws.uniform(-32, 32), draws.uniform(0.5, 1.5), draws.uniform(0.5, 1.5)
    turn = int(draws.integers(-18, 19)) / 180
    result = np.empty(image.shape)
    for place in np.ndindex(image.shape[:2]):
        pixel = image[place].astype(float)
        if brighter:
            pixel = np.clip(pixel + delta, 0, 255)
        if contrasted and first:
            pixel = np.clip(pixel * contrast, 0, 255)
        if saturated or turned:
            hue, chroma, value = colorsys.rgb_to_hsv(*(pixel / 255))
            chroma = min(1, chroma * saturation) if saturated else chroma
            hue = (hue + turn) % 1 if turned else hue
            pixel = np.array(colorsys.hsv_to_rgb(hue, chroma, value)) * 255
        if contrasted and not first:
            pixel = np.clip(pixel * contrast, 0, 255)
        result[place] = pixel
    return result


def test_distortion_is_that_of_a_slow_reference():
    image = np.random.default_rng(0).integers(0, 256, (12, 12, 3), np.uint8)
    changed, before = 0, image.copy()
    for seed in range(60):
        got = distort(image, draw_distortion(np.random.default_rng(seed))).astype(float)
        difference = np.abs(got - reference(image, np.random.default_rng(seed)))
        # OpenCV's hue has steps of 2 degrees: up to 255 / 60 * 1 levels, times the contrast.
        assert difference.max() <= 8
        assert difference.mean() <= 1.5
        changed += not np.array_equal(got, image)
    assert np.array_equal(image, before)
    assert 50 < changed < 60  # all four are off in one of 16


def test_image_and_counterfactual_are_distorted_alike(squares):
    samples = squares(np.arange(8))
    changes = settings(crop=None, photometric=True, flip=0.0)
    batch = SampleDataset(samples, changes, seed=0).__getitems__([Pick(0, index, index) for index in range(8)])
    same = (samples.read(np.arange(8))[2] == 0)[:, None].repeat(3, axis=1)
    assert torch.equal(batch.images[torch.from_numpy(same)], batch.counterfactuals[torch.from_numpy(same)])
    assert not np.array_equal(batch.images.permute(0, 2, 3, 1).numpy(), samples.read(np.arange(8))[0])
