"""Runs, VOC and COCO folders as sources, under one vocabulary."""

import contextlib
import json
import shutil
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from helpers.benchmark_data import SIZE, make, make_instances
from magicseg.config.loading import load_config
from magicseg.config.training_data import SourceSettings
from magicseg.core.distributed import ALONE
from magicseg.core.errors import ConfigError, DataError, IncompleteError
from magicseg.data.coco_class_maps import FILE_ORDER, SMALL_ON_TOP
from magicseg.data.dataset import SampleDataset, order_of
from magicseg.data.ground_truth import open_data_set
from magicseg.data.labelled_folders import coco_samples, voc_samples
from magicseg.data.mixture import open_sources, union
from magicseg.data.protocol import load_protocol, protocol_names
from magicseg.labels import IGNORE, Label, Vocabulary, load_vocabulary
from magicseg.run import Run
from magicseg.train.run_training import train_run

VOC = load_vocabulary("voc20")


def named(*names, title="names"):
    """A vocabulary; a name may bring synonyms after slashes."""
    split = [name.split("/") for name in names]
    return Vocabulary(
        name=title,
        labels=tuple(
            Label(id=place, name=name, synonyms=tuple(synonyms)) for place, (name, *synonyms) in enumerate(split, 1)
        ),
    )


def with_sources(run, *sources, **changes):
    """The run as if its configuration named these sources."""
    train = run.config.train.model_copy(
        update={
            "sources": tuple(SourceSettings.model_validate(source) for source in sources),
            "loader_workers": 0,
            "crop": 64,
            "resize_short": 64,
            "resize_long": 256,
            **changes,
        }
    )
    return Run(run.path, run.config.model_copy(update={"train": train}))


@pytest.fixture
def voc(real_data, tmp_path):
    """Six real photographs of VOC, to do with what one likes."""
    source, folder = real_data / "VOCdevkit" / "VOC2012", tmp_path / "voc"
    names = (source / "ImageSets/Segmentation/val.txt").read_text().split()[:6]
    for part, suffix in (("JPEGImages", "jpg"), ("SegmentationClass", "png")):
        (folder / part).mkdir(parents=True)
        for name in names:
            shutil.copy(source / part / f"{name}.{suffix}", folder / part)
    (folder / "ImageSets/Segmentation").mkdir(parents=True)
    (folder / "ImageSets/Segmentation/val.txt").write_text("\n".join(names))
    return folder


@pytest.fixture
def coco(tmp_path):
    """Two drawn images in COCO's layout: a crowd, a large square and a small one in it; grey and without anything."""
    folder = tmp_path / "coco"
    (folder / "annotations").mkdir(parents=True)
    (folder / "val2017").mkdir()
    Image.new("RGB", (40, 30), "red").save(folder / "val2017/a.jpg")
    Image.new("L", (20, 20), 90).save(folder / "val2017/b.jpg")
    square = {"image_id": 7, "iscrowd": 0}
    crowd = np.zeros((30, 40), bool)
    crowd[:, 30:] = True
    runs, value, count = [], False, 0
    for pixel in crowd.T.ravel():
        if pixel != value:
            runs, value, count = [*runs, count], pixel, 0
        count += 1
    document = {
        "images": [
            {"id": 9, "file_name": "b.jpg", "height": 20, "width": 20},
            {"id": 7, "file_name": "a.jpg", "height": 30, "width": 40},
        ],
        "categories": [{"id": 44, "name": "Bottle"}, {"id": 3, "name": "car"}],
        "annotations": [
            {**square, "id": 1, "category_id": 44, "area": 25, "segmentation": [[10, 10, 15, 10, 15, 15, 10, 15]]},
            {**square, "id": 2, "category_id": 3, "area": 400, "segmentation": [[5, 5, 25, 5, 25, 25, 5, 25]]},
            {
                "id": 3,
                "image_id": 7,
                "iscrowd": 1,
                "category_id": 3,
                "area": 1e6,
                "segmentation": {"size": [30, 40], "counts": [*runs, count]},
            },
        ],
    }
    (folder / "annotations/instances_val2017.json").write_text(json.dumps(document))
    return folder


def test_voc_labels_are_those_of_the_files(real_data):
    folder = voc_samples(real_data / "VOCdevkit/VOC2012", "val", VOC)
    assert len(folder.indices) == 120
    images, others, masks = folder.read(np.array([3, 0]))
    assert others is None
    for index, image, mask in zip((3, 0), images, masks, strict=True):
        stored = np.array(Image.open(folder.data.label_paths[index]))
        assert np.array_equal(np.where(mask == IGNORE, 255, mask), stored)
        assert image.shape == (*stored.shape, 3)
    assert [set(row[row > 0]) for row in folder.labels()[:4]] == [
        set(np.unique(mask)) - {0, IGNORE} for mask in folder.read(np.arange(4))[2]
    ]
    assert folder.image_size is None


def test_the_augmented_label_files_are_used_where_they_are(voc):
    plain = voc_samples(voc, "val", VOC)
    (voc / "SegmentationClassAug").mkdir()
    for name in plain.data.names:
        shape = np.array(Image.open(voc / f"SegmentationClass/{name}.png")).shape
        Image.fromarray(np.full(shape, 5, np.uint8)).save(voc / f"SegmentationClassAug/{name}.png")
    again = voc_samples(voc, "val", VOC)
    assert np.unique(again.read(np.array([0]))[2][0]).tolist() == [5]
    assert again.identity() != plain.identity()


def test_coco_draws_crowds_as_ignored_and_small_instances_on_large_ones(coco):
    folder = coco_samples(coco, "val2017")
    assert folder.data.names == ("a.jpg", "b.jpg")
    assert folder.vocabulary.names == ("car", "Bottle")
    images, others, masks = folder.read(np.array([0, 1]))
    expected = np.zeros((30, 40), int)
    expected[:, 30:] = IGNORE
    expected[5:25, 5:25] = 1
    expected[10:15, 10:15] = 2
    assert others is None
    assert np.array_equal(masks[0], expected)
    assert images[1].shape == (20, 20, 3)
    assert not masks[1].any()
    assert folder.labels().tolist() == [[1, 2], [0, 0]]


def by_pycocotools(path, rule):
    """Class maps as pycocotools reads and draws them, by file name; ids by the categories' order."""
    from pycocotools.coco import COCO

    with contextlib.redirect_stdout(None):
        coco = COCO(path)
    ids = {category: place for place, category in enumerate(sorted(coco.getCatIds()), start=1)}
    maps = {}
    for image in coco.loadImgs(coco.getImgIds()):
        annotations = coco.loadAnns(coco.getAnnIds(image["id"]))
        if rule is SMALL_ON_TOP:  # detectron2: np.argsort(-areas), and crowds do not count
            annotations = [a for a in annotations if a["iscrowd"]] + sorted(
                (a for a in annotations if not a["iscrowd"]), key=lambda a: -a["area"]
            )
        mask = np.zeros((image["height"], image["width"]), np.uint16)
        for one in annotations:
            ignored = one["iscrowd"] and rule is SMALL_ON_TOP
            mask[coco.annToMask(one) == 1] = IGNORE if ignored else ids[one["category_id"]]
        maps[image["file_name"]] = mask
    return maps


def test_training_draws_as_pycocotools_does_with_small_instances_on_top(real_data):
    folder = coco_samples(real_data / "coco", "val2017")
    expected = by_pycocotools(real_data / "coco/annotations/instances_val2017.json", SMALL_ON_TOP)
    masks = folder.read(folder.indices)[2]
    assert len(masks) == 50
    for name, mask in zip(folder.data.names, masks, strict=True):
        assert np.array_equal(mask, expected[name])


def test_a_benchmark_draws_as_pycocotools_does_in_the_files_order(real_data):
    protocol = load_protocol("coco-object")
    data = open_data_set(protocol, real_data / "coco")
    assert data.instances is not None
    expected = by_pycocotools(real_data / "coco/annotations/instances_val2017.json", FILE_ORDER)
    numbers = np.array([0, *data.instances.numbers])
    for name in data.names:
        assert np.array_equal(data.truth(name), numbers[expected[f"{name}.jpg"]])


@pytest.mark.parametrize("name", protocol_names())
def test_every_benchmark_can_be_trained_on_with_the_ground_truth_that_it_is_scored_on(finished_run, tmp_path, name):
    protocol = load_protocol(name).for_split("training")
    truths = make(protocol, tmp_path, 3)
    run = with_sources(finished_run, {"protocol": name, "data": str(tmp_path), "split": "training"}, balance=0.5)
    sources = open_sources(run)
    (samples,) = sources.samples.sources
    images, others, masks = samples.read(samples.indices)
    assert others is None
    own = dict(zip(range(1, len(protocol.labels) + 1), sources_ids(sources, protocol), strict=True))
    table = {**own, 0: 0, protocol.ignore_value: IGNORE}
    for image, mask, truth in zip(images, masks, [truths[key] for key in sorted(truths)], strict=True):
        assert image.shape[:2] == mask.shape
        assert np.array_equal(mask, np.vectorize(table.get)(truth))
    shown = [set(np.unique(mask)) - {0, IGNORE} for mask in masks]
    assert [set(row[row > 0]) for row in samples.labels()] == shown
    batch = SampleDataset(sources.samples, run.config.train, seed=0).__getitems__(
        order_of(sources.samples, run.config.train, seed=0).batch(0, 4)
    )
    assert not batch.paired.any()


def sources_ids(sources, protocol):
    """The training's ids of a protocol's labels."""
    (samples,) = sources.samples.sources
    table = getattr(samples, "table", np.arange(IGNORE + 1))
    return table[1 : len(protocol.labels) + 1].tolist()


def test_the_instances_of_a_benchmark_can_be_trained_on(finished_run, tmp_path):
    square, crowd = [[4, 4, 20, 4, 20, 14, 4, 14]], {"size": list(SIZE), "counts": [0, 24 * 6, 24 * 30]}
    categories = [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}]
    make_instances(tmp_path, {"a": [(18, square, 0), (1, crowd, 1)]}, categories=categories, split="train2017")
    source = {"protocol": "coco-object", "data": str(tmp_path), "split": "train2017"}
    sources = open_sources(with_sources(finished_run, source))
    (samples,) = sources.samples.sources
    names = np.array(["background", *sources.vocabulary.names])
    assert set(names[samples.labels()[0]]) == {"person", "dog"}
    (mask,) = samples.read(samples.indices)[2]
    assert (names[mask[:, :6]] == "person").all()  # as scored: a crowd is pixels of its class, and lies on top


def test_a_source_of_the_scored_split_is_said_and_its_identity_follows_the_labels(finished_run, tmp_path):
    protocol = load_protocol("ade20k")
    make(protocol, tmp_path, 2)
    told = []
    run = with_sources(finished_run, {"protocol": "ade20k", "data": str(tmp_path), "split": protocol.split})
    before = open_sources(run, tell=told.append).fingerprint
    assert ["the split that this benchmark scores" in text for text in told] == [True]
    assert open_sources(run).fingerprint == before
    label = min((tmp_path / "annotations").rglob("*.png"))
    Image.fromarray(np.full(SIZE[:2], 3, np.uint8)).save(label)
    assert open_sources(run).fingerprint != before


def test_settings_without_a_protocol_are_stored_as_before():
    stored = SourceSettings.model_validate({"voc": "x", "split": "val"}).model_dump(mode="json")
    assert list(stored) == ["run", "voc", "coco", "split", "labels", "weight"]


def test_real_coco_instances_agree_with_polygons_drawn_by_another_library(real_data):
    folder = coco_samples(real_data / "coco", "val2017")
    document = json.loads((real_data / "coco/annotations/instances_val2017.json").read_text())
    ids = {each["id"]: place for place, each in enumerate(sorted(document["categories"], key=lambda c: c["id"]), 1)}
    numbers = {each["file_name"]: each["id"] for each in document["images"]}
    agreeing = total = 0
    for index in range(0, 50, 5):
        mask = folder.read(np.array([index]))[2][0]
        own = [each for each in document["annotations"] if each["image_id"] == numbers[folder.data.names[index]]]
        drawn = Image.new("I", mask.shape[::-1])
        for each in sorted(own, key=lambda each: -each["area"]):
            if not each["iscrowd"]:
                for ring in each["segmentation"]:
                    ImageDraw.Draw(drawn).polygon(ring, fill=ids[each["category_id"]])
        counted = mask != IGNORE
        agreeing += (np.array(drawn)[counted] == mask[counted]).sum()
        total += counted.sum()
        labels = folder.labels()[index]
        assert set(labels[labels > 0]) == {ids[each["category_id"]] for each in own if not each["iscrowd"]}
    assert agreeing / total > 0.98  # they differ by half a pixel at edges


@given(st.lists(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=6, unique=True), min_size=1, max_size=4))
def test_a_union_has_every_name_once_in_order_of_first_appearance(lists):
    vocabulary, tables = union([named(*names) for names in lists])
    assert vocabulary.names == tuple(dict.fromkeys(name for names in lists for name in names))
    for names, table in zip(lists, tables, strict=True):
        assert [vocabulary.names[id_ - 1] for id_ in table[1 : len(names) + 1]] == names
        assert (table[0], table[IGNORE]) == (0, IGNORE)


def test_names_are_matched_by_spelling_then_by_a_synonym_that_is_no_one_elses():
    first = named("tv monitor/tv/television", "Motor Bike", "man", "woman", "sofa/couch")
    second = named("tv", "motor  bike", "person/man/woman", "couch", "sofa")
    vocabulary, tables = union([first, second])
    assert vocabulary.names == (*first.names, "person", "couch")
    #                                tv: a synonym; person: of two; couch: sofa itself is there too
    assert tables[1][1:6].tolist() == [1, 2, 6, 7, 5]


def test_a_runs_own_samples_alone_keep_their_vocabulary_and_fingerprint(finished_run):
    sources = open_sources(finished_run)
    assert sources.vocabulary == finished_run.vocabulary
    assert sources.fingerprint == finished_run.fingerprints["mask"].digest
    assert sources.samples.allowed is None


def test_a_run_and_folders_are_mixed_by_weight_under_one_vocabulary(finished_run, voc, coco):
    run = with_sources(
        finished_run,
        {"run": "self", "weight": 2},
        {"voc": str(voc), "split": "val", "labels": "voc20"},
        {"coco": str(coco), "split": "val2017", "weight": 0.5},
    )
    sources = open_sources(run)
    names = sources.vocabulary.names
    own = finished_run.vocabulary.names
    assert names[: len(own)] == own
    assert {"aeroplane", "bottle", "car"} <= set(names)
    assert names.count("bottle") == 1
    assert "Bottle" not in names
    covered = [{names[place] for place in np.flatnonzero(row)} for row in sources.samples.allowed]
    assert covered[0] == set(own)
    assert covered[1] >= {"aeroplane", "car"}
    assert covered[2] == {"bottle", "car"}
    settings = run.config.train
    order, dataset = order_of(sources.samples, settings, seed=0), SampleDataset(sources.samples, settings, seed=0)
    seen = Counter()
    for step in range(7):
        batch = dataset.__getitems__(order.batch(step, 8))
        seen.update(batch.sources.tolist())
        assert batch.paired.tolist() == [source == 0 for source in batch.sources.tolist()]
        for mask, source in zip(batch.masks.numpy(), batch.sources.tolist(), strict=True):
            ids = np.unique(mask)
            assert {names[id_ - 1] for id_ in ids[(ids > 0) & (ids != IGNORE)].tolist()} <= covered[source]
    assert seen == {0: 32, 1: 16, 2: 8}


def test_balance_takes_labels_from_the_plan_and_the_annotations(finished_run, coco):
    run = with_sources(finished_run, {"run": "self"}, {"coco": str(coco), "split": "val2017"}, balance=0.9)
    sources = open_sources(run).samples.sources
    kept = sources[0].indices
    assert np.array_equal(sources[0].labels(), finished_run.plan.classes[kept])
    order = order_of(open_sources(run).samples, run.config.train, seed=0)
    assert len(order.batch(0, 16)) == 16


def test_the_fingerprint_follows_annotations_images_and_weights(finished_run, voc):
    def fingerprint(**source):
        return open_sources(
            with_sources(finished_run, {"voc": str(voc), "split": "val", "labels": "voc20", **source})
        ).fingerprint

    before = fingerprint()
    assert fingerprint() == before
    assert fingerprint(weight=2) != before
    moved = voc.rename(voc.with_name("elsewhere"))
    assert (
        open_sources(with_sources(finished_run, {"voc": str(moved), "split": "val", "labels": "voc20"})).fingerprint
        == before
    )
    moved.rename(voc)
    label = sorted((voc / "SegmentationClass").iterdir())[0]
    values = np.array(Image.open(label))
    values[0, 0] = 3
    Image.fromarray(values).save(label)
    assert fingerprint() != before


def test_files_that_cannot_be_used_are_errors_that_name_them(voc, coco):
    folder = voc_samples(voc, "val", VOC)
    image, label = folder.data.image_paths[0], folder.data.label_paths[0]
    whole = image.read_bytes()
    image.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=f"{image}: this image cannot be read"):
        folder.read(np.array([0]))
    image.write_bytes(whole)
    stored = label.read_bytes()
    label.write_bytes(stored[:200])
    with pytest.raises(DataError, match=f"{label}: this PNG cannot be read"):
        folder.read(np.array([0]))
    Image.fromarray(np.zeros((5, 7), np.uint8)).save(label)
    with pytest.raises(DataError, match=f"{image}: the image is .* pixels, its label in {label} 7 x 5"):
        folder.read(np.array([0]))
    size = Image.open(image).size
    Image.new("L", size, 77).save(label)
    with pytest.raises(DataError, match=f"{label}: .* no class, the first 77"):
        folder.read(np.array([0]))
    image.unlink()
    with pytest.raises(DataError, match=f"1 of 6 files are missing: {image}"):
        voc_samples(voc, "val", VOC)
    with pytest.raises(DataError, match=r"train\.txt: the list of images cannot be read") as caught:
        voc_samples(voc, "train", VOC)
    assert caught.value.hint == "splits here: val"

    file = coco / "annotations/instances_val2017.json"
    good = json.loads(file.read_text())
    for change, message in (
        ({"size": [31, 40], "counts": [0]}, r"annotation 1 of a\.jpg: its size is \[31, 40\]"),
        ([[1, 2]], r"annotation 1 of a\.jpg: one of its polygons has 2 numbers"),
        ({"size": [30, 40], "counts": None}, r"annotation 1 of a\.jpg: its run lengths cannot be read"),
    ):
        good["annotations"][0]["segmentation"] = change
        file.write_text(json.dumps(good))
        with pytest.raises(DataError, match=message):
            coco_samples(coco, "val2017")
    for text in ("{", "[]", '{"images": [], "annotations": [{"image_id": 1}], "categories": []}'):
        file.write_text(text)
        with pytest.raises(DataError, match=f"{file}: this is not (JSON|a COCO instances file)"):
            coco_samples(coco, "val2017")
    with pytest.raises(DataError, match=r"instances_train2017\.json: there is no such file") as caught:
        coco_samples(coco, "train2017")
    assert caught.value.hint == "splits here: val2017"


@pytest.mark.slow
def test_a_damaged_photograph_stops_training_with_its_name(finished_run, voc):
    run = with_sources(
        finished_run, {"voc": str(voc), "split": "val", "labels": "voc20"}, loader_workers=1, batch_size=6, steps=2
    )
    broken = sorted((voc / "JPEGImages").iterdir())[0]
    broken.write_bytes(broken.read_bytes()[:1000])
    with pytest.raises(DataError, match=f"^{broken}: this image cannot be read"):
        train_run(run, world=ALONE, progress=lambda *_: None, stop=lambda: False)


def test_an_incomplete_run_is_refused_unless_only_other_sources_are_trained_on(fresh, voc):
    with pytest.raises(IncompleteError, match="not done"):
        open_sources(with_sources(fresh, {"run": "self"}))
    assert (
        len(open_sources(with_sources(fresh, {"voc": str(voc), "split": "val", "labels": "voc20"})).samples.sources)
        == 1
    )


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{weight: 1}", "exactly one of run, voc, coco and protocol"),
        ("{run: self, voc: x, split: val}", "exactly one"),
        ("{voc: x}", "needs a split"),
        ("{protocol: ade20k, split: training}", "a protocol needs data"),
        ("{protocol: ade20k, data: x}", "needs a split"),
        ("{coco: x, split: val, data: y}", "other sources have no data"),
        ("{run: self, split: val}", "a run has none"),
        ("{coco: x, split: val, labels: voc20}", "labels is only for voc"),
        ("{run: self, weight: 0}", "greater than 0"),
    ],
)
def test_an_invalid_source_is_refused(source, message):
    with pytest.raises(ConfigError, match=message):
        load_config(preset="painted", overrides=[f"train.sources=[{source}]"])


def test_paths_of_sources_are_kept_absolute_so_that_any_folder_will_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.txt").write_text("crack")
    sources = "{run: self}, {voc: photos, split: val, labels: mine.txt}, {voc: photos, split: val, labels: voc20}"
    overrides = [f"train.sources=[{sources}]"]
    run = Run.create(tmp_path / "run", load_config(preset="painted", overrides=overrides))
    assert [source.run or source.voc for source in run.config.train.sources] == ["self"] + [
        str(tmp_path / "photos")
    ] * 2
    assert [source.labels for source in run.config.train.sources] == [None, str(tmp_path / "mine.txt"), "voc20"]


def folder_in_vocs_layout(folder, *, ids, names=("a0", "a1"), ending=".jpg", labels=()):
    """Images of 20 x 16 pixels whose label files hold these ids side by side."""
    for part in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (folder / part).mkdir(parents=True)
    values = np.resize(np.array(ids, np.uint8), (16, 20))
    for name in names:
        Image.new("RGB", (20, 16), "red").save(folder / "JPEGImages" / f"{name}{ending}")
        Image.fromarray(values).save(folder / "SegmentationClass" / f"{name}.png")
    (folder / "ImageSets/Segmentation/train.txt").write_text("\n".join(names))
    if labels:
        (folder / "labels.txt").write_text("\n".join(labels))
    return folder


def test_ids_of_a_source_that_names_no_labels_are_the_runs_and_that_is_said(fresh, tmp_path):
    folder = folder_in_vocs_layout(tmp_path / "mine", ids=[0, 1, len(fresh.vocabulary), 255])
    told = []
    sources = open_sources(with_sources(fresh, {"voc": str(folder), "split": "train"}), tell=told.append)
    assert sources.vocabulary.names == fresh.vocabulary.names
    assert set(np.unique(sources.samples.sources[0].read(np.array([0]))[2])) == {0, 1, len(fresh.vocabulary), IGNORE}
    assert len(told) == 1
    assert fresh.vocabulary.names[0] in told[0]


def test_ids_that_the_run_has_no_label_for_are_refused_with_what_to_write(fresh, tmp_path):
    folder = folder_in_vocs_layout(tmp_path / "mine", ids=[len(fresh.vocabulary) + 1])
    with pytest.raises(DataError, match=rf"a0\.png: .* no class, the first {len(fresh.vocabulary) + 1}") as caught:
        open_sources(with_sources(fresh, {"voc": str(folder), "split": "train"}))
    assert "labels: LIST" in caught.value.hint


def test_the_ids_of_a_source_are_those_of_the_labels_that_it_names(fresh, tmp_path):
    folder = folder_in_vocs_layout(tmp_path / "mine", ids=[0, 1, 2], labels=("crack", "rust"))
    named_labels = {"voc": str(folder), "split": "train", "labels": str(folder / "labels.txt")}
    sources = open_sources(with_sources(fresh, named_labels))
    assert sources.vocabulary.names == (*fresh.vocabulary.names, "crack", "rust")
    first = len(fresh.vocabulary) + 1
    assert set(np.unique(sources.samples.sources[0].read(np.array([0]))[2])) == {0, first, first + 1}
    (folder / "labels.txt").write_text("rust\ncrack")
    assert open_sources(with_sources(fresh, named_labels)).fingerprint != sources.fingerprint


def test_pascal_voc_itself_is_not_taken_for_the_labels_of_another_run(fresh, tmp_path):
    folder = folder_in_vocs_layout(tmp_path / "mine", ids=[0, 1], names=("2007_000032", "2011_003271"))
    with pytest.raises(DataError, match="named like those of PASCAL VOC") as caught:
        open_sources(with_sources(fresh, {"voc": str(folder), "split": "train"}))
    assert "voc20" in caught.value.hint


def test_a_run_with_vocs_labels_needs_no_labels_at_its_source_and_keeps_its_fingerprint(tmp_path, voc):
    overrides = ["labels.vocabulary=voc20", "plan.samples=4", "plan.shard_size=4", "describe.backend=template"]
    run = Run.create(tmp_path / "run", load_config(preset="painted", overrides=overrides))
    told = []
    sources = open_sources(with_sources(run, {"voc": str(voc), "split": "val"}), tell=told.append)
    assert not told
    assert sources.vocabulary.names == VOC.names
    assert set(sources.provenance["sources"][0]) == {"layout", "split", "labels", "images", "weight", "samples"}
    labelled = open_sources(with_sources(run, {"voc": str(voc), "split": "val", "labels": "voc20"}))
    assert labelled.fingerprint == sources.fingerprint


@pytest.mark.parametrize("ending", [".JPG", ".jpeg", ".png", ".tif", ".webp"])
def test_images_in_vocs_layout_may_have_other_endings(tmp_path, ending):
    folder = folder_in_vocs_layout(tmp_path / "mine", ids=[0, 1], ending=ending)
    images = voc_samples(folder, "train", named("cat")).read(np.array([0, 1]))[0]
    assert [image.shape for image in images] == [(16, 20, 3)] * 2


def test_two_images_of_one_name_are_refused(tmp_path):
    folder = folder_in_vocs_layout(tmp_path / "mine", ids=[0, 1], ending=".png")
    Image.new("RGB", (20, 16)).save(folder / "JPEGImages/a0.webp")
    with pytest.raises(DataError, match=r"a0\.png, a0\.webp all have the image name a0"):
        voc_samples(folder, "train", named("cat"))


def test_without_a_crop_images_of_different_sizes_are_refused(finished_run, voc):
    run = with_sources(finished_run, {"voc": str(voc), "split": "val", "labels": "voc20"}, crop=None)
    with pytest.raises(ConfigError, match=r"train\.crop is null"):
        SampleDataset(open_sources(run).samples, run.config.train, seed=0)


@pytest.mark.slow
def test_a_run_that_trains_on_others_alone_makes_no_data_set(finished_run, magicseg, tmp_path):
    sets = [
        *("plan.samples=16", f"train.sources=[{{run: {json.dumps(str(finished_run.path))}}}]", "evaluate.scenes=2"),
        *("train.steps=2", "train.batch_size=2", "train.loader_workers=0", "generate.size=32"),
    ]
    path = tmp_path / "run"
    words = [word for one in sets for word in ("--set", one)]
    assert magicseg("init", path, "--preset", "painted", *words).code == 0
    done = magicseg("run", path)
    assert (done.code, "skipped" in done.err + done.out) == (0, True), done.err
    opened = Run.open(path)
    assert opened.ledger("describe").commits() == {}
    assert json.loads((path / "results" / "miniature.json").read_text())["images"] == 2
