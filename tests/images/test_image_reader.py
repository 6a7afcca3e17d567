"""One reader of images for every command: the same file gives the same pixels everywhere."""

import io

import numpy as np
import pytest
from PIL import Image

from magicseg.core.errors import DataError
from magicseg.data.ground_truth import open_data_set
from magicseg.data.labelled_folders import voc_samples
from magicseg.data.protocol import load_protocol
from magicseg.images.reading import decode_image, read_image, read_size, rgb_pixels
from magicseg.labels import Label, Vocabulary
from magicseg.stages.mask.image_labelling import label_images

RAMP = np.linspace(1000, 5000, 24).round().reshape(4, 6)
CLEAR = np.dstack([np.full((4, 6, 3), 10, np.uint8), np.array([[0, 0, 0, 255, 255, 255]] * 4, np.uint8)])


def stretched(values):
    grey = np.round((values - values.min()) * (255 / (values.max() - values.min()))).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def on_white():
    shown = np.full((4, 6, 3), 255, np.uint8)
    shown[:, 3:] = 10
    return shown


def with_transparent_index():
    image = Image.fromarray(np.array([[7, 7, 7, 1, 1, 1]] * 4, np.uint8), "P")
    image.putpalette([value for index in range(256) for value in [10 * (index == 1)] * 3])
    image.info["transparency"] = 7
    return image


KINDS = {
    "grey of 16 bits": (lambda: Image.fromarray(RAMP.astype(np.uint16)), "png", lambda: stretched(RAMP)),
    "grey of 32 bits": (lambda: Image.fromarray(RAMP.astype(np.int32)), "tif", lambda: stretched(RAMP)),
    "floats": (lambda: Image.fromarray((RAMP / 5000).astype(np.float32)), "tif", lambda: stretched(RAMP)),
    "RGBA": (lambda: Image.fromarray(CLEAR), "png", on_white),
    "LA": (lambda: Image.fromarray(CLEAR).convert("LA"), "png", on_white),
    "P with transparency": (with_transparent_index, "png", on_white),
    "RGB": (lambda: Image.fromarray(on_white()), "png", on_white),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_gives_the_same_pixels_in_every_command(tmp_path, kind):
    from magicseg.model.open_vocabulary import _pixels

    make, ending, expected = KINDS[kind]
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (tmp_path / folder).mkdir(parents=True)
    path = tmp_path / "JPEGImages" / f"a.{ending}"
    make().save(path)
    Image.fromarray(np.ones((4, 6), np.uint8)).save(tmp_path / "SegmentationClass/a.png")
    (tmp_path / "ImageSets/Segmentation/val.txt").write_text("a")
    (tmp_path / "labels.txt").write_text("cat")
    (tmp_path / "mine.yaml").write_text(
        f"name: mine\nvocabulary: labels.txt\nsource: me\norigin: me\nimages: ['JPEGImages/{{name}}.{ending}']\n"
        "labels_in: [{path: 'SegmentationClass/{name}.png'}]\nwindow: null\n"
    )
    seen = {}

    def labeller(image):
        seen["predict and mask"] = image
        return np.zeros(image.shape[:2], np.uint16), {}

    label_images({"a": path}, tmp_path / "out", "record", {}, lambda: labeller, classes=1, relief="")
    vocabulary = Vocabulary(name="mine", labels=(Label(id=1, name="cat"),))
    seen["training"] = voc_samples(tmp_path, "val", vocabulary).read(np.array([0]))[0][0]
    seen["evaluation"] = open_data_set(load_protocol(str(tmp_path / "mine.yaml")), tmp_path).image("a")
    with Image.open(path) as image:
        seen["segment"] = _pixels(image)
    assert {name: pixels.tolist() for name, pixels in seen.items()} == dict.fromkeys(seen, expected().tolist())
    assert len(seen) == 4


@pytest.mark.parametrize("mode", Image.MODES)
def test_every_mode_of_pillow_becomes_8_bit_rgb(mode):
    if mode.startswith("I;16"):
        image = Image.frombytes(mode, (4, 3), np.arange(12, dtype=">u2" if mode == "I;16B" else "<u2").tobytes())
    elif mode in {"La", "RGBa"}:
        image = Image.new({"La": "LA", "RGBa": "RGBA"}[mode], (4, 3), "red").convert(mode)
    else:
        image = Image.new("RGB", (4, 3), "red").convert("L" if mode in {"I", "F"} else "RGB")
        image = Image.new(mode, (4, 3)) if mode in {"LAB", "PA"} else image.convert(mode)
    pixels = rgb_pixels(image)
    assert (pixels.shape, pixels.dtype) == ((3, 4, 3), np.uint8)
    if mode in {"RGB", "RGBA", "RGBa", "RGBX", "HSV", "YCbCr", "CMYK", "P"}:
        assert np.abs(pixels.astype(int) - (255, 0, 0)).max() <= 1
    if mode.startswith("I;16"):
        assert pixels[[0, -1], [0, -1], 0].tolist() == [0, 255]


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_the_orientation_turns_an_image_only_where_that_is_asked_for(tmp_path, format):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "a"
    Image.new("RGB", (6, 4)).save(path, format, exif=exif)
    assert read_image(path).shape == (4, 6, 3)
    assert read_image(path, upright=True).shape == (6, 4, 3)
    size = read_size(path)
    assert (size.height, size.width, size.turned) == (4, 6, True)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "JPEG2000", "PPM"])
def test_formats_of_photographs_are_read(format):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, format)
    decoded = decode_image(buffer.getvalue(), upright=True)
    assert decoded.pages == 1
    assert np.abs(decoded.pixels.astype(int) - (255, 0, 0)).max() <= 5


@pytest.mark.parametrize("format", ["TIFF", "GIF", "WEBP", "PNG", "AVIF"])
def test_pages_behind_the_first_are_counted(tmp_path, format):
    pages = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    pages[0].save(tmp_path / "a", format, save_all=True, append_images=pages[1:])
    decoded = decode_image((tmp_path / "a").read_bytes(), upright=True)
    assert decoded.pages == 3
    assert decoded.pixels[0, 0].argmax() == 0

    def labeller(image):
        return np.zeros(image.shape[:2], np.uint16), {}

    (done,) = label_images(
        {"a": tmp_path / "a"}, tmp_path / "out", "record", {}, lambda: labeller, classes=1, relief=""
    )
    assert done.entry["skipped_pages"] == 2
    assert "only its first page was read; 2 more" in done.remark


def test_an_image_above_the_limit_is_named_and_the_limit_can_be_raised(tmp_path):
    Image.new("1", (300, 200)).save(tmp_path / "a.png")

    def labeller(image):
        return np.zeros(image.shape[:2], np.uint16), {}

    def labelled(limit):
        files = {"a": tmp_path / "a.png"}
        return label_images(
            files, tmp_path / "out", "r", {}, lambda: labeller, classes=1, relief="", max_pixels=limit
        )[0]

    assert labelled(59_999).entry["reason"] == "too-large"
    assert "300 x 200 pixels; the limit is 59,999 pixels in all (--max-pixels)" in labelled(59_999).entry["detail"]
    assert labelled(60_000).labelled


def test_pillows_own_limit_counts_for_others_alone(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    buffer = io.BytesIO()
    Image.new("1", (300, 200)).save(buffer, "PNG")
    assert decode_image(buffer.getvalue(), upright=True).pixels.shape == (200, 300, 3)
    assert Image.MAX_IMAGE_PIXELS == 100


def test_a_missing_image_is_named(tmp_path):
    with pytest.raises(DataError, match=r"a\.png: this image cannot be read: there is no such file"):
        read_image(tmp_path / "a.png")
