"""The sliding window against a naive one, and the rules of mmsegmentation that it follows."""

import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.tiny_models import tiny_settings
from helpers.whole_logits import slide
from magicseg.model import sliding_window
from magicseg.model.segmenter import build_segmenter
from magicseg.model.sliding_window import (
    bilinear_rows,
    logit_stripes,
    padded_size,
    resized_size,
    window_places,
)

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
        tiny_settings(),
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


@pytest.mark.parametrize("size", [(40, 40), (41, 67), (9, 33), (5, 7)])
def test_windows_can_average_probabilities(size):
    """What comes back are the log-odds of the mean of the sigmoids."""

    def logits_of(crops):
        return by_neighbourhood(crops) / 60 - 2

    image = picture(size)
    options = {"short_side": None, "window": 16, "stride_px": 11, "batch_size": 3, "multiple": 4}
    ours = slide(logits_of, image, average="probabilities", **options)
    expected = naive(lambda crops: logits_of(crops).sigmoid(), image, 16, 11, 4)
    np.testing.assert_allclose(ours.sigmoid().numpy(), expected, rtol=1e-5, atol=1e-6)
    if min(size) > 16:
        assert (slide(logits_of, image, **options) - ours).abs().max() > 0.1


def test_log_odds_of_averaged_probabilities_are_finite_and_keep_their_order():
    def far(crops):
        return torch.tensor([-200.0, -20.0, 0.0, 10.0, 200.0])[None, :, None, None].expand(len(crops), 5, 4, 4)

    ours = slide(
        far,
        picture((30, 20)),
        short_side=None,
        window=16,
        stride_px=9,
        batch_size=2,
        multiple=4,
        average="probabilities",
    )
    assert ours.isfinite().all()
    assert (ours.diff(dim=0) > 0).all()
    torch.testing.assert_close(ours[1:4, 0, 0], torch.tensor([-20.0, 0.0, 10.0]), rtol=1e-3, atol=1e-3)


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
    with pytest.raises(ValueError, match="not a multiple"):
        slide(by_neighbourhood, image, window=10, stride_px=4, multiple=4, **arguments)
    with pytest.raises(ValueError, match="need a stride from 1 to 8, not 9"):
        slide(by_neighbourhood, image, window=8, stride_px=9, multiple=4, **arguments)


def grid_of(step):
    """A head on a coarse grid: three means over ``step`` x ``step`` pixels, in place of patches."""

    def logits(crops):
        return F.avg_pool2d(crops.float(), step) / 25

    return logits


def whole_image(logits_of, image, window, stride, multiple, short_side, batch_size):
    """All logits at full size at once: what `logit_stripes` has to give a part of at a time."""
    own = image.shape[:2]
    size = resized_size(own, short_side=short_side)
    pixels = torch.from_numpy(image).permute(2, 0, 1)
    if size != own:
        pixels = F.interpolate(pixels[None].float(), size=size, mode="bilinear")[0].round().to(torch.uint8)
    tall, wide = padded_size(size, window=window, multiple=multiple)
    pixels = pixels[:, torch.arange(tall).clamp(max=size[0] - 1)][:, :, torch.arange(wide).clamp(max=size[1] - 1)]
    shape = (min(tall, window or tall), min(wide, window or wide))
    places = list(window_places((tall, wide), shape, stride))
    total, counts = 0, torch.zeros(tall, wide)
    for start in range(0, len(places), batch_size):
        batch = places[start : start + batch_size]
        crops = torch.stack([pixels[:, y : y + shape[0], x : x + shape[1]] for y, x in batch])
        upsampled = F.interpolate(logits_of(crops), size=shape, mode="bilinear")
        for (y, x), logits in zip(batch, upsampled, strict=True):
            if start == 0 and (y, x) == places[0]:
                total = torch.zeros(len(logits), tall, wide)
            total[:, y : y + shape[0], x : x + shape[1]] += logits
            counts[y : y + shape[0], x : x + shape[1]] += 1
    mean = (total / counts)[:, : size[0], : size[1]]
    return mean if size == own else F.interpolate(mean[None], size=own, mode="bilinear")[0]


def in_stripes(*arguments, values, **options):
    """The logits, and how many rows each stripe has."""
    before = sliding_window.WHOLE_VALUES, sliding_window.STRIPE_VALUES, sliding_window._SMALL_WINDOW
    sliding_window.WHOLE_VALUES, sliding_window.STRIPE_VALUES, sliding_window._SMALL_WINDOW = 0, values, 0
    try:
        stripes = list(logit_stripes(*arguments, **options))
    finally:
        sliding_window.WHOLE_VALUES, sliding_window.STRIPE_VALUES, sliding_window._SMALL_WINDOW = before
    rows = [row for place, logits in stripes for row in range(place.start, place.stop)]
    assert rows == list(range(arguments[1].shape[0]))
    assert all(logits.shape[1] == place.stop - place.start for place, logits in stripes)
    return torch.cat([logits for _, logits in stripes], dim=1)


IMAGES = [(40, 41), (9, 33), (61, 50), (1, 7)]
WAYS = [  # window, stride, short side, the head's grid, windows at a time
    (None, 1, None, 8, 1),
    (None, 1, 30, 4, 1),
    (16, 11, None, 1, 4),
    (16, 16, None, 8, 3),
    (24, 13, 45, 4, 2),
    (8, 7, 16, 2, 5),
]


@pytest.mark.parametrize(("window", "stride", "short_side", "step", "batch"), WAYS)
@pytest.mark.parametrize("size", IMAGES)
def test_an_image_in_one_stripe_has_the_bits_of_the_whole_image(size, window, stride, short_side, step, batch):
    options = {"short_side": short_side, "window": window, "stride_px": stride, "batch_size": batch, "multiple": 8}
    ours = slide(grid_of(step), picture(size), **options)
    assert torch.equal(ours, whole_image(grid_of(step), picture(size), window, stride, 8, short_side, batch))


@pytest.mark.parametrize("values", [1, 700])
@pytest.mark.parametrize(("window", "stride", "short_side", "step", "batch"), WAYS)
@pytest.mark.parametrize("size", IMAGES)
def test_stripes_differ_from_the_whole_by_rounding_at_most(size, window, stride, short_side, step, batch, values):
    options = {"short_side": short_side, "window": window, "stride_px": stride, "batch_size": batch, "multiple": 8}
    whole = slide(grid_of(step), picture(size), **options)
    ours = in_stripes(grid_of(step), picture(size), values=values, **options)
    torch.testing.assert_close(ours, whole, rtol=1e-6, atol=2e-6)
    if step == 1 and short_side is None:  # nothing is interpolated
        assert torch.equal(ours, whole)
    assert torch.equal(ours.argmax(0), whole.argmax(0))


@pytest.mark.parametrize(("window", "stride", "short_side", "step", "batch"), WAYS)
@pytest.mark.parametrize("size", IMAGES)
def test_stripes_of_averaged_probabilities_differ_by_rounding_at_most(size, window, stride, short_side, step, batch):
    options = {"short_side": short_side, "window": window, "stride_px": stride, "batch_size": batch, "multiple": 8}

    def head(crops):
        return grid_of(step)(crops) - 5

    whole = slide(head, picture(size), average="probabilities", **options)
    ours = in_stripes(head, picture(size), values=700, average="probabilities", **options)
    torch.testing.assert_close(ours.sigmoid(), whole.sigmoid(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{"window": None}, {"window": 32}, {"window": 32, "short_side": 40}])
def test_a_models_labels_are_the_same_in_stripes(options):
    model = build_segmenter(
        tiny_settings(prompt_tokens=10),
        seed=0,
    ).eval()
    arguments = {"short_side": None, "stride_px": 24, "batch_size": 3, "multiple": model.stride, **options}
    with torch.inference_mode():
        text = model.encode_classes([f"class {number}" for number in range(40)])
        for seed, size in enumerate([(97, 130), (150, 61), (64, 64)]):
            image = picture(size, seed)
            whole = slide(lambda crops: model.native_logits(crops, text), image, **arguments)
            upsampled = slide(lambda crops: model(crops, text).logits, image, **arguments)
            ours = in_stripes(lambda crops: model.native_logits(crops, text), image, values=9000, **arguments)
            assert torch.equal(whole, upsampled)
            assert torch.equal(ours.argmax(0), whole.argmax(0))
            assert torch.equal(ours.amax(0) < -1, whole.amax(0) < -1)


@settings(max_examples=30, deadline=None)
@given(SIZES, SIZES, st.integers(5, 70), st.integers(1, 5))
def test_rows_are_interpolated_as_torch_does(size, new_size, rows, classes):
    values = torch.from_numpy(np.random.default_rng(0).normal(size=(classes, *size)).astype(np.float32))
    expected = F.interpolate(values[None], size=new_size, mode="bilinear")[0]
    for top in range(0, new_size[0], rows):
        bottom = min(top + rows, new_size[0])
        ours = bilinear_rows(values, new_size, top, bottom, whole=False)
        torch.testing.assert_close(ours, expected[:, top:bottom], rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_memory_grows_with_labels_and_window_and_not_with_the_image():
    """150 labels at 900 x 600 pixels are 309 MiB of logits: at full size they would be there twice at least."""
    code = """
import sys
import numpy as np, torch
from magicseg.model import sliding_window

def peak():
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))

def head(crops):
    return torch.zeros(len(crops), 150, crops.shape[2] // 16, crops.shape[3] // 16)

torch.set_num_threads(1)
sliding_window.WHOLE_VALUES, sliding_window.STRIPE_VALUES = 1 << 21, 1 << 20
for window, short_side in ((None, None), (256, 500)):
    before = peak()
    for rows, logits in sliding_window.logit_stripes(
        head, np.zeros((600, 900, 3), np.uint8), short_side=short_side, window=window, stride_px=200,
        batch_size=4, multiple=16,
    ):
        logits.argmax(0)
    print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert max(map(float, done.stdout.split())) < 100
