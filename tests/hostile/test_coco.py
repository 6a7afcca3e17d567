"""COCO files that are malformed or would need much memory: opening them is an error that names the fault."""

import copy
import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from magicseg.core.errors import DataError
from magicseg.data.coco import _unpacked, draw, read_coco
from magicseg.data.coco_class_maps import read_instances
from magicseg.data.labelled_folders import coco_samples
from magicseg.labels import load_vocabulary

SQUARE = [5, 5, 20, 5, 20, 20, 5, 20]
SOUND = {
    "images": [{"id": 1, "file_name": "a.jpg", "height": 30, "width": 40}],
    "categories": [{"id": 1, "name": "cat"}, {"id": 7, "name": "dog"}],
    "annotations": [
        {"id": 5, "image_id": 1, "category_id": 7, "area": 225, "iscrowd": 0, "segmentation": [SQUARE]},
    ],
}


def changed(where, value):
    document = copy.deepcopy(SOUND)
    node = document
    for part in where[:-1]:
        node = node[part]
    node[where[-1]] = value
    return document


def shape(value):
    return changed(("annotations", 0, "segmentation"), value)


def runs(counts, size=(30, 40)):
    return shape({"size": list(size), "counts": counts})


def write(folder, document, size=(40, 30), exif=None):
    (folder / "annotations").mkdir(exist_ok=True)
    (folder / "train2017").mkdir(exist_ok=True)
    text = document if isinstance(document, str) else json.dumps(document)
    (folder / "annotations/instances_train2017.json").write_text(text)
    Image.new("RGB", size, "red").save(folder / "train2017/a.jpg", **({"exif": exif} if exif else {}))
    return folder / "annotations/instances_train2017.json"


IMAGE, ANNOTATION = ("images", 0), ("annotations", 0)
BAD = {
    "a NaN coordinate": (shape([[5, 5, float("nan"), 5, 20, 20]]), "annotation 5 of a.jpg: .* not finite"),
    "an infinite coordinate": (shape([[5, 5, float("inf"), 5, 20, 20]]), "not finite"),
    "a coordinate of 1e300": (shape([[5, 5, 1e300, 5, 20, 20]]), "far outside its image of 40 x 30"),
    "a coordinate of 10^400": (shape([[5, 5, 10**400, 5, 20, 20]]), "not finite"),
    "a coordinate of a million": (shape([[5, 5, 1_000_000, 5, 20, 20]]), "far outside"),
    "a negative coordinate": (shape([[5, 5, -1e6, 5, 20, 20]]), "far outside"),
    "a polygon of two points": (shape([[5, 5, 9, 9]]), "has 4 numbers"),
    "a polygon of one number": (shape([[5]]), "has 1 numbers"),
    "an empty polygon": (shape([[]]), "has 0 numbers"),
    "a polygon of an odd count": (shape([[1, 2, 3, 4, 5, 6, 7]]), "has 7 numbers"),
    "a polygon of strings": (shape([["5", "5", "9", "5", "9", "9"]]), "not a list of numbers"),
    "a polygon of booleans": (shape([[True, False] * 3]), "not a list of numbers"),
    "a polygon of nulls": (shape([[None] * 6]), "not a list of numbers"),
    "a polygon that is not in a list": (shape(SQUARE), "not a list of numbers"),
    "polygons within polygons": (shape([[SQUARE]]), "not a list of numbers"),
    "a polygon that goes up and down a million times": (shape([[0, 0, 39, 29] * 100_000]), "outlines are longer"),
    "a shape that is text": (shape("shape"), "neither polygons nor run lengths"),
    "a shape that is null": (shape(None), "neither polygons nor run lengths"),
    "a shape that is a number": (shape(7), "neither polygons nor run lengths"),
    "runs of another size": (runs([1200], (40, 30)), r"its size is \[40, 30\]"),
    "runs of no size": (shape({"counts": [1200]}), "its size is None"),
    "runs of a huge size": (runs([10**10], (100_000, 100_000)), "its size is"),
    "runs that do not fill the image": (runs([7]), "do not fill the image"),
    "runs that fill more": (runs([1200, 4000000000]), "do not fill the image"),
    "negative runs": (runs([-4, 1204]), "cannot be read"),
    "runs that are floats": (runs([600.5, 599.5]), "cannot be read"),
    "runs that are null": (runs(None), "cannot be read"),
    "runs that are booleans": (runs([True] * 1200), "cannot be read"),
    "packed runs that are no runs": (runs("not runs"), "cannot be read"),
    "packed runs of nothing": (runs(""), "cannot be read"),
    "packed runs that are cut off": (runs("o"), "cannot be read"),
    "packed runs of endless numbers": (runs("o" * 1000 + "0"), "cannot be read"),
    "packed runs in other letters": (runs("é"), "cannot be read"),
    "packed runs that do not fill": (runs("11"), "do not fill the image"),
    "a height of 100000": (
        changed((*IMAGE, "height"), 100_000),
        "a.jpg: the image is 40 x 30 pixels; .* says 40 x 100000",
    ),
    "a size of terapixels": (changed((*IMAGE, "height"), 10**12), "the limit is 200,000,000 pixels"),
    "a height of zero": (changed((*IMAGE, "height"), 0), "declared as 40 x 0"),
    "a negative width": (changed((*IMAGE, "width"), -40), "declared as"),
    "a height of half a pixel": (changed((*IMAGE, "height"), 30.5), "30.5 is not a whole number"),
    "a height that is NaN": (changed((*IMAGE, "height"), float("nan")), "nan is not a whole number|not a whole"),
    "a height that is text": (changed((*IMAGE, "height"), "tall"), "'tall' is not a whole number"),
    "a height that is null": (changed((*IMAGE, "height"), None), "images.0.height"),
    "an image without a name": (changed((*IMAGE, "file_name"), ""), "is not the name of a file"),
    "a name that leads out": (changed((*IMAGE, "file_name"), "../../x.jpg"), "is not the name of a file"),
    "an absolute name": (changed((*IMAGE, "file_name"), "/etc/passwd"), "is not the name of a file"),
    "a name with an escape sequence": (changed((*IMAGE, "file_name"), "\x1b[2J"), "is not the name of a file"),
    "an id that is text": (changed((*IMAGE, "id"), "first"), "'first' is not a whole number"),
    "an id of 5000 digits": (json.dumps(SOUND).replace('"id": 5,', f'"id": {"9" * 5000},'), "."),
    "an image twice": (changed(("images",), SOUND["images"] * 2), "image 1 occurs twice"),
    "a category twice": (changed(("categories",), SOUND["categories"] * 2), "category 1 occurs twice"),
    "a category name twice": (changed(("categories", 1, "name"), "Cat"), "names both"),
    "a category without a name": (changed(("categories", 0, "name"), " "), "does not have 1 to"),
    "a category name of a million letters": (changed(("categories", 0, "name"), "x" * 10**6), "does not have 1 to"),
    "a category name with a line feed": (
        changed(("categories", 0, "name"), "cat\nhint: rm"),
        r"control character U\+000A",
    ),
    "an annotation of no image": (changed((*ANNOTATION, "image_id"), 2), "annotation 5: it refers to image 2, which"),
    "an annotation of no category": (changed((*ANNOTATION, "category_id"), 3), "it refers to category 3, which"),
    "an annotation without a shape": (
        changed(("annotations",), [{"id": 5, "image_id": 1, "category_id": 7}]),
        "annotations.0.segmentation",
    ),
    "no images": (changed(("images",), []), "lists no images"),
    "annotations that are no list": (changed(("annotations",), {"5": {}}), "annotations: "),
    "no document": ("", "not JSON"),
    "half a document": (json.dumps(SOUND)[:-30], "not JSON"),
    "brackets without end": ("[" * 200_000, "not JSON"),
    "a list": ("[]", "not a COCO instances file"),
}


@pytest.mark.parametrize("name", BAD)
def test_an_invalid_instances_file_is_refused_when_opened(tmp_path, name):
    document, message = BAD[name]
    file = write(tmp_path, document)
    with pytest.raises(DataError, match=message) as caught:
        coco_samples(tmp_path, "train2017")
    assert str(file) in caught.value.message or "a.jpg" in caught.value.message
    assert "\x1b" not in caught.value.message
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 1000
    assert caught.value.hint


@pytest.mark.parametrize(
    "name", ["a NaN coordinate", "negative runs", "a size of terapixels", "an annotation of no image", "a list"]
)
def test_evaluation_refuses_the_same_files(tmp_path, name):
    document, message = BAD[name]
    with pytest.raises(DataError, match=message):
        read_instances(write(tmp_path, document), load_vocabulary("coco80"))


@pytest.mark.parametrize("image_id", [1, "1", 1.0, "001"])
@pytest.mark.parametrize("other", [1, "1", 1.0])
def test_ids_as_numbers_and_as_text_are_equal(tmp_path, image_id, other):
    document = changed((*IMAGE, "id"), image_id)
    document["annotations"][0] |= {"image_id": other, "category_id": "7"}
    write(tmp_path, document)
    folder = coco_samples(tmp_path, "train2017")
    assert folder.labels().tolist() == [[2]]
    assert (folder.read(np.array([0]))[2][0] == 2).sum() == 225


def test_huge_coordinates_are_refused_in_little_memory(tmp_path):
    write(tmp_path, shape([[5, 5, 1e9, 5, 1e9, 1e9]]))
    code = (
        "import resource, sys; from pathlib import Path; from magicseg.data.labelled_folders import coco_samples\n"
        "from magicseg.core.errors import DataError\n"
        "try: coco_samples(Path(sys.argv[1]), 'train2017')\n"
        "except DataError as error: print(error.message)\n"
    )
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))\n{code}"
    done = subprocess.run([sys.executable, "-c", limited, tmp_path], capture_output=True, text=True, timeout=120)
    assert "far outside its image" in done.stdout, done.stderr


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def test_an_image_annotated_in_its_exif_orientation_is_read_rotated(tmp_path):
    document = copy.deepcopy(SOUND)
    document["images"][0] |= {"height": 40, "width": 30}
    document["annotations"][0]["segmentation"] = [[2, 2, 28, 2, 28, 12, 2, 12]]
    write(tmp_path, document, size=(40, 30), exif=turned(6))
    folder = coco_samples(tmp_path, "train2017")
    images, _, masks = folder.read(np.array([0]))
    assert images[0].shape == (40, 30, 3)
    assert np.argwhere(masks[0])[[0, -1]].tolist() == [[2, 2], [11, 27]]
    assert folder.identity()["upright"]


def test_an_image_that_was_annotated_as_stored_is_read_as_stored(tmp_path):
    write(tmp_path, SOUND, size=(40, 30), exif=turned(6))
    folder = coco_samples(tmp_path, "train2017")
    assert folder.read(np.array([0]))[0][0].shape == (30, 40, 3)
    assert "upright" not in folder.identity()


def test_a_half_turn_follows_the_other_images_of_its_file(tmp_path):
    document = copy.deepcopy(SOUND)
    document["images"] += [{"id": 2, "file_name": "b.png", "height": 20, "width": 10}]
    write(tmp_path, document, size=(40, 30))
    pixels = np.zeros((30, 40, 3), np.uint8)
    pixels[0] = 255
    Image.fromarray(pixels).save(tmp_path / "train2017/a.jpg", exif=turned(3))
    Image.new("RGB", (20, 10)).save(tmp_path / "train2017/b.png", exif=turned(8))
    image = coco_samples(tmp_path, "train2017").read(np.array([0]))[0][0]
    assert image[-1].min() > 200 > image[0].max()


def test_images_annotated_in_both_ways_are_refused_by_name(tmp_path):
    document = copy.deepcopy(SOUND)
    document["images"] += [{"id": 2, "file_name": "b.png", "height": 20, "width": 10}]
    write(tmp_path, document, size=(40, 30), exif=turned(6))
    Image.new("RGB", (20, 10)).save(tmp_path / "train2017/b.png", exif=turned(8))
    with pytest.raises(DataError, match=r"b\.png is annotated after its EXIF rotation, .*a\.jpg before it"):
        coco_samples(tmp_path, "train2017")


@pytest.mark.parametrize("packed", [False, True])
def test_without_areas_a_small_instance_is_still_drawn_on_a_large_one(tmp_path, packed):
    from pycocotools import mask as coco

    document = copy.deepcopy(SOUND)
    large = {"image_id": 1, "category_id": 1, "segmentation": [[0, 0, 40, 0, 40, 30, 0, 30]]}
    if packed:
        counts = coco.encode(np.asfortranarray(np.ones((30, 40), np.uint8)))["counts"].decode()
        large["segmentation"] = {"size": [30, 40], "counts": counts}
    del document["annotations"][0]["area"]
    document["annotations"].append(large)
    write(tmp_path, document)
    mask = coco_samples(tmp_path, "train2017").read(np.array([0]))[2][0]
    assert ((mask == 2).sum(), (mask == 1).sum()) == (225, 30 * 40 - 225)


def test_an_annotation_without_polygons_gives_no_label(tmp_path):
    write(tmp_path, shape([]))
    folder = coco_samples(tmp_path, "train2017")
    assert folder.labels().tolist() == [[0]]
    assert not folder.read(np.array([0]))[2][0].any()


@given(st.integers(1, 12), st.integers(1, 12), st.data())
def test_compressed_run_lengths_are_decoded_like_pycocotools(height, width, data):
    from pycocotools import mask as coco

    bits = data.draw(st.lists(st.booleans(), min_size=height * width, max_size=height * width))
    mask = np.array(bits, np.uint8).reshape(height, width)
    packed = coco.encode(np.asfortranarray(mask))["counts"].decode()
    runs_of = _unpacked(packed)
    assert sum(runs_of) == height * width
    flat = np.repeat(np.arange(len(runs_of)) % 2, runs_of)
    assert flat.reshape(width, height).T.tolist() == mask.tolist()
    for counts in (packed, runs_of):
        assert draw({"size": [height, width], "counts": counts}, height, width).tolist() == mask.astype(bool).tolist()


@given(st.text(alphabet=[chr(code) for code in range(48, 112)], max_size=12))
def test_any_compressed_run_length_text_is_decoded_or_refused(tmp_path_factory, text):
    folder = tmp_path_factory.mktemp("packed")
    file = write(folder, runs(text))
    try:
        (image,) = read_coco(file).images
    except DataError:
        return
    (instance,) = image.instances()
    assert draw(instance["segmentation"], 30, 40).shape == (30, 40)
