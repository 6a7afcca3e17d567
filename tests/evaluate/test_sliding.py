"""The sliding window against a naive one, and the rules of mmsegmentation that it follows."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from magicseg.evaluate.sliding import padded_size, resized_size, slide, window_places
from magicseg.model.segmenter import build_segmenter
from magicseg.model.settings import EncoderSettings, ModelSettings

SIZES = st.tuples(st.integers(1, 70), st.integers(1, 70))


def by_neighbourhood(crops):
    """Two logits that depend on a pixel's place in the crop, so that every window gives others."""
    pixels = crops.float()
    height, width = pixels.shape[-2:]
    rows = torch.linspace(0, 1, height)[:, None]
    columns = torch.linspace(0, 2, width)
    blurred = F.avg_pool2d(pixels, 3, 1, 1)
    return torch.stack([pixels[:, 0] * rows + columns, blurred[:, 1] - columns * pixels[:, 2]], dim=1)


def picture(size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def naive(logits_of, image, window, stride, multiple):
    """Pixel by pixel: the mean over the windows that hold it, each run alone. No resizing."""
    height, width = image.shape[:2]
    tall, wide = (side if side >= window else -(-side // multiple) * multiple for side in (height, width))
    padded = np.pad(image, ((0, tall - height), (0, wide - width), (0, 0)), mode="edge")
    side_y, side_x = min(window, tall), min(window, wide)
    tops = sorted({min(top, tall - side_y) for top in range(0, tall, stride)})
    lefts = sorted({min(left, wide - side_x) for left in range(0, wide, stride)})
    found = {}
    for top in tops:
        for left in lefts:
            crop = padded[top : top + side_y, left : left + side_x]
            logits = logits_of(torch.from_numpy(crop.copy()).permute(2, 0, 1)[None])[0].numpy()
            for y in range(side_y):
                for x in range(side_x):
                    found.setdefault((top + y, left + x), []).append(logits[:, y, x].astype(np.float64))
    return np.stack([[np.mean(found[y, x], axis=0) for x in range(width)] for y in range(height)]).transpose(2, 0, 1)


@pytest.mark.parametrize("size", [(40, 40), (16, 16), (41, 67), (16, 50), (9, 33), (5, 7), (17, 16)])
def test_sliding_equals_a_naive_mean_over_windows(size):
    image = picture(size)
    ours = slide(by_neighbourhood, image, short_side=None, window=16, stride_px=11, batch_size=3, multiple=4)
    assert ours.shape == (2, *size)
    assert ours.dtype == torch.float32
    np.testing.assert_allclose(ours.numpy(), naive(by_neighbourhood, image, 16, 11, 4), rtol=1e-5, atol=1e-4)


@given(SIZES, st.integers(1, 5), st.integers(0, 99))
def test_windows_at_a_time_change_nothing_where_the_model_has_no_rounding(size, batch, seed):
    image = picture(size, seed)

    def whole_numbers(crops):
        return torch.cat([crops, crops.flip(1)], dim=1).float()

    one = slide(whole_numbers, image, short_side=None, window=16, stride_px=10, batch_size=1, multiple=4)
    many = slide(whole_numbers, image, short_side=None, window=16, stride_px=10, batch_size=batch, multiple=4)
    assert torch.equal(one, many)
    assert torch.equal(one[:3], torch.from_numpy(image).permute(2, 0, 1).float())


@given(SIZES)
def test_a_model_that_repeats_its_input_gives_the_image_back(size):
    image = picture(size)
    for window in (None, 8, 32):
        logits = slide(
            lambda crops: crops.float(), image, short_side=None, window=window, stride_px=7, batch_size=4, multiple=8
        )
        torch.testing.assert_close(logits, torch.from_numpy(image).permute(2, 0, 1).float())


def test_a_small_vision_transformer_slides_as_it_would_window_by_window():
    model = build_segmenter(
        ModelSettings(
            encoder=EncoderSettings(image_size=32, width=16, layers=1, heads=2, embed_dim=16),
            prompt_tokens=1,
            decoder_layers=1,
            decoder_width=16,
            decoder_heads=2,
        ),
        seed=0,
    ).eval()
    with torch.inference_mode():
        text = model.encode_classes(["cat", "dog", "car"])
        stride = model.encoder.stride
        image = picture((47, 60))
        ours = slide(
            lambda crops: model(crops, text).logits,
            image,
            short_side=None,
            window=32,
            stride_px=24,
            batch_size=3,
            multiple=stride,
        )
        expected = naive(lambda crops: model(crops, text).logits, image, 32, 24, stride)
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_logits_of_a_resized_image_come_back_at_its_own_size():
    image = np.full((30, 45, 3), 7, np.uint8)
    shapes = []

    def seen(crops):
        shapes.append(tuple(crops.shape))
        return crops[:, :1].float()

    logits = slide(seen, image, short_side=64, window=64, stride_px=53, batch_size=8, multiple=16)
    assert shapes == [(2, 3, 64, 64)]
    assert logits.shape == (1, 30, 45)
    torch.testing.assert_close(logits, torch.full_like(logits, 7))


def test_resizing_is_bilinear_without_antialiasing():
    image = picture((20, 30))
    logits = slide(
        lambda crops: crops.float(), image, short_side=10, window=None, stride_px=1, batch_size=1, multiple=1
    )
    halves = image.reshape(10, 2, 15, 2, 3).astype(np.float32).mean(axis=(1, 3)).round()
    back = F.interpolate(torch.from_numpy(halves).permute(2, 0, 1)[None], size=(20, 30), mode="bilinear")[0]
    torch.testing.assert_close(logits, back)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((375, 500), (512, 683)), ((1024, 2048), (512, 1024)), ((100, 1000), (205, 2048)), ((512, 512), (512, 512))],
)
def test_the_short_side_is_512_where_the_long_side_allows_it(size, expected):
    assert resized_size(size, short_side=512) == expected
    assert resized_size(size[::-1], short_side=512) == expected[::-1]
    assert resized_size(size, short_side=None) == size


@given(st.tuples(st.integers(8, 80), st.integers(8, 80)), st.integers(1, 8))
def test_windows_lie_where_mmsegmentation_puts_them(size, stride):
    """Its formula: ``max(side - crop + stride - 1, 0) // stride + 1`` windows a side, the last moved back."""
    expected = []
    counts = [max(side - 8 + stride - 1, 0) // stride + 1 for side in size]
    for row in range(counts[0]):
        for column in range(counts[1]):
            bottom, right = min(row * stride + 8, size[0]), min(column * stride + 8, size[1])
            expected.append((max(bottom - 8, 0), max(right - 8, 0)))
    assert list(window_places(size, (8, 8), stride)) == expected


def test_only_sides_that_no_window_fits_into_are_padded():
    assert padded_size((500, 683), window=512, multiple=16) == (512, 683)
    assert padded_size((300, 683), window=512, multiple=16) == (304, 683)
    assert padded_size((512, 683), window=None, multiple=16) == (512, 688)


def test_windows_that_no_model_could_take_are_refused():
    image = picture((8, 8))
    arguments = {"short_side": None, "batch_size": 1}
    with pytest.raises(ValueError, match="no multiple"):
        slide(by_neighbourhood, image, window=10, stride_px=4, multiple=4, **arguments)
    with pytest.raises(ValueError, match="gaps"):
        slide(by_neighbourhood, image, window=8, stride_px=9, multiple=4, **arguments)
