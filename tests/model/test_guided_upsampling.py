"""Guided upsampling: weights and masks against loops over pixels, edges of the image, models with and without it."""

import numpy as np
import pytest
import torch

from helpers.tiny_models import tiny_settings
from magicseg import load_model
from magicseg.model.guided_upsampling import GuidedUpsampling
from magicseg.model.saved_model import save_segmenter
from magicseg.model.segmenter import build_segmenter

STRIDE, ROWS, COLUMNS = 4, 3, 2
SIZE = (ROWS * STRIDE, COLUMNS * STRIDE)


def images(count=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, *SIZE), dtype=torch.uint8, generator=generator)


@pytest.fixture
def upsampling():
    torch.manual_seed(0)
    return GuidedUpsampling(embed_dim=8, stride=STRIDE).eval().requires_grad_(False)


def tokens(count=2):
    torch.manual_seed(1)
    return torch.nn.functional.normalize(torch.randn(count, ROWS * COLUMNS, 8), dim=-1)


def inside(row, column):
    """The nearest patch of the grid."""
    return min(max(row, 0), ROWS - 1), min(max(column, 0), COLUMNS - 1)


def reference(upsampling, pixels, patches, logits):
    """Masks of one image, pixel by pixel, by the formula of the class's docstring."""
    features = upsampling.stem(pixels[None] / 127.5 - 1)[0]
    to_query, to_key = (each.weight[:, :, 0, 0] for each in (upsampling.to_query, upsampling.to_key))
    keys = {}
    for row in range(ROWS):
        for column in range(COLUMNS):
            top, left = row * STRIDE, column * STRIDE
            mean = features[:, top : top + STRIDE, left : left + STRIDE].mean((1, 2))
            token = upsampling.from_token(patches[row * COLUMNS + column] * 8**0.5)
            keys[row, column] = to_key @ mean + token
    found = torch.empty(len(logits), *SIZE)
    for y in range(SIZE[0]):
        for x in range(SIZE[1]):
            query = to_query @ features[:, y, x] + upsampling.to_query.bias
            scores, values = [], []
            for row in range(y // STRIDE - 1, y // STRIDE + 2):
                for column in range(x // STRIDE - 1, x // STRIDE + 2):
                    patch = inside(row, column)
                    down, across = (y + 0.5) / STRIDE - (row + 0.5), (x + 0.5) / STRIDE - (column + 0.5)
                    score = query @ keys[patch] / len(query) ** 0.5 - 2 * (down**2 + across**2)
                    scores.append(score)
                    values.append(logits[:, patch[0], patch[1]])
            found[:, y, x] = torch.stack(values, -1) @ torch.stack(scores).softmax(0)
    return found


def test_each_pixel_is_the_weighted_mean_of_the_patches_around_it(upsampling):
    pixels, patches = images(), tokens()
    logits = torch.randn(2, 5, ROWS, COLUMNS)
    found = upsampling.upsample(logits, upsampling(pixels, patches))
    expected = torch.stack([reference(upsampling, *each) for each in zip(pixels, patches, logits, strict=True)])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_constant_mask_stays_constant(upsampling):
    weights = upsampling(images(), tokens())
    torch.testing.assert_close(
        upsampling.upsample(torch.full((2, 1, ROWS, COLUMNS), 3.0), weights), torch.full((2, 1, *SIZE), 3.0)
    )


def test_bilinear_models_have_the_weights_that_they_had_before():
    plain = build_segmenter(tiny_settings(), seed=3).state_dict()
    guided = build_segmenter(tiny_settings().model_copy(update={"upsampling": "guided"}), seed=3).state_dict()
    assert {name.split(".")[0] for name in guided.keys() - plain.keys()} == {"upsampling"}
    assert all(torch.equal(guided[name], value) for name, value in plain.items())


def guided_model():
    settings = tiny_settings(decoder_layers=2).model_copy(update={"upsampling": "guided"})
    return build_segmenter(settings, seed=0)


def test_all_layers_are_upsampled_by_the_same_weights():
    model, pixels = guided_model().eval(), torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    cls, patches = model.encode_images(pixels)
    text = model.encode_classes(["car", "house"])
    upsample = model.upsampler(patches, pixels)
    layers = [upsample(each) for each in model.decode_on_grid(cls, patches, text, (32, 32), every_layer=True)]
    weights = model.upsampling(pixels, patches)
    grids = [each.view(2, 2, 4, 4) for each in model.decoder.every_layer(cls, patches, text.expand(2, -1, -1))]
    for layer, grid in zip(layers, grids, strict=True):
        torch.testing.assert_close(layer, model.upsampling.upsample(grid, weights))
    torch.testing.assert_close(layers[-1], model(pixels, text).logits)
    torch.testing.assert_close(layers[-1], model.native_logits(pixels, text))


def test_every_parameter_of_the_upsampling_learns():
    model = guided_model().train()
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    model(pixels, model.encode_classes(["car"])).logits.square().mean().backward()
    assert [name for name, value in model.upsampling.named_parameters() if not value.grad.any()] == []


def test_a_saved_model_segments_images_of_any_size(tmp_path):
    save_segmenter(guided_model(), tmp_path, provenance={})
    image = np.random.default_rng(0).integers(0, 256, (45, 61, 3), dtype=np.uint8)
    model = load_model(tmp_path)
    for window in (None, 32):
        assert model.segment(image, ["car", "house"], window=window).labels.shape == (45, 61)
