"""What training looks at now and then."""

import json
from dataclasses import replace

import numpy as np
import pytest

from helpers.benchmark_data import make
from helpers.tiny_models import tiny_settings
from magicseg.config.loading import validate_config
from magicseg.core.errors import ConfigError
from magicseg.data.protocol import load_protocol
from magicseg.evaluate.model_under_test import Target
from magicseg.evaluate.suite import Suite
from magicseg.miniature.held_out_scenes import PaintedScenes
from magicseg.model.segmenter import build_segmenter
from magicseg.run.progress import evaluated
from magicseg.train import validation
from magicseg.train.validation import watch

SETTINGS = tiny_settings(prompt_tokens=0)


def with_evaluation(run, **settings):
    """The run as if its settings were others."""
    data = run.config.model_dump(mode="json")
    data["evaluate"] |= settings
    return replace(run, config=validate_config(data, source="the test"))


def test_the_miniature_looks_at_scenes_that_the_test_does_not_show(finished):
    run = with_evaluation(finished, scenes=4)
    results = watch(run)(build_segmenter(SETTINGS, seed=0).eval(), 10)
    assert 0 <= results["miou"] <= 1
    images = validation.validation_images(run)
    assert len(images.names) == 4
    tested = PaintedScenes.of(run.vocabulary, run.config.evaluate, seed=run.config.seed, size=images.size)
    for mine, test in zip(images.names, tested.names, strict=True):
        assert mine != test
        assert not np.array_equal(images.pair(mine)[0], tested.pair(test)[0])


def test_a_benchmark_is_looked_at_by_its_other_split_or_not_at_all(finished, tmp_path):
    voc = load_protocol("voc21")
    make(voc, tmp_path, count=2)
    run = with_evaluation(finished, benchmarks=["voc21"], data=str(tmp_path))
    assert watch(run) is None
    make(voc.for_split("train"), tmp_path, count=1, seed=5, size=(16, 16))
    results = watch(run)(build_segmenter(SETTINGS, seed=0).eval(), 10)
    assert 0 <= results["miou"] <= 1
    assert watch(with_evaluation(finished, benchmarks=["voc21"])) is None


def test_without_drawings_of_the_labels_there_are_no_scenes_to_look_at(finished, monkeypatch):
    monkeypatch.setattr("magicseg.miniature.held_out_scenes.NOUNS", ("car",))
    assert watch(finished) is None
    path = finished.path
    target = Target(
        path=path, folder=path / "model", results=path / "results", weights_digest="", provenance={}, run=finished
    )
    with pytest.raises(ConfigError, match="no drawing") as found:
        Suite.of(target, finished.config.evaluate)
    assert "--benchmark" in found.value.hint


def test_a_run_is_evaluated_when_its_baselines_are_too(finished):
    def write(name, content):
        path = finished.path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content))

    used = {"baselines": [], "scenes": finished.config.evaluate.scenes}
    results = {"benchmark": "miniature", "provenance": {"weights_digest": "a", "evaluate": used}}
    write("model/model.json", {"weights_digest": "a"})
    write("results/miniature.json", results)
    wanting = with_evaluation(finished, baselines=["memory-bank"])
    assert evaluated(finished)
    assert not evaluated(wanting)
    used["baselines"] = ["memory-bank"]
    write("results/miniature.json", {**results, "baselines": {"memory-bank": {}}})
    assert evaluated(wanting)
