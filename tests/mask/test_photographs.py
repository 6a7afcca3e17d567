"""``magicseg mask --images``: one's own photographs, of any size, in any order, once."""

import json

import numpy as np
import pytest
from PIL import Image
from tiny_runs import make_run

from magicseg.labels import IGNORE
from magicseg.mask.photographs import class_png, labels_of

pytestmark = pytest.mark.usefixtures("faulty")

MASKER = (
    "--preset",
    "miniature",
    "--set",
    "mask.backend=detect-segment",
    "--set",
    "mask.options={detector: {backend: patches}, segmenter: {backend: patches}}",
)


def photograph(path, *ids, height=40, width=60, **save):
    import patch_backends

    labels = labels_of("cat, dog, bird").labels
    image = np.full((height, width, 3), 100, np.uint8)
    for place, id_ in enumerate(ids):
        image[5:15, 4 + 20 * place : 16 + 20 * place] = patch_backends.colour(labels[id_ - 1])
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, **save)


def record(out):
    head, *lines = [json.loads(line) for line in (out / "masks.jsonl").read_text().splitlines()]
    return head, {line["image"]: line for line in lines}


def test_photographs_of_any_size_get_their_masks(tmp_path, magicseg):
    photograph(tmp_path / "mine" / "a.png", 1)
    photograph(tmp_path / "mine" / "a.bmp", 2, 3, height=33, width=71)
    photograph(tmp_path / "mine" / "deeper" / "b.png")
    (tmp_path / "mine" / "broken.jpg").write_bytes(b"no image")
    done = magicseg("mask", "--images", "mine", "--labels", "cat, dog, bird", "--out", "out", *MASKER)
    assert done.code == 1
    assert "broken.jpg: unreadable" in done.err
    assert "masks of 2 of 4 images" in done.err
    out = tmp_path / "out"
    mask = np.asarray(Image.open(out / "a.png.png"))
    assert mask.shape == (40, 60)
    assert set(np.unique(mask)) == {0, 1}
    assert (mask[5:15, 4:16] == 1).all()
    other = np.asarray(Image.open(out / "a.bmp.png"))
    assert other.shape == (33, 71)
    assert set(np.unique(other)) == {0, 2, 3}
    assert Image.open(out / "overlays" / "a.bmp.jpg").size == (71, 33)
    head, entries = record(out)
    assert head["labels"] == {"1": "cat", "2": "dog", "3": "bird"}
    assert entries["a.png"]["objects"] == 1
    assert entries["deeper/b.png"]["reason"] == "object-missing"
    assert not (out / "deeper").exists()


def test_the_same_command_again_does_what_is_missing(tmp_path, magicseg):
    photograph(tmp_path / "mine" / "a.png", 1)
    (tmp_path / "mine" / "b.png").write_bytes(b"not yet copied")
    command = ("mask", "--images", "mine", "--labels", "cat", "--out", "out", *MASKER)
    assert magicseg(*command).code == 1
    photograph(tmp_path / "mine" / "b.png", 1)
    with (tmp_path / "out" / "masks.jsonl").open("ab") as file:
        file.write(b'{"image": "c')  # killed while it wrote
    before = (tmp_path / "out" / "a.png.png").stat().st_mtime_ns
    assert magicseg(*command).code == 0
    assert (tmp_path / "out" / "a.png.png").stat().st_mtime_ns == before
    lines = (tmp_path / "out" / "masks.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["image"] == "b.png"
    other = magicseg("mask", "--images", "mine", "--labels", "dog", "--out", "out", *MASKER)
    assert other.code == 2
    assert "other labels or settings" in other.err


def test_the_settings_and_labels_may_be_a_runs(tmp_path, magicseg):
    make_run(
        tmp_path / "run",
        "mask.backend=detect-segment",
        "mask.options={detector: {backend: patches}, segmenter: {backend: patches}}",
    )
    photograph(tmp_path / "mine" / "a.png", 2)
    assert magicseg("mask", "run", "--images", "mine", "--out", "out").code == 0
    head, entries = record(tmp_path / "out")
    assert len(head["labels"]) == 10
    assert entries["a.png"]["scores"][1] == pytest.approx(0.9)


def test_a_turned_photograph_is_masked_as_it_is_seen(tmp_path, magicseg):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    photograph(tmp_path / "mine" / "a.png", 1, exif=exif)
    magicseg("mask", "--images", "mine", "--labels", "cat", "--out", "out", *MASKER)
    assert Image.open(tmp_path / "out" / "a.png.png").size == (40, 60)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "mask needs a run, or photographs"),
        (("run", "--labels", "cat"), "--labels goes with --images"),
        (("--images", "mine", "--out", "out"), "--images needs --labels and --out"),
        (("--images", "mine", "--labels", "cat", "--out", "out"), "--images needs settings for the masker"),
        (("--images", "none", "--labels", "cat", "--out", "out", *MASKER), "none: there is no such folder"),
        (("--images", "mine", "--labels", "cat, cat", "--out", "out", *MASKER), "'cat' names both 1 and 2"),
        (("--images", "mine", "--labels", "cat", "--out", "out", "--preset", "miniature"), "masks of 0 of 1 images"),
    ],
)
def test_mistakes_are_explained(words, message, tmp_path, magicseg):
    photograph(tmp_path / "mine" / "a.png", 1)
    done = magicseg("mask", *words)
    assert message in done.err
    assert done.code == (0 if "masks of" in message else 2)


def test_class_maps_as_pictures():
    import io

    mask = np.array([[0, 3], [IGNORE, 254]], np.uint16)
    small = Image.open(io.BytesIO(class_png(mask, 254)))
    assert small.mode == "P"
    assert np.asarray(small).tolist() == [[0, 3], [255, 254]]
    large = Image.open(io.BytesIO(class_png(np.array([[0, 1203], [IGNORE, 7]], np.uint16), 1203)))
    assert np.asarray(large).tolist() == [[0, 1203], [IGNORE, 7]]
