"""``magicseg mask --images``: one's own photographs, of any size, in any order, once."""

import io
import json
import os
import pty
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from helpers.tiny_runs import make_run
from magicseg.backends import SegmentRequest
from magicseg.config.loading import load_config
from magicseg.core.errors import BackendError, DataError
from magicseg.images.listing import images_in
from magicseg.images.overlays import class_png
from magicseg.labels import IGNORE, parse_labels
from magicseg.stages.mask.image_folder import mask_folder
from magicseg.weights import Weights

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

    labels = parse_labels("cat, dog, bird").labels
    image = np.full((height, width, 3), 100, np.uint8)
    for place, id_ in enumerate(ids):
        image[5:15, 4 + 20 * place : 16 + 20 * place] = patch_backends.colour(labels[id_ - 1])
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, **save)


def masked(tmp_path, *overrides, out="out"):
    """Of the photographs in "mine", what became of each, in this process."""
    settings = load_config(preset="painted", overrides=[*MASKER[3::2], *overrides]).mask
    done = mask_folder(tmp_path / "mine", parse_labels("cat, dog, bird"), settings, tmp_path / out)
    return {one.name: one.entry for one in done}


def record(out):
    head, *lines = [json.loads(line) for line in (out / "masks.jsonl").read_text().splitlines()]
    return head, {line["image"]: line for line in lines}


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_turned_photograph_is_masked_as_it_is_seen(tmp_path, magicseg):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    photograph(tmp_path / "mine" / "a.png", 1, exif=exif)
    magicseg("mask", "--images", "mine", "--labels", "cat", "--out", "out", *MASKER)
    assert Image.open(tmp_path / "out" / "a.png.png").size == (40, 60)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "mask needs a run or a folder of images"),
        (("run", "--labels", "cat"), "--labels needs --images"),
        (("--images", "mine", "--out", "out"), "--images needs --labels and --out"),
        (("--images", "mine", "--labels", "cat", "--out", "out"), "--images needs settings for the masker"),
        (("--images", "mine", "--labels", "cat", "--out", "out", *MASKER, "--workers", "2"), "--workers does not go"),
        (("--images", "mine", "--labels", "cat", "--out", "out", *MASKER, "--shards", "0"), "--shards does not go"),
        (
            ("--images", "mine", "--labels", "cat", "--out", "out", "--shards-per-job", "2"),
            "--shards-per-job does not",
        ),
        (("--images", "mine", "--labels", "cat", "--out", "mine", *MASKER), "mine: contains the input images"),
        (("--images", "none", "--labels", "cat", "--out", "out", *MASKER), "none: there is no such folder"),
        (("--images", "mine", "--labels", "cat, cat", "--out", "out", *MASKER), "'cat' names both 1 and 2"),
        (("--images", "mine", "--labels", "cat", "--out", "out", "--preset", "painted"), "masks of 0 of 1 images"),
    ],
)
def test_mistakes_are_explained(words, message, tmp_path, magicseg):
    photograph(tmp_path / "mine" / "a.png", 1)
    done = magicseg("mask", *words)
    assert message in done.err
    assert done.code == (0 if "masks of" in message else 2)


def test_class_maps_as_pictures():
    mask = np.array([[0, 3], [IGNORE, 254]], np.uint16)
    small = Image.open(io.BytesIO(class_png(mask, 254)))
    assert small.mode == "P"
    assert np.asarray(small).tolist() == [[0, 3], [255, 254]]
    large = Image.open(io.BytesIO(class_png(np.array([[0, 1203], [IGNORE, 7]], np.uint16), 1203)))
    assert np.asarray(large).tolist() == [[0, 1203], [IGNORE, 7]]


@pytest.mark.slow
def test_names_that_are_no_text_are_masked_told_and_found_again(tmp_path, magicseg):
    folder = tmp_path / "mine"
    photograph(folder / "a.png", 1)
    (folder / "a.png").rename(folder / os.fsdecode(b"a\xff.png"))
    (folder / os.fsdecode(b"b\xff[red].png")).write_bytes(b"no image")
    command = ("mask", "--images", "mine", "--labels", "cat", "--out", "out", *MASKER)
    assert magicseg(*command).code == 1
    assert (tmp_path / "out" / os.fsdecode(b"a\xff.png.png")).is_file()
    before = (tmp_path / "out" / "masks.jsonl").read_text()
    assert os.fsdecode(b"a\xff.png") in record(tmp_path / "out")[1]

    ours, theirs = pty.openpty()
    line = [sys.executable, "-c", "from magicseg.cli import main; main()", *command]
    started = subprocess.Popen(line, cwd=magicseg.folder, env=magicseg.environment, stderr=theirs)
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 4096):
            shown += part
    except OSError:  # how a terminal ends
        pass
    os.close(ours)
    assert started.wait(60) == 1
    assert b"Traceback" not in shown
    assert b"[red].png: unreadable" in shown
    assert len((tmp_path / "out" / "masks.jsonl").read_text().splitlines()) == len(before.splitlines()) + 1


def test_damaged_exif_costs_one_photograph_not_the_rest(tmp_path):
    for name, exif in (("a.webp", b"nonsense"), ("b.webp", b"MM\0*\0\0\0"), ("c.png", b"nonsense")):
        photograph(tmp_path / "mine" / name, 1, exif=b"Exif\0\0" + exif)
    photograph(tmp_path / "mine" / "d.png", 1)
    entries = masked(tmp_path)
    assert [entry.get("reason") for entry in entries.values()] == ["unreadable"] * 3 + [None]
    assert entries["a.webp"]["detail"].startswith("SyntaxError: not a TIFF file")


def test_a_photograph_that_does_not_fit_in_memory_does_not_end_the_others(tmp_path, monkeypatch):
    import patch_backends

    from magicseg.core.errors import OutOfMemory

    honest = patch_backends.PatchSegmenter.segment

    def segment(self, requests):
        if requests[0].image.shape[0] == 50:
            raise OutOfMemory("batch_size is 1: cuda is out of memory")
        if requests[0].image.shape[0] == 51:
            raise MemoryError
        return honest(self, requests)

    monkeypatch.setattr(patch_backends.PatchSegmenter, "segment", segment)
    photograph(tmp_path / "mine" / "a.png", 1, height=50)
    photograph(tmp_path / "mine" / "b.png", 1, height=51)
    photograph(tmp_path / "mine" / "c.png", 1)
    entries = masked(tmp_path)
    assert [entry.get("reason") for entry in entries.values()] == ["out-of-memory", "out-of-memory", None]
    assert "cuda is out of memory" in entries["a.png"]["detail"]
    monkeypatch.setattr(patch_backends.PatchSegmenter, "segment", honest)
    assert {entry["status"] for entry in masked(tmp_path).values()} == {"kept"}


@pytest.mark.parametrize("in_parts", [True, False])
def test_outlines_drawn_some_at_a_time_give_the_same_masks(tmp_path, monkeypatch, in_parts):
    import patch_backends

    photograph(tmp_path / "mine" / "a.png", 1, 2, 3)
    whole = masked(tmp_path, out="whole")
    honest, asked = patch_backends.PatchSegmenter.segment, []

    def segment(self, requests):
        asked.extend(len(one.boxes) for one in requests)
        return honest(self, requests)

    def segment_parts(self, request):
        for box in request.boxes:
            yield from segment(self, [SegmentRequest(image=request.image, boxes=box[None])])

    monkeypatch.setattr(patch_backends.PatchSegmenter, "segment", segment)
    if in_parts:
        monkeypatch.setattr(patch_backends.PatchSegmenter, "segment_parts", segment_parts, raising=False)
    monkeypatch.setattr("magicseg.vision.finder.PART_VALUES", 40 * 60)
    assert masked(tmp_path, out="parts") == whole
    assert asked == [1, 1, 1]
    one, other = (np.asarray(Image.open(tmp_path / out / "a.png.png")) for out in ("whole", "parts"))
    assert np.array_equal(one, other)
    assert set(np.unique(one)) == {0, 1, 2, 3}


def test_a_mistake_of_the_settings_ends_it(tmp_path, monkeypatch):
    import patch_backends

    def segment(self, requests):
        raise BackendError("these settings can do none")

    monkeypatch.setattr(patch_backends.PatchSegmenter, "segment", segment)
    photograph(tmp_path / "mine" / "a.png", 1)
    with pytest.raises(BackendError, match="these settings can do none"):
        masked(tmp_path)


def test_a_photograph_that_was_replaced_is_masked_again(tmp_path):
    photograph(tmp_path / "mine" / "a.png", 1)
    photograph(tmp_path / "mine" / "b.png", 1)
    masked(tmp_path)
    times = (tmp_path / "mine" / "a.png").stat()
    photograph(tmp_path / "mine" / "a.png", 3)
    os.utime(tmp_path / "mine" / "a.png", ns=(times.st_atime_ns, times.st_mtime_ns))
    os.utime(tmp_path / "mine" / "b.png")
    untouched = (tmp_path / "out" / "b.png.png").stat().st_mtime_ns
    assert masked(tmp_path)["a.png"]["scores"][2] == pytest.approx(0.9)
    assert 3 in np.asarray(Image.open(tmp_path / "out" / "a.png.png"))
    assert (tmp_path / "out" / "b.png.png").stat().st_mtime_ns == untouched

    photograph(tmp_path / "mine" / "a.png")
    assert masked(tmp_path)["a.png"]["reason"] == "object-missing"
    assert not (tmp_path / "out" / "a.png.png").exists(), "it would pass for the new photograph's"
    assert not (tmp_path / "out" / "overlays" / "a.png.jpg").exists()


def test_masks_of_other_weights_recipes_or_options_are_not_continued(tmp_path, monkeypatch):
    import patch_backends

    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"one")
    declared = [Weights(setting="model", model=str(weights))]
    monkeypatch.setattr(patch_backends.PatchDetector, "weights", lambda options: declared, raising=False)
    photograph(tmp_path / "mine" / "a.png", 1)
    masked(tmp_path)
    masked(tmp_path)
    head, _ = record(tmp_path / "out")
    assert head["mask"]["batch_size"] == 1
    assert head["mask"]["options"]["missing_labels"] == "keep"
    with pytest.raises(DataError, match=r"settings: mask.options.box_threshold is 0.5, was 0.3"):
        masked(tmp_path, "mask.options.box_threshold=0.5")
    with monkeypatch.context() as other:
        other.setattr("magicseg.stages.mask.detect_segment.RECIPE", 9)
        with pytest.raises(DataError, match=r"recipes.detect-segment is 9, was "):
            masked(tmp_path)
    with monkeypatch.context() as other:
        other.setattr(patch_backends.PatchSegmenter, "identity", lambda options: {"patches": 7})
        with pytest.raises(DataError, match=r"recipes.segmenter.patches is 7, was 1"):
            masked(tmp_path)
    weights.write_bytes(b"another")
    with pytest.raises(DataError, match=r"weights.detector.options.model is sha256:"):
        masked(tmp_path)


def test_masks_inside_the_photographs_folder_are_not_photographs(tmp_path):
    photograph(tmp_path / "mine" / "a.png", 1)
    photograph(tmp_path / "mine" / "masks2" / "b.png", 1)
    for _ in range(2):
        assert list(masked(tmp_path, out="mine/masks")) == ["a.png", "masks2/b.png"]
    assert images_in(tmp_path / "mine", tmp_path / "mine" / "masks") == ["a.png", "masks2/b.png"]
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    assert images_in(tmp_path / "mine", tmp_path / "link" / "masks") == ["a.png", "masks2/b.png"]
    with pytest.raises(DataError, match="contains the input images"):
        images_in(tmp_path / "mine" / "masks2", tmp_path / "mine")


def test_grey_of_many_bits_keeps_its_contrast(tmp_path, monkeypatch):
    import patch_backends

    seen = {}
    honest = patch_backends.PatchDetector.detect

    def detect(self, requests):
        image = requests[0].image
        seen[image.shape[0]] = image
        return honest(self, requests)

    monkeypatch.setattr(patch_backends.PatchDetector, "detect", detect)
    folder = tmp_path / "mine"
    folder.mkdir()
    ramp = np.linspace(1000, 5000, 9).round()[None]
    Image.fromarray(ramp.repeat(10, 0).astype(np.uint16)).save(folder / "a.png")
    Image.fromarray(ramp.repeat(11, 0).astype(np.int32)).save(folder / "b.tif")
    Image.fromarray(ramp.repeat(12, 0).astype(np.float32) / 5000).save(folder / "c.tif")
    Image.fromarray(np.full((13, 9), 700, np.uint16)).save(folder / "d.png")
    Image.fromarray(np.array([[0, np.nan]], np.float32)).save(folder / "e.tif")
    Image.fromarray((ramp / 5000 * 255).repeat(14, 0).astype(np.uint8)).save(folder / "f.png")
    entries = masked(tmp_path)
    for height in (10, 11, 12):
        assert seen[height].shape == (height, 9, 3)
        assert seen[height][0, :, 0] == pytest.approx(np.linspace(0, 255, 9), abs=1)
    assert (seen[13] == 0).all()
    assert seen[14][0, 0, 0] == 51, "8 bits are as they are"
    assert entries["e.tif"]["reason"] == "unreadable"
    assert "not finite" in entries["e.tif"]["detail"]


def test_weights_that_are_not_at_hand_are_told_with_how_to_get_them(tmp_path, magicseg):
    commit = "0123456789" * 4
    by_name = f"{{backend: transformers, options: {{model: some/detector, revision: '{commit}'}}}}"
    options = f"mask.options={{detector: {by_name}, segmenter: {{backend: patches}}}}"
    magicseg.environment["HF_HUB_CACHE"] = str(tmp_path / "hub")
    photograph(tmp_path / "mine" / "a.png", 1)
    images = ("mask", "--images", "mine", "--labels", "cat", "--out", "out")
    chosen = ("--preset", "painted", "--set", "mask.backend=detect-segment", "--set", options)

    make_run(tmp_path / "run", "mask.backend=detect-segment", options)
    of_run = magicseg(*images, "run")
    assert of_run.code == 2
    assert "some/detector" in of_run.err
    assert f"magicseg fetch {tmp_path / 'run'}" in of_run.err

    # Begun by a download that was cut off: the folder is there.
    snapshot = tmp_path / "hub" / "models--some--detector" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    of_preset = magicseg(*images, *chosen)
    assert of_preset.code == 2
    assert f"mask.options.detector.options.model: some/detector at {commit} is not, or not whole" in of_preset.err
    assert (
        "magicseg init RUN --preset painted --set mask.backend=detect-segment --set 'mask.options=" in of_preset.err
    )
    assert "&& magicseg fetch RUN" in of_preset.err
    assert "magicseg mask RUN --images FOLDER" in of_preset.err
    assert not (tmp_path / "out").exists()
