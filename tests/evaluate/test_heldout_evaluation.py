"""The miniature's benchmark."""

import json
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch

from helpers.tiny_models import tiny_settings
from magicseg.config.evaluation import EvaluateSettings
from magicseg.evaluate.benchmark import Scoring
from magicseg.evaluate.committed_parts import join
from magicseg.evaluate.decoding import label_batch
from magicseg.evaluate.heads.segmenter_head import SegmenterHead
from magicseg.evaluate.painted_benchmark import evaluate_heldout, painted_results, score_heldout
from magicseg.evaluate.threshold import Threshold
from magicseg.labels import load_vocabulary
from magicseg.miniature.held_out_scenes import OTHER_SCENES, PaintedScenes, heldout_scene
from magicseg.model.segmenter import build_segmenter

SETTINGS = EvaluateSettings(scenes=5, batch_size=2)
VOCABULARY = load_vocabulary("miniature")


@pytest.fixture(scope="module")
def model():
    return build_segmenter(tiny_settings(), seed=3)


def test_results_are_plain_and_name_every_class(model):
    results = evaluate_heldout(model, VOCABULARY, SETTINGS, image_size=32, seed=0, model_seed=3)
    assert json.loads(json.dumps(results)) == results
    assert list(results["iou"]) == ["background", *VOCABULARY.names]
    assert results["pixels"] == 5 * 32 * 32 == np.sum(results["confusion"])
    assert results["baselines"].keys() == {"untrained", "background"}


def test_every_score_has_an_interval_beside_it(model):
    settings = SETTINGS.model_copy(update={"scenes": 12})
    results = evaluate_heldout(model, VOCABULARY, settings, image_size=32, seed=0, model_seed=3)
    for scores in (results, *results["baselines"].values()):
        for name in ("miou", "pixel_accuracy", "mean_accuracy", "frequency_weighted_iou", "mean_boundary_iou"):
            low, high = scores[f"{name}_interval"]
            assert 0 <= low <= scores[name] <= high <= 1
        assert scores["iou_interval"].keys() == scores["boundary_iou"].keys() == scores["iou"].keys()


def test_the_untrained_baseline_is_the_model_at_step_zero(model):
    results = evaluate_heldout(model, VOCABULARY, SETTINGS, image_size=32, seed=0, model_seed=3)
    baselines = results.pop("baselines")
    assert baselines["untrained"] == results


def test_the_background_baseline_finds_all_background_and_nothing_else(model):
    results = evaluate_heldout(model, VOCABULARY, SETTINGS, image_size=32, seed=0, model_seed=3)
    baseline = results["baselines"]["background"]
    scenes = [heldout_scene(i, vocabulary=VOCABULARY, seed=0, max_objects=2, size=32) for i in range(5)]
    share = float(np.mean([scene.mask == 0 for scene in scenes]))
    assert baseline["pixel_accuracy"] == pytest.approx(share)
    assert baseline["iou"]["background"] == pytest.approx(share)
    assert all(value in (0, None) for name, value in baseline["iou"].items() if name != "background")
    found = baseline["false_positives"]
    assert [found[name] for name in ("pixels", "own_pixels", "own_images", "found")] == [0, 0, 0, 0]


def test_a_perfect_model_scores_one(model, monkeypatch):
    scenes = [heldout_scene(i, vocabulary=VOCABULARY, seed=0, max_objects=2, size=32) for i in range(5)]
    known = {scene.image.tobytes(): scene.mask for scene in scenes}
    known |= {scene.empty.tobytes(): np.zeros_like(scene.mask) for scene in scenes}

    def oracle(images, text):
        masks = [known[image.permute(1, 2, 0).contiguous().numpy().tobytes()] for image in images]
        classes = torch.arange(1, len(VOCABULARY) + 1)[:, None, None]
        truth = torch.stack([torch.from_numpy(mask.astype(np.int64)) == classes for mask in masks])
        return truth * 20.0 - 10

    monkeypatch.setattr(model, "native_logits", oracle)
    results = evaluate_heldout(model, VOCABULARY, SETTINGS, image_size=32, seed=0, model_seed=3)
    assert results["miou"] == results["pixel_accuracy"] == 1
    found = results["false_positives"]
    assert [found[name] for name in ("pixels", "own_pixels", "own_images", "found")] == [0, 0, 0, 1]
    assert results["baselines"]["untrained"]["miou"] < 0.5


def test_a_pixel_below_the_threshold_is_background(model):
    images = list(np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8))
    scenes = PaintedScenes.of(VOCABULARY, SETTINGS, seed=0, size=32)
    head = SegmenterHead(model, "")
    head.prepare(scenes.protocol.queries)
    everything, nothing = (Threshold(value=value, origin="given") for value in (0.0, 1.0))
    with torch.inference_mode():
        nowhere = np.stack(label_batch(head, images, scenes, nothing, "two images"))
        everywhere = np.stack(label_batch(head, images, scenes, everything, "two images"))
    assert (nowhere == 0).all()
    assert everywhere.dtype == np.uint16
    assert set(np.unique(everywhere)) <= set(range(1, len(VOCABULARY) + 1))


def test_evaluating_leaves_the_models_mode_alone(model):
    model.train()
    evaluate_heldout(model, VOCABULARY, SETTINGS, image_size=32, seed=0, model_seed=3)
    assert model.training
    model.eval()


class Reddish:
    """A head without training: the redder a pixel, the surer it is of the first class."""

    name = "reddish"
    stride = 8
    window_average = "logits"
    identity: ClassVar[dict] = {}
    score_kinds = ("log-odds",)

    def prepare(self, classes):
        self.count = len(classes)

    def logits(self, crops):
        red = crops[:, :1].float() / 255
        return torch.cat([red, red.expand(-1, self.count - 1, -1, -1) - 1], dim=1)

    def score(self, logits, chosen, kind):
        return logits.gather(-3, chosen.unsqueeze(-3)).squeeze(-3)


def test_a_baselines_threshold_is_the_best_on_other_scenes_and_is_told(model):
    results = evaluate_heldout(
        model, VOCABULARY, SETTINGS, image_size=32, seed=0, model_seed=3, baselines=[Reddish()]
    )
    told = results["baselines"]["reddish"]["threshold"]
    assert told["origin"] == "swept"
    assert told["images"] == SETTINGS.scenes
    assert "threshold" not in results
    assert "threshold" not in results["baselines"]["untrained"]

    def miou(seed, value):
        chosen = {"reddish": Threshold(value=value, origin="given", score="log-odds")}
        common = {"image_size": 32, "seed": seed, "thresholds": chosen}
        return score_heldout([Reddish()], VOCABULARY, SETTINGS, **common)["reddish"]["miou"]

    tried = {step / 50: miou(OTHER_SCENES, step / 50) for step in range(51)}
    assert told["miou"] >= max(tried.values())
    assert told["miou"] == pytest.approx(miou(OTHER_SCENES, told["value"]))
    assert results["baselines"]["reddish"]["miou"] == miou(0, told["value"])


@pytest.mark.parametrize("batch", [3, 1])
def test_shares_of_the_scenes_in_any_order_give_the_scores_of_one_process(model, tmp_path, batch):
    settings = EvaluateSettings(scenes=39, batch_size=batch)
    scenes = PaintedScenes.of(VOCABULARY, settings, seed=0, size=32)
    head = SegmenterHead(model, "digest")
    for share in ((1, 2), (0, 2)):
        scoring = Scoring(head, scenes, tmp_path)
        assert scoring.score(part=share) == ()
    assert [len(names) for names in scoring.parts] == ([18, 18, 3] if batch == 3 else [16, 16, 7])
    parts = Scoring(head, scenes, tmp_path).committed()
    assert [part.names for part in parts] == scoring.parts
    found = painted_results(scenes, {"model": join(parts)}, {})
    assert found.pop("baselines") == {}
    assert found == score_heldout([head], VOCABULARY, settings, image_size=32, seed=0)["model"]


def test_false_positives_of_a_stopped_evaluation_are_those_of_one_that_was_not_stopped(tmp_path, monkeypatch):
    settings = EvaluateSettings(scenes=35, batch_size=4)
    scenes = PaintedScenes.of(VOCABULARY, settings, seed=0, size=32)
    threshold = Threshold(value=0.5, origin="given", score="log-odds")

    def scoring():
        return Scoring(Reddish(), scenes, tmp_path, threshold=threshold)

    with monkeypatch.context() as earlier:  # a version without false positives left its parts behind
        earlier.setattr(PaintedScenes, "has_counterfactuals", False)
        scoring().score()
    assert scoring().committed() == []
    batches = []
    scoring().score(stop=lambda: batches.append(1) or len(batches) > 6)
    assert len(scoring().committed()) == 1
    scoring().score()
    found = painted_results(scenes, {"reddish": join(scoring().committed())}, {})["false_positives"]
    whole = score_heldout(
        [Reddish()], VOCABULARY, settings, image_size=32, seed=0, thresholds={"reddish": threshold}
    )["reddish"]["false_positives"]
    assert found == whole
    assert found["images"] == 35
    reds = [scene.empty[..., 0] for scene in map(heldout, range(35))]
    assert found["pixels"] == pytest.approx(np.mean([red_above(red) for red in reds]))
    low, high = found["pixels_interval"]
    assert 0 < low < found["pixels"] < high < 1


def heldout(index):
    return heldout_scene(index, vocabulary=VOCABULARY, seed=0, max_objects=2, size=32)


def red_above(red):
    """The share of pixels that `Reddish` does not call background at a threshold of 0.5."""
    return float((red.astype(np.float32) / 255 >= 0.5).mean())


def test_parts_of_other_scenes_are_not_used(model, tmp_path):
    head = SegmenterHead(model, "digest")
    scenes = PaintedScenes.of(VOCABULARY, SETTINGS, seed=0, size=32)
    Scoring(head, scenes, tmp_path).score()
    assert len(Scoring(head, scenes, tmp_path).committed()) == 1
    for other in (replace(scenes, seed=1), replace(scenes, batch=3), replace(scenes, max_objects=1)):
        assert Scoring(head, other, tmp_path).committed() == []
