"""Official layouts: what their numbers mean, and every way in which a data set can be incomplete or damaged."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy.io import savemat

from helpers.benchmark_data import SIZE, ColourHead, evaluate, make, make_instances, save_png
from magicseg.core.errors import ConfigError, DataError
from magicseg.data.ground_truth import open_data_set
from magicseg.data.label_files import read_labels, spans
from magicseg.data.protocol import load_protocol, protocol_names
from magicseg.evaluate.score_predictions import score

EIGHT = ("voc21", "voc20", "context60", "context59", "coco-object", "coco-stuff", "ade20k", "cityscapes")
LAYOUTS = [
    (name, number)
    for name in EIGHT
    for number, layout in enumerate(load_protocol(name).labels_in)
    if "{name}" in layout.path
]


def test_the_eight_benchmarks_are_there_with_their_numbers_of_classes():
    assert set(EIGHT) <= set(protocol_names())
    counts = [len(load_protocol(name).classes) for name in EIGHT]
    assert counts == [21, 20, 60, 59, 81, 171, 150, 19]


@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("voc21", {0: "background", 1: "aeroplane", 15: "person", 20: "tvmonitor"}),
        ("context59", {0: "aeroplane", 36: "person", 58: "wood"}),
        ("coco-object", {0: "background", 1: "person", 13: "parking meter", 80: "toothbrush"}),
        ("coco-stuff", {0: "person", 79: "toothbrush", 80: "banner", 170: "wood"}),
        ("ade20k", {0: "wall", 12: "person", 149: "flag"}),
        ("cityscapes", {0: "road", 10: "sky", 18: "bicycle"}),
    ],
)
def test_classes_stand_where_the_official_lists_have_them(name, places):
    classes = load_protocol(name).classes
    assert {place: classes[place] for place in places} == places
    assert len(set(classes)) == len(classes)


def test_coco_ids_skip_the_categories_that_coco_lacks():
    layout = load_protocol("coco-stuff").labels_in[0]
    lacking = {11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90}
    assert layout.class_values == tuple(number for number in range(182) if number not in lacking)
    assert load_protocol("coco-object").labels_in[0].class_values == layout.class_values[:80]


def test_every_protocol_says_where_its_choices_and_its_data_come_from():
    for name in EIGHT:
        protocol = load_protocol(name)
        assert protocol.origin
        assert {"short_side", "window"} <= set(protocol.sources)
        assert (protocol.short_side, protocol.window, protocol.stride) == (512, 512, 426)


@pytest.mark.parametrize(("name", "layout"), LAYOUTS)
def test_label_files_of_every_layout_give_the_vocabularys_numbers(tmp_path, name, layout):
    protocol = load_protocol(name)
    truths = make(protocol, tmp_path, 3, layout=layout)
    data = open_data_set(protocol, tmp_path)
    assert data.names == tuple(sorted(truths))
    assert data.layout == protocol.labels_in[layout]
    for image, expected in truths.items():
        pixels, truth = data.pair(image)
        np.testing.assert_array_equal(truth, expected)
        assert pixels.shape == (*SIZE, 3)


@pytest.mark.parametrize("name", EIGHT)
def test_label_files_score_perfectly_against_themselves(tmp_path, name):
    """Predictions hold the numbers of the label files; what these ignore may hold anything."""
    protocol = load_protocol(name)
    truths = make(protocol, tmp_path, 4)
    data = open_data_set(protocol, tmp_path)
    for image in truths:
        values = np.array(Image.open(data.label_paths[data.place[image]]))
        save_png(tmp_path / "predicted" / f"{image}.png", values)
    result = score(protocol, tmp_path, tmp_path / "predicted")
    assert result.images == 4
    assert result.scores.miou == result.scores.pixel_accuracy == 1
    assert result.scores.pixels == sum(np.count_nonzero(truth != 255) for truth in truths.values())


@pytest.mark.parametrize("name", ["voc21", "ade20k", "cityscapes", "context59"])
def test_missing_labels_and_images_are_counted_and_the_first_named(tmp_path, name):
    protocol = load_protocol(name)
    make(protocol, tmp_path, 9)
    data = open_data_set(protocol, tmp_path)
    for paths in (data.label_paths, data.image_paths):
        kept = {path: path.read_bytes() for path in paths[:7]}
        for path in kept:
            path.unlink()
        with pytest.raises(DataError, match=rf"7 of 9 files are missing: .*{paths[0].name}.* and 2 more") as caught:
            open_data_set(protocol, tmp_path)
        assert protocol.origin in (caught.value.hint or "")
        for path, content in kept.items():
            path.write_bytes(content)


@pytest.mark.parametrize("name", EIGHT)
def test_an_empty_folder_is_told_what_should_be_in_it_and_where_it_comes_from(tmp_path, name):
    with pytest.raises(DataError) as caught:
        open_data_set(load_protocol(name), tmp_path)
    assert load_protocol(name).origin in (caught.value.hint or "")
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("name", EIGHT)
def test_extra_files_change_nothing(tmp_path, name):
    protocol = load_protocol(name)
    make(protocol, tmp_path, 2)
    before = open_data_set(protocol, tmp_path)
    for path in (before.label_paths[0], before.image_paths[0]):
        (path.parent / "Thumbs.db").write_bytes(b"x")
        (path.parent / f"{path.stem}_color.png").write_bytes(b"x")
    after = open_data_set(protocol, tmp_path)
    assert (after.names, after.digest()) == (before.names, before.digest())


@pytest.mark.parametrize("name", ["voc21", "ade20k", "coco-stuff", "cityscapes"])
def test_damaged_files_are_named(tmp_path, name):
    protocol = load_protocol(name)
    make(protocol, tmp_path, 2)
    data = open_data_set(protocol, tmp_path)
    for path in (data.label_paths[1], data.image_paths[1]):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises(DataError, match=f"{path.name}: this .* cannot be read"):
            data.pair(data.names[1])
        path.write_bytes(content)


def test_a_damaged_matlab_file_is_named(tmp_path):
    protocol = load_protocol("context60")
    make(protocol, tmp_path, 1, layout=1)
    data = open_data_set(protocol, tmp_path)
    content = data.label_paths[0].read_bytes()
    for kept in (0, 100, len(content) // 2):
        data.label_paths[0].write_bytes(content[:kept])
        with pytest.raises(DataError, match=r"\.mat: this label file cannot be read"):
            data.truth(data.names[0])


@pytest.mark.parametrize(("name", "value"), [("ade20k", 151), ("cityscapes", 19), ("coco-stuff", 11), ("voc21", 21)])
def test_a_number_outside_the_mapping_is_named_with_its_file(tmp_path, name, value):
    protocol = load_protocol(name)
    make(protocol, tmp_path, 1)
    data = open_data_set(protocol, tmp_path)
    values = np.array(Image.open(data.label_paths[0]))
    values[5, 5:8] = value
    save_png(data.label_paths[0], values)
    with pytest.raises(DataError, match=rf"{data.label_paths[0].name}: 3 pixels .* the first {value}; classes are"):
        data.truth(data.names[0])


def test_sizes_that_disagree_are_named_with_both_files(tmp_path):
    protocol = load_protocol("voc21")
    make(protocol, tmp_path, 1)
    data = open_data_set(protocol, tmp_path)
    save_png(data.label_paths[0], np.zeros((3, 4)))
    with pytest.raises(DataError, match=r"img000000\.jpg: the image is 36 x 24 pixels, .*img000000\.png 4 x 3"):
        data.pair(data.names[0])


def test_context_takes_the_first_list_that_is_there(tmp_path):
    protocol = load_protocol("context59")
    make(protocol, tmp_path, 3, layout=1)
    listed = tmp_path / protocol.split_list
    official = tmp_path / "ImageSets" / "Main" / "val.txt"
    official.parent.mkdir(parents=True)
    listed.rename(official)
    assert len(open_data_set(protocol, tmp_path).names) == 3
    listed.write_text("img000001\n")
    assert open_data_set(protocol, tmp_path).names == ("img000001",)


CATEGORIES = [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}, {"id": 90, "name": "toothbrush"}]
SQUARE = [[4, 4, 20, 4, 20, 14, 4, 14]]


def test_instances_are_drawn_in_order_and_crowds_count(tmp_path):
    runs = {"size": list(SIZE), "counts": [0, 24 * 6, 24 * 30]}  # the first six columns
    make_instances(
        tmp_path,
        {"a": [(18, SQUARE, 0), (90, [[10, 8, 30, 8, 30, 20, 10, 20]], 0), (1, runs, 1)], "b": []},
        categories=CATEGORIES,
    )
    data = open_data_set(load_protocol("coco-object"), tmp_path)
    truth = data.truth("a")
    assert (truth[:, :6] == 1).all()
    assert (truth[4:14, 6:10] == 17).all()
    assert (truth[9:14, 11:19] == 80).all()
    assert (truth[21:, 6:] == 0).all()
    assert not data.truth("b").any()


@pytest.mark.slow
def test_coco_object_takes_label_maps_rather_than_instances_and_results_say_which(tmp_path):
    protocol = load_protocol("coco-object")
    make_instances(tmp_path, {"a": [(1, SQUARE, 0)], "b": []}, categories=CATEGORIES)

    def told():
        results = evaluate(ColourHead(), protocol, tmp_path, tmp_path / "out").results
        return results["ground_truth"]

    assert told() == "instances annotations/instances_val2017.json"
    for name in ("a", "b"):
        save_png(tmp_path / "stuffthingmaps" / "val2017" / f"{name}.png", np.full(SIZE, 17))  # a dog
    assert (open_data_set(protocol, tmp_path).truth("a") == 17).all()
    assert told() == "label maps stuffthingmaps/val2017/{name}.png"


@pytest.mark.parametrize(
    "shape",
    [
        [[1, 2, 3]],
        [["a", "b", "c", "d", "e", "f"]],
        {"size": [3, 3], "counts": [9]},
        {"size": list(SIZE), "counts": [7]},
        {"size": list(SIZE), "counts": [-4, 24 * 36 + 4]},
        {"size": list(SIZE), "counts": "not runs"},
        "shape",
        None,
    ],
)
def test_an_instance_without_a_shape_is_refused_with_file_and_image(tmp_path, shape):
    make_instances(tmp_path, {"a": [(1, shape, 0)]}, categories=CATEGORIES)
    with pytest.raises(DataError, match=r"instances_val2017\.json: annotation \d+ of a\.jpg: "):
        open_data_set(load_protocol("coco-object"), tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"images": [], "annotations": [], "categories": []}'])
def test_a_damaged_file_of_instances_is_refused(tmp_path, content):
    make_instances(tmp_path, {"a": []}, categories=CATEGORIES)
    (tmp_path / "annotations" / "instances_val2017.json").write_text(content)
    with pytest.raises(DataError, match=r"instances_val2017\.json: "):
        open_data_set(load_protocol("coco-object"), tmp_path)


def test_instances_drawn_on_turned_images_are_scored_on_turned_images(tmp_path):
    make_instances(tmp_path, {"a": [(18, SQUARE, 0)]}, categories=CATEGORIES)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", SIZE).save(tmp_path / "val2017/a.jpg", exif=exif)  # as wide as the file says it is high
    image, truth = open_data_set(load_protocol("coco-object"), tmp_path).pair("a")
    assert image.shape[:2] == truth.shape == SIZE
    exif[0x0112] = 1
    Image.new("RGB", SIZE).save(tmp_path / "val2017/a.jpg", exif=exif)
    with pytest.raises(DataError, match=r"a\.jpg: the image is 24 x 36 pixels; .* says 36 x 24"):
        open_data_set(load_protocol("coco-object"), tmp_path)


@pytest.mark.parametrize("name", ["._img000000", ".ipynb_checkpoints/img000000-checkpoint", "@eaDir/img000000"])
def test_what_systems_leave_in_a_data_set_is_no_image_and_no_label(tmp_path, name):
    protocol = load_protocol("ade20k")
    make(protocol, tmp_path, 2)
    before = open_data_set(protocol, tmp_path)
    for path in (before.image_paths[0], before.label_paths[0]):
        left = path.parent / f"{name}{path.suffix}"
        left.parent.mkdir(exist_ok=True)
        left.write_bytes(b"nothing")
    assert open_data_set(protocol, tmp_path).names == before.names


def test_a_matlab_file_that_claims_a_huge_map_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("magicseg.data.label_files.MAX_PIXELS", 100)
    savemat(tmp_path / "a.mat", {"LabelMap": np.zeros((20, 30), np.uint8)}, do_compression=True)
    with pytest.raises(DataError, match=r"a\.mat: .*its LabelMap has 600 values; the limit is 100"):
        read_labels(tmp_path / "a.mat")


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../b"])
def test_a_list_that_leads_out_of_the_data_set_is_refused(tmp_path, name):
    protocol = load_protocol("voc21")
    make(protocol, tmp_path, 2)
    (tmp_path / protocol.split_list).write_text(name)
    with pytest.raises(DataError, match=r"txt:1: .* is not the name of an image"):
        open_data_set(protocol, tmp_path)


def test_a_category_that_is_no_label_is_named(tmp_path):
    make_instances(tmp_path, {"a": []}, categories=[{"id": 1, "name": "unicorn"}])
    with pytest.raises(DataError, match="unicorn"):
        open_data_set(load_protocol("coco-object"), tmp_path)


def filled_polygon(corners, height, width):
    """Pillow's polygon at five times the size, by the pixels' centres: pycocotools draws on such a grid too."""
    left, top = max(0, int(min(corners[::2])) - 1), max(0, int(min(corners[1::2])) - 1)
    right, bottom = min(width, int(max(corners[::2])) + 2), min(height, int(max(corners[1::2])) + 2)
    canvas = Image.new("1", ((right - left) * 5, (bottom - top) * 5))
    moved = [(value - (left, top)[place % 2]) * 5 for place, value in enumerate(corners)]
    ImageDraw.Draw(canvas).polygon(moved, fill=1)
    mask = np.zeros((height, width), bool)
    mask[top:bottom, left:right] = np.array(canvas)[2::5, 2::5]
    return mask


def along(corners, height, width):
    """Pixels within one of the polygon's lines."""
    canvas = Image.new("1", (width, height))
    ImageDraw.Draw(canvas).line([*corners, *corners[:2]], fill=1, width=3)
    return np.array(canvas)


def run_lengths(counts, height, width):
    flat = np.repeat(np.arange(len(counts)) % 2, counts)
    return flat.reshape(width, height).T.astype(bool)


def test_real_coco_maps_match_an_independent_construction(real_data):
    """Polygons by Pillow, runs by NumPy, categories by their order: no pycocotools, none of the reader's code."""
    folder = real_data / "coco"
    data = open_data_set(load_protocol("coco-object"), folder)
    content = json.loads((folder / "annotations" / "instances_val2017.json").read_text())
    place = {id_: n for n, id_ in enumerate(sorted(item["id"] for item in content["categories"]), start=1)}
    differing = inside = pixels = 0
    for image in content["images"]:
        height, width = image["height"], image["width"]
        expected = np.zeros((height, width), int)
        outline = np.zeros((height, width), bool)
        for item in content["annotations"]:
            if item["image_id"] != image["id"]:
                continue
            shape = item["segmentation"]
            if isinstance(shape, dict):
                mask = run_lengths(shape["counts"], height, width)
            else:
                mask = np.zeros((height, width), bool)
                for corners in shape:
                    mask |= filled_polygon(corners, height, width)
                    outline |= along(corners, height, width)
            expected[mask] = place[item["category_id"]]
        pixels_of, found = data.pair(image["file_name"].removesuffix(".jpg"))
        assert pixels_of.shape == (height, width, 3)
        wrong = found != expected
        differing += np.count_nonzero(wrong)
        inside += np.count_nonzero(wrong & ~outline)
        pixels += wrong.size
    # Two rasterisers may differ by a pixel along an outline, and nowhere else.
    assert inside == 0
    assert differing < 0.004 * pixels


def test_a_protocol_of_ones_own_is_read_with_its_labels_beside_it(tmp_path):
    (tmp_path / "labels.txt").write_text("cat, kitten\ndog\n")
    (tmp_path / "mine.yaml").write_text(
        "name: mine\nvocabulary: labels.txt\nsource: me\norigin: my camera\n"
        "images: ['pictures/{name}.jpg']\nlabels_in: [{path: 'maps/{name}.png', class_values: [7, 9]}]\n"
    )
    protocol = load_protocol(str(tmp_path / "mine.yaml"))
    assert protocol.background.threshold == 0.5
    assert protocol.queries == (("cat", "kitten"), ("dog",))
    truths = make(protocol, tmp_path / "data", 2)
    assert open_data_set(protocol, tmp_path / "data").names == tuple(truths)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("windwo: 3", "windwo"),
        ("vocabularry: labels.txt", "vocabularry"),
        ("stride: 600", "leave gaps"),
        ("ignore_value: 2", "ignore_value 2 is the number of a class"),
        ("spelling: {cow: ox}", "no label 'cow'"),
        ("background: {rule: threshold}", r"background\.rule must be none"),
        ("vocabulary: nowhere.txt", "nowhere.txt"),
        ("sources: {colour: me}", "no setting colour"),
        ("labels_in: [{path: 'm/{name}.png', class_values: [1-3]}]", "3 class_values for 2 labels"),
        ("name: ../up", "name"),
        ("name: [", "not YAML"),
    ],
)
def test_a_wrong_protocol_is_refused_with_file_and_key(tmp_path, change, message):
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    key = change.partition(":")[0]
    lines = {
        "name": "name: mine",
        "vocabulary": "vocabulary: labels.txt",
        "source": "source: me",
        "origin": "origin: me",
        "images": "images: ['p/{name}.jpg']",
        "labels_in": "labels_in: [{path: 'm/{name}.png'}]",
    }
    lines[key] = change
    if key == "vocabularry":  # which is told before that it is missing
        del lines["vocabulary"]
    (tmp_path / "mine.yaml").write_text("\n".join(lines.values()))
    with pytest.raises(ConfigError, match=message) as caught:
        load_protocol(str(tmp_path / "mine.yaml"))
    assert "mine.yaml" in str(caught.value)


def test_numbers_are_told_in_spans():
    assert spans([3, 1, 2, 7, 9, 10]) == "1 to 3, 7, 9, 10"


def test_the_table_in_the_guide_says_what_the_protocols_say():
    text = (Path(__file__).parents[2] / "docs" / "benchmarks.md").read_text()
    rows = {cells[1].strip("` "): cells[2:] for line in text.splitlines() if len(cells := line.split("|")) == 7}
    for name in EIGHT:
        protocol = load_protocol(name)
        classes, background, images = (cell.strip() for cell in rows[name][:3])
        assert int(classes) == len(protocol.classes)
        assert (background == "threshold") == (protocol.background.rule == "threshold")
        assert images == f"{protocol.official_images}, `{protocol.split}`"


def test_the_guides_own_protocol_can_be_used(tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "benchmarks.md").read_text()
    (tmp_path / "garden.yaml").write_text(text.split("```yaml\n")[1].split("```")[0])
    (tmp_path / "labels.txt").write_text("tree\nbush\nrose, roses\npath\nshed\npond\n")
    protocol = load_protocol(str(tmp_path / "garden.yaml"))
    truths = make(protocol, tmp_path / "data", 2)
    data = open_data_set(protocol, tmp_path / "data")
    np.testing.assert_array_equal(data.truth("img000001"), truths["img000001"])
