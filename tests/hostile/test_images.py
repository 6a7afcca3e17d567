"""Image files and index maps that are damaged, huge or of another type: a named error, and little memory."""

import io
import os
import struct
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from helpers.odd_pngs import chunk, png
from magicseg.core.errors import DataError
from magicseg.data.labelled_folders import voc_samples
from magicseg.images.codecs import check_jpeg, decode_jpeg, encode_jpeg
from magicseg.images.index_maps import read_index_map
from magicseg.images.reading import read_image
from magicseg.labels import load_vocabulary
from magicseg.stages.mask.image_labelling import label_images


def encoded(format, size=(40, 30), mode="RGB", **save):
    buffer = io.BytesIO()
    Image.new(mode, size, 1).save(buffer, format, **save)
    return buffer.getvalue()


def claiming(format, side):
    """A small file whose header declares a square of ``side`` pixels."""
    content = bytearray(encoded(format))
    if format == "PNG":
        return png(np.ones((3, 3), int), 8, size=(side, side))
    if format == "JPEG":
        offset = content.index(b"\xff\xc0") + 5
        content[offset : offset + 4] = struct.pack(">HH", side, side)
    elif format == "BMP":
        content[18:26] = struct.pack("<ii", side, side)
    elif format == "GIF":
        content[6:10] = struct.pack("<HH", side, side)
    elif format == "PPM":
        return f"P6 {side} {side} 255\n".encode() + bytes(100)
    return bytes(content)


def halved(format):
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, format)
    return buffer.getvalue()[: len(buffer.getvalue()) // 2]


CUT = {f"half of a {format}": halved(format) for format in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "PPM")}
HEADS = {f"only the head of a {format}": encoded(format)[:24] for format in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF")}
HUGE = {
    f"a {format} that claims {side} x {side}": claiming(format, side)
    for format, side in (("PNG", 2**31 - 1), ("PNG", 100_000), ("JPEG", 65_535), ("BMP", 2**30), ("GIF", 65_535))
}
HUGE["a PPM that claims 10^9 x 10^9"] = claiming("PPM", 10**9)
HUGE["one-bit pixels that expand to a gigapixel"] = png(np.zeros((1, 8), int), 1, size=(40_000, 40_000))
OTHER = {
    "nothing": b"",
    "text": b"this is a sentence",
    "a script": b"#!/bin/sh\ntouch x\n",
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(x) (w) file\n%%EOF\n",
    "an SVG": b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
    "a FITS file": b"SIMPLE  =                    T".ljust(2880),
    "zeros": bytes(4096),
    "a PNG without pixels": b"\x89PNG\r\n\x1a\n" + chunk(b"IEND", b""),
    "a PNG of no size": png(np.ones((3, 3), int), 8, size=(0, 0)),
    "a PNG whose chunk ends nowhere": b"\x89PNG\r\n\x1a\n\xff\xff\xff\xffIHDR",
    "EXIF data that are none": encoded("WEBP", exif=b"Exif\0\0nonsense"),
    "floats that are not numbers": None,
}
HOSTILE = {**CUT, **HEADS, **HUGE, **OTHER}


def content_of(name):
    if name != "floats that are not numbers":
        return HOSTILE[name]
    buffer = io.BytesIO()
    Image.fromarray(np.array([[0, np.nan]], np.float32)).save(buffer, "TIFF")
    return buffer.getvalue()


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_image_is_recorded_as_failed_and_the_others_are_processed(tmp_path, name):
    (tmp_path / "a.jpg").write_bytes(content_of(name))
    (tmp_path / "b.png").write_bytes(encoded("PNG"))

    def labeller(image):
        return np.zeros(image.shape[:2], np.uint16), {}

    files = {each: tmp_path / each for each in ("a.jpg", "b.png")}
    tracemalloc.start()
    done = label_images(files, tmp_path / "out", "record", {}, lambda: labeller, classes=1, relief="")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [each.labelled for each in done] == [False, True]
    assert done[0].entry["reason"] == ("too-large" if name in HUGE else "unreadable")
    assert done[0].entry["detail"]
    assert peak < 50 << 20


@pytest.mark.parametrize("name", [*HUGE, *CUT, "nothing", "PostScript"])
def test_a_hostile_image_in_training_is_an_error_that_names_it(tmp_path, name):
    (tmp_path / "a.jpg").write_bytes(content_of(name))
    with pytest.raises(DataError, match=r"a\.jpg: this image cannot be read: "):
        read_image(tmp_path / "a.jpg")


@pytest.mark.parametrize("where", ["before", "behind"])
@pytest.mark.parametrize("kind", ["zTXt", "iTXt", "tEXt", "iCCP"])
def test_png_texts_and_profiles_of_any_size_are_ignored(tmp_path, kind, where):
    import zlib

    large = b"x" * (3 << 20)
    data = {
        "zTXt": b"key\0\0" + zlib.compress(large),
        "iTXt": b"key\0\1\0\0\0" + zlib.compress(large),
        "tEXt": b"key\0" + large,
        "iCCP": b"key\0\0" + zlib.compress(large),
    }[kind]
    many = chunk(kind.encode(), data) * (30 if kind == "tEXt" else 1)  # 90 MB of texts: Pillow's limit is 64 MB
    content = png(np.full((3, 4), 7), 8, **{where: many})
    (tmp_path / "a.png").write_bytes(content)
    assert read_image(tmp_path / "a.png").tolist() == np.full((3, 4, 3), 7).tolist()
    assert read_index_map(tmp_path / "a.png").tolist() == np.full((3, 4), 7).tolist()


MAPS = {
    "a gigapixel map": png(np.zeros((1, 8), int), 1, size=(40_000, 40_000)),
    "a map with a wrong checksum": png(np.ones((3, 3), int), 8)[:-20] + bytes(8) + png(np.ones((3, 3), int), 8)[-12:],
    "half a map": png(np.ones((300, 300), int), 8)[:60],
    "a JPEG": encoded("JPEG"),
    "colours": encoded("PNG"),
    "colours and transparency": encoded("PNG", mode="RGBA"),
    "nothing": b"",
    "a GIF of indices": encoded("GIF", mode="P"),
}


@pytest.mark.parametrize("name", MAPS)
def test_a_hostile_index_map_is_an_error_that_names_it(tmp_path, name):
    (tmp_path / "a.png").write_bytes(MAPS[name])
    with pytest.raises(DataError, match=r"a\.png: (this PNG cannot be read|a PNG of mode)"):
        read_index_map(tmp_path / "a.png")


def test_a_map_larger_than_its_image_is_refused_before_it_is_decoded(tmp_path):
    Image.new("1", (12_000, 12_000)).save(tmp_path / "a.png")
    tracemalloc.start()
    with pytest.raises(DataError, match="labels are 12000 x 12000 pixels, the image 4 x 3"):
        read_index_map(tmp_path / "a.png", size=(3, 4))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 << 20


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "unreadable name"])
def test_a_pipe_folder_or_device_is_not_read_as_an_image(tmp_path, kind):
    path = tmp_path / "a.png"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path = tmp_path / ("x" * 300)
    for read in (read_image, read_index_map):
        with pytest.raises(DataError, match=r"cannot be read: (is not a regular file|cannot be read: )"):
            read(path)


@pytest.mark.parametrize("size", [8, 31, 33, 60_000])
def test_a_jpeg_stream_of_another_size_is_refused(size):
    stream = encode_jpeg(np.zeros((min(size, 64), min(size, 64), 3), np.uint8), 90)
    if size > 64:
        offset = stream.index(b"\xff\xc0") + 5
        stream = stream[:offset] + struct.pack(">HH", size, size) + stream[offset + 4 :]
    for read in (decode_jpeg, check_jpeg):
        with pytest.raises(ValueError, match=r"x .* pixels"):
            read(stream, 32)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../b", "a\x1b[31m"])
def test_a_list_of_images_cannot_name_files_outside_its_folder(tmp_path, name):
    (tmp_path / "ImageSets/Segmentation").mkdir(parents=True)
    (tmp_path / "ImageSets/Segmentation/val.txt").write_text(name)
    with pytest.raises(DataError, match="is not the name of an image") as caught:
        voc_samples(tmp_path, "val", load_vocabulary("voc20"))
    assert "\x1b" not in caught.value.message
