"""The threshold's sweep against scoring at every single threshold, and what it refuses."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from helpers.benchmark_data import ColourHead, evaluate, make, save_png
from magicseg.config.evaluation import EvaluateSettings
from magicseg.core.errors import ConfigError, DataError
from magicseg.data.ground_truth import open_data_set
from magicseg.data.protocol import load_protocol
from magicseg.evaluate.metrics.confusion import Scores, confusion_matrix
from magicseg.evaluate.painted_benchmark import score_heldout
from magicseg.evaluate.sweep import Counts, Sweep, sweep_threshold, tuning_set, tuning_set_or_reason
from magicseg.evaluate.threshold import Threshold
from magicseg.labels import load_vocabulary
from magicseg.miniature.held_out_scenes import PaintedScenes
from magicseg.miniature.painter import Painted

SHAPE = (6, 7)


def swept(head, protocol, folder, *, other=None, **options):
    """The threshold swept on the protocol's other split, in the same folder or another one."""
    return sweep_threshold(head, open_data_set(protocol, folder), tuning_set(protocol, other or folder), **options)


@given(
    st.lists(
        st.tuples(
            arrays(np.uint16, SHAPE, elements=st.sampled_from([0, 1, 2, 3, 255])),
            arrays(np.float32, SHAPE, elements=st.sampled_from([0, 0.1, 0.25, 0.3, 0.5, 0.75, 1])),
            arrays(np.int64, SHAPE, elements=st.integers(0, 2)),
        ),
        min_size=1,
        max_size=3,
    )
)
def test_one_pass_gives_the_mean_iou_of_every_threshold(images):
    counts = Counts(3, np.linspace(0, 1, 21).astype(np.float32))
    totals = np.zeros((21, 4, 4), int)
    for truth, score, place in images:
        counted = truth != 255
        counts.add(truth[counted], place[counted], score[counted])
        for number, threshold in enumerate(counts.thresholds):
            predicted = np.where(score < threshold, 0, place + 1)
            totals[number] += confusion_matrix(truth, predicted, 4, 255)
    expected = [np.nan if (value := Scores(total).miou) is None else value for total in totals]
    np.testing.assert_allclose(counts.miou(), expected, atol=1e-12)


SATURATED = 30.0  # a sigmoid and a softmax of this are 1 in float32


class FarAhead:
    """Blue is the first class and green the second; both are far ahead of the others, the more the brighter."""

    name, stride, identity, score_kinds = "far-ahead", 8, {}, ("log-odds", "cosine")
    window_average = "logits"

    def prepare(self, classes):
        self.classes = len(classes)

    def logits(self, crops):
        blue, green = crops[:, 2:3].float(), crops[:, 1:2].float()
        known = torch.cat([blue, green], dim=1)
        return torch.cat([known, known.new_zeros(len(crops), self.classes - 2, *crops.shape[-2:])], dim=1)

    def score(self, logits, chosen, kind):
        best = logits.gather(-3, chosen.unsqueeze(-3)).squeeze(-3)
        return best if kind == "log-odds" else torch.zeros_like(best)


def saturating_scene(size):
    """Objects score 60 and 61, background 40 and 50 by halves: the best threshold is 60."""
    rng = np.random.default_rng(5)
    truth = rng.integers(0, 3, size).astype(np.uint16)
    values = np.where(truth == 0, rng.choice([40, 50], size), rng.choice([60, 61], size))
    blue = (truth == 1) | ((truth == 0) & (rng.random(size) < 0.5))
    image = np.stack([np.zeros(size, int), np.where(blue, 0, values), np.where(blue, values, 0)], -1)
    return image.astype(np.uint8), truth


def test_a_threshold_among_scores_that_saturate_in_float32_is_found_on_scenes_and_benchmarks(
    tmp_path, monkeypatch, protocol
):
    head = FarAhead()
    head.prepare(["a", "b", "c"])
    image, truth = saturating_scene((16, 24))
    logits = head.logits(torch.from_numpy(image).permute(2, 0, 1)[None])
    assert (logits.amax(1) > SATURATED).all()
    assert (logits.softmax(1).amax(1) == 1).all()
    assert (logits.amax(1).sigmoid() == 1).all()

    monkeypatch.setattr(
        "magicseg.miniature.held_out_scenes.heldout_scene",
        lambda *_, **__: Painted(image=image[:16, :16], empty=image[:16, :16], mask=truth[:16, :16]),
    )
    settings = EvaluateSettings(scenes=2, batch_size=2)
    vocabulary = load_vocabulary("miniature")
    common = {"image_size": 16, "seed": 0}
    scenes = PaintedScenes.of(vocabulary, settings, seed=0, size=16)
    chosen = sweep_threshold(head, scenes, scenes.others(), limit=None)
    assert (chosen.score, chosen.value, chosen.details["end"], chosen.warning) == ("log-odds", 60, None, None)
    assert chosen.details["miou"] == 1 > chosen.details["tried"]["cosine"]
    thresholds = {head.name: chosen}
    assert score_heldout([head], vocabulary, settings, **common, thresholds=thresholds)[head.name]["miou"] == 1

    protocol = protocol.model_copy(update={"short_side": None, "window": None, "images": ("JPEGImages/{name}.png",)})
    for split, name in (("train", "t0"), ("val", "v0")):
        save_png(tmp_path / "SegmentationClass" / f"{name}.png", truth)
        (tmp_path / "JPEGImages").mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / "JPEGImages" / f"{name}.png")
        listed = tmp_path / "ImageSets" / "Segmentation" / f"{split}.txt"
        listed.parent.mkdir(parents=True, exist_ok=True)
        listed.write_text(f"{name}\n")
    chosen = swept(head, protocol, tmp_path)
    assert (chosen.score, chosen.value, chosen.details["end"]) == ("log-odds", 60, None)
    assert evaluate(head, protocol, tmp_path, tmp_path / "out", threshold=chosen).results["miou"] == 1


@pytest.mark.parametrize(
    ("truth", "end", "value"),
    [([1, 1, 1, 2], "lowest", 0.1), ([0, 0, 0, 0], "highest", 0.4), ([0, 0, 1, 2], None, 0.3)],
)
def test_a_threshold_at_an_end_of_the_scores_is_marked(truth, end, value):
    sweep = Sweep(2, ["log-odds"])
    scores = np.array([0.1, 0.2, 0.3, 0.4], np.float32)
    sweep.add(np.array(truth), np.array([0, 0, 0, 1]), {"log-odds": scores}, 255)
    chosen = sweep.best({})
    assert chosen.value == np.float32(value)
    assert chosen.to_dict()["end"] == end
    assert (chosen.warning is None) == (end is None)
    assert Threshold.from_dict(json.loads(json.dumps(chosen.to_dict()))) == chosen


def test_an_earlier_versions_swept_probability_of_one_is_marked():
    assert Threshold.from_dict({"value": 1.0, "origin": "swept", "images": 3}).warning
    assert not Threshold.from_dict({"value": 0.5, "origin": "swept", "images": 3}).warning
    assert not Threshold.from_dict({"value": 1.0, "origin": "given"}).warning


def test_images_beyond_those_that_chose_the_thresholds_are_counted_too():
    rng = np.random.default_rng(3)
    images = [(rng.integers(0, 3, SHAPE), rng.integers(0, 2, SHAPE), rng.random(SHAPE, np.float32)) for _ in range(9)]
    whole, begun = Sweep(2, ["cosine"]), Sweep(2, ["cosine"], grid_pixels=50)
    for truth, chosen, score in images:
        for sweep in (whole, begun):
            sweep.add(truth, chosen, {"cosine": score}, 255)
    assert whole.pixels == begun.pixels == 9 * 42
    thresholds, miou = begun.curve("cosine")
    assert len(thresholds) < 9 * 42
    for threshold, found in list(zip(thresholds, miou, strict=True))[::10]:
        total = sum(
            confusion_matrix(truth, np.where(score < threshold, 0, chosen + 1), 3, 255)
            for truth, chosen, score in images
        )
        assert found == pytest.approx(Scores(total).miou)


@pytest.fixture
def protocol():
    return load_protocol("voc21").model_copy(update={"short_side": 16, "window": 16, "stride": 12})


@pytest.fixture
def voc(tmp_path, protocol):
    """A data set with a tuning split of other images."""
    folder = tmp_path / "voc"
    make(protocol.for_split("train"), folder, 8, seed=100, noise=80)
    for path in [*folder.glob("*/*.png"), *folder.glob("*/*.jpg")]:
        path.rename(path.with_name(f"t{path.name}"))
    listed = folder / "ImageSets" / "Segmentation" / "train.txt"
    listed.write_text("".join(f"t{name}\n" for name in listed.read_text().split()))
    make(protocol, folder, 6, noise=80)
    return folder


@pytest.mark.parametrize("soft", [False, True])
def test_the_chosen_threshold_is_the_best_of_all_on_the_tuning_split(voc, tmp_path, protocol, soft):
    head = ColourHead(soft=soft)
    chosen = swept(head, protocol, voc)
    details = chosen.to_dict()
    assert (details["origin"], details["split"], details["images"]) == ("swept", "train", 8)
    assert details["miou"] == max(value for _, value in details["curve"])
    train = protocol.for_split("train")
    scores = {}
    others = [Threshold(value=float(value), origin="given") for value in np.linspace(0, 1, 9)]
    for number, one in enumerate((chosen, *others)):
        outcome = evaluate(head, train, voc, tmp_path / f"at{number}", threshold=one)
        scores[number] = outcome.results["miou"]
    assert scores[0] == pytest.approx(details["miou"], abs=1e-12)
    assert scores[0] == max(scores.values())


def test_results_say_what_was_swept(voc, tmp_path, protocol):
    head = ColourHead()
    chosen = swept(head, protocol, voc, limit=5)
    results = evaluate(head, protocol, voc, tmp_path / "out", threshold=chosen).results
    assert results["threshold"] == chosen.to_dict()
    assert results["threshold"]["images"] == 5
    assert results["provenance"]["protocol"]["split"] == "val"


def test_test_images_are_refused(voc, protocol):
    listed = voc / "ImageSets" / "Segmentation" / "train.txt"
    listed.write_text(listed.read_text() + "img000002\n")
    with pytest.raises(DataError, match=r"1 of the 9 images .* are test images of voc21: img000002"):
        swept(ColourHead(), protocol, voc)


def test_a_folder_of_ones_own_may_hold_the_tuning_split(voc, tmp_path, protocol):
    make(protocol.for_split("train"), tmp_path / "other", 3, seed=50)
    for path in [*(tmp_path / "other").glob("*/*.png"), *(tmp_path / "other").glob("*/*.jpg")]:
        path.rename(path.with_name(f"o{path.name}"))
    listed = tmp_path / "other" / "ImageSets" / "Segmentation" / "train.txt"
    listed.write_text("".join(f"o{name}\n" for name in listed.read_text().split()))
    assert swept(ColourHead(), protocol, voc, other=tmp_path / "other").details["images"] == 3


def test_without_another_split_there_is_no_sweep(voc, protocol):
    assert tuning_set_or_reason(protocol, voc).names[0].startswith("t")
    (voc / "ImageSets" / "Segmentation" / "train.txt").unlink()
    assert "split " in tuning_set_or_reason(protocol, voc)
    with pytest.raises(DataError, match=r"train\.txt"):
        swept(ColourHead(), protocol, voc)
    with pytest.raises(ConfigError, match="names no other split"):
        swept(ColourHead(), protocol.model_copy(update={"tuning_split": None}), voc)
    make(load_protocol("ade20k"), voc / "ade", 1)
    data = open_data_set(load_protocol("ade20k"), voc / "ade")
    with pytest.raises(ConfigError, match="without threshold"):
        sweep_threshold(ColourHead(), data, data)
