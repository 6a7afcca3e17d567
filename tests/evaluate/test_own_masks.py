"""Pairs held out of training: which they are, that training never sees them, and what the model scores on them."""

import json
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from helpers.tiny_runs import change, do, make_run
from magicseg.cli import app
from magicseg.config.loading import load_config
from magicseg.config.training_data import SourceSettings
from magicseg.core.distributed import ALONE
from magicseg.core.errors import ConfigError, DataError, MagicsegError
from magicseg.core.randomness import sample_words
from magicseg.data.dataset import order_of
from magicseg.data.held_out_pairs import HeldOutPairs, hold_out
from magicseg.data.kept_samples import KeptSamples
from magicseg.data.mixture import open_sources
from magicseg.evaluate.committed_parts import read_part
from magicseg.evaluate.decoding import label_image
from magicseg.evaluate.heads.segmenter_head import SegmenterHead
from magicseg.evaluate.metrics.confusion import Scores, confusion_matrix
from magicseg.evaluate.threshold import Threshold
from magicseg.model.saved_model import load_segmenter
from magicseg.run import Run
from magicseg.run.progress import evaluated
from magicseg.train.run_training import train_run

TINY_TRAINING = (
    *("train.steps=2", "train.batch_size=4", "train.loader_workers=0", "train.checkpoint_every=2"),
    *("train.decoder_layers=1", "train.decoder_width=8", "train.decoder_heads=2", "train.prompt_tokens=0"),
    *("train.encoder.width=16", "train.encoder.layers=1", "train.encoder.heads=2", "train.encoder.image_size=32"),
)


def with_training(run, *sources, **settings):
    """The run as if its settings of training were others."""
    if sources:
        settings["sources"] = tuple(SourceSettings.model_validate(source) for source in sources)
    train = run.config.train.model_copy(update=settings)
    return Run(run.path, run.config.model_copy(update={"train": train}))


def by_sorting(indices, seed, count):
    """The held-out samples, by each sample's own hash."""
    return sorted(
        sorted(indices, key=lambda index: sample_words(seed, "train/held-out", index, index + 1)[0, 0])[:count]
    )


def samples_seen(samples, settings, epochs=3):
    """The samples of all sources that the sampling order gives in some epochs, by source."""
    order = order_of(samples, settings, seed=5)
    seen = [set() for _ in samples.sources]
    for place in range(epochs * sum(len(source.indices) for source in samples.sources)):
        pick = order.pick(place)
        seen[pick.source] |= {pick.sample, pick.partner}
    return seen


def test_the_smallest_hashes_are_held_out_whatever_the_shards(finished_run):
    run = with_training(finished_run, held_out=20)
    kept = KeptSamples.of(run)
    expected = by_sorting(kept.indices.tolist(), run.config.seed, 20)
    for shard_size in (4, 16, 96):
        trained, held_out = hold_out(replace(kept, shard_size=shard_size), run)
        assert held_out.indices.tolist() == expected
        assert sorted([*trained.indices, *held_out.indices]) == kept.indices.tolist()
        np.testing.assert_array_equal(held_out.labels(), run.plan.classes[held_out.indices])
        np.testing.assert_array_equal(trained.labels(), run.plan.classes[trained.indices])


def test_far_indices_and_other_seeds(finished_run):
    indices = np.unique(np.random.default_rng(0).integers(0, 300_000, 50))
    run = with_training(finished_run, held_out=7)
    kept = replace(KeptSamples.of(run), indices=indices, planned=None)
    assert hold_out(kept, run)[1].indices.tolist() == by_sorting(indices.tolist(), run.config.seed, 7)
    other = Run(run.path, run.config.model_copy(update={"seed": 99}))
    assert hold_out(kept, other)[1].indices.tolist() == by_sorting(indices.tolist(), 99, 7)


def test_a_dropped_sample_is_replaced_and_the_others_stay(finished_run):
    run = with_training(finished_run, held_out=20)
    kept = KeptSamples.of(run)
    trained, held_out = hold_out(kept, run)
    for dropped, lost in ((trained.indices[3], set()), (held_out.indices[3], {held_out.indices[3]})):
        fewer = replace(kept, indices=kept.indices[kept.indices != dropped], planned=None)
        again = set(hold_out(fewer, run)[1].indices)
        assert set(held_out.indices) - again == lost
        assert len(again) == 20


def test_training_never_sees_held_out_samples(finished_run):
    run = with_training(finished_run, held_out=30)
    kept = KeptSamples.of(run)
    held_out = set(hold_out(kept, run)[1].indices.tolist())
    sources = open_sources(run)
    (seen,) = samples_seen(sources.samples, run.config.train)
    assert seen == set(kept.indices.tolist()) - held_out
    assert len(held_out) == sources.provenance["held_out"] == 30
    assert sources.provenance["samples"] == len(kept.indices) - 30
    assert HeldOutPairs.of(run).names == tuple(map(str, sorted(held_out)))


def test_of_several_sources_only_the_runs_own_samples_are_held_out(finished_run, copy_of):
    other = copy_of(finished_run)
    sources = ({"run": "self"}, {"run": str(other.path)}, {"run": str(finished_run.path)})
    run = with_training(finished_run, *sources, held_out=30)
    everything = set(KeptSamples.of(finished_run).indices.tolist())
    held_out = set(hold_out(KeptSamples.of(run), run)[1].indices.tolist())
    seen = samples_seen(open_sources(run).samples, run.config.train)
    assert seen == [everything - held_out, everything, everything - held_out]


def test_without_held_out_samples_training_data_are_as_before(finished_run):
    sources = open_sources(finished_run)
    assert "held_out" not in sources.provenance
    (samples,) = sources.samples.sources
    np.testing.assert_array_equal(samples.indices, KeptSamples.of(finished_run).indices)


def test_impossible_numbers_are_refused(finished_run):
    kept = len(KeptSamples.of(finished_run).indices)
    with pytest.raises(ConfigError, match="none is left to train on") as found:
        open_sources(with_training(finished_run, held_out=kept))
    assert str(kept) in found.value.hint
    for overrides, told in (
        (["train.held_out=96", "plan.samples=96"], "none of the 96 plan.samples is left"),
        (["evaluate.benchmarks=[own-masks]"], "needs train.held_out"),
        (["train.held_out=4", "train.sources=[{run: elsewhere}]"], "does not name the run's own samples"),
    ):
        with pytest.raises(ConfigError, match=told):
            load_config(preset="painted", overrides=overrides)
    with pytest.raises(ConfigError, match=r"train\.held_out is 0"):
        HeldOutPairs.of(finished_run)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with 20 held-out pairs and a model after two steps."""
    path = tmp_path_factory.mktemp("own") / "run"
    run = make_run(path, *TINY_TRAINING, "train.held_out=20", "evaluate.benchmarks=[own-masks]")
    do(run)
    train_run(run, world=ALONE, progress=lambda *_: None, stop=lambda: False)
    return run


def evaluate(*words):
    """The command's output; raises the error that it ends with."""
    outcome = CliRunner().invoke(app, ["evaluate", *map(str, words)])
    if isinstance(outcome.exception, MagicsegError):
        raise outcome.exception
    assert outcome.exit_code == 0, outcome.output
    return outcome


@pytest.mark.slow
def test_the_model_is_scored_on_held_out_pairs_against_the_runs_own_masks(trained, tmp_path, monkeypatch):
    logits = SegmenterHead.logits

    def centred(self, crops):
        """After two steps every class is unlikely everywhere; like this half of the scores are above 0."""
        found = logits(self, crops)
        return found - found.amax(dim=1).median()

    monkeypatch.setattr(SegmenterHead, "logits", centred)
    told = evaluate(trained.path, "--out", tmp_path)
    assert "ground truth: none, but the run's own masks, made by pair-difference" in told.stderr
    assert "false positives on 20 counterfactual images" in told.stderr
    results = json.loads((tmp_path / "own-masks.json").read_text())
    pairs = HeldOutPairs.of(trained)
    head = SegmenterHead(load_segmenter(trained.path / "model"), "")
    head.prepare([(name,) for name in trained.vocabulary.names])
    half, classes = Threshold(value=0.5, origin="default"), len(trained.vocabulary) + 1
    total, wrong = np.zeros((classes, classes), int), 0
    for name in pairs.names:
        image, mask, counterfactual = pairs.with_counterfactual(name)
        np.testing.assert_array_equal(mask, trained.store.read("mask/mask", int(name), int(name) + 1)[0])
        total += confusion_matrix(mask, label_image(head, image, pairs.protocol, half, name), classes, 65535)
        wrong += np.count_nonzero(label_image(head, counterfactual, pairs.protocol, half, name))
    assert results["confusion"] == total.tolist()
    assert results["miou"] == Scores(total).miou
    assert results["false_positives"]["pixels"] == wrong / (20 * 32 * 32)
    assert 0.2 < results["false_positives"]["pixels"] < 0.8
    assert 0 < results["miou"] < 1
    assert results["baselines"] == {}


@pytest.mark.slow
def test_shares_of_held_out_pairs_join_to_the_same_scores(trained, tmp_path):
    from magicseg.evaluate.model_under_test import Target
    from magicseg.evaluate.suite import Suite

    def part(share):
        suite = Suite.of(Target.of(trained.path, out=tmp_path), trained.config.evaluate)
        return list(suite.evaluate(part=share))

    assert part((1, 2)) == []
    (results,) = part((0, 2))
    evaluate(trained.path, "--out", tmp_path / "alone")
    alone = json.loads((tmp_path / "alone" / "own-masks.json").read_text())
    for each in (results, alone):
        del each["provenance"]["seconds"]
    assert results == alone
    identity = results["provenance"]["identity"]
    found = [
        read_part(path, identity=identity, names=None, classes=len(results["classes"]))
        for path in sorted((tmp_path / "own-masks" / "model").glob("part-*.npz"))
    ]
    assert [name for each in found for name in each.names] == list(HeldOutPairs.of(trained).names)


def test_a_model_that_may_have_seen_the_pairs_is_refused(trained, copy_of):
    run = copy_of(trained)
    change(run, "train.held_out", 21)
    with pytest.raises(DataError, match="trained with 20: it may have seen"):
        evaluate(run.path)
    with pytest.raises(ConfigError, match="this is a model"):
        evaluate(trained.path / "model", "--benchmark", "own-masks")


def test_the_report_and_the_models_card_say_that_the_masks_are_no_ground_truth(trained):
    from magicseg.report.page import write_report

    evaluate(trained.path)
    assert evaluated(trained)
    card = (trained.path / "model" / "README.md").read_text()
    assert "mIoU on own-masks, 20 images, against the run's own masks, which are no ground truth" in card
    page = write_report(trained).read_text(encoding="utf-8")
    assert "pairs held out of training. Their masks are the run" in page
    assert "False positives on 20 counterfactual images" in page
