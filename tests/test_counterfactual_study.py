"""The study of losses on counterfactual images: its sets have their faults, and stale rows do not count."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from magicseg.config.evaluation import EvaluateSettings

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(name="study")
def imported(monkeypatch):
    """Return the study's program, and forget the modules beside it afterwards."""
    monkeypatch.syspath_prepend(str(FOLDER))
    before = set(sys.modules)
    yield importlib.import_module("counterfactual_study")
    for new in set(sys.modules) - before:
        if (FOLDER / f"{new}.py").is_file():
            del sys.modules[new]


def differs(one, other):
    return (one != other).any(axis=(1, 2, 3))


def test_a_plain_pair_differs_only_where_the_object_and_its_shadow_are(study):
    samples = study.PairSet(count=10).samples(0)
    assert sorted(samples.classes) == list(range(1, 11))
    for image, other, mask, label in zip(
        samples.images, samples.counterfactuals, samples.masks, samples.classes, strict=True
    ):
        assert set(np.unique(mask)) == {0, label}
        assert (image == other).all(axis=-1).mean() > 0.3
        assert not (image == other).all(axis=-1)[mask > 0].all()


def test_a_seed_gives_the_same_samples_and_another_seed_others(study):
    one, again, other = (study.PairSet(count=4).samples(seed) for seed in (0, 0, 1))
    assert np.array_equal(one.images, again.images)
    assert differs(one.images, other.images).all()


def test_with_context_bias_every_class_has_one_scene(study, monkeypatch):
    painted = sys.modules["painted_sets"]
    shown = []
    paint = painted.paint
    monkeypatch.setattr(painted, "paint", lambda spec, **more: shown.append(spec) or paint(spec, **more))
    study.PairSet(count=40, one_scene=True).samples(3)
    scenes = {}
    for spec in shown:
        scenes.setdefault(spec.objects[0].noun, set()).add(spec.scene)
    assert len(scenes) == 10
    assert all(len(found) == 1 for found in scenes.values())
    assert len(set.union(*scenes.values())) == 7


def test_a_fifth_of_the_wrong_pairs_have_another_samples_counterfactual_or_image(study):
    right, wrong = study.PairSet(count=40).samples(0), study.PairSet(count=40, wrong=0.2).samples(0)
    assert np.array_equal(right.images, wrong.images)
    assert np.array_equal(right.masks, wrong.masks)
    changed = differs(right.counterfactuals, wrong.counterfactuals)
    assert changed.sum() == 8
    with_objects = [
        (wrong.counterfactuals[place] == right.images).all(axis=(1, 2, 3)).any() for place in changed.nonzero()[0]
    ]
    assert sum(with_objects) == 4
    assert right.validated
    assert not wrong.validated


def test_unaligned_pairs_have_the_plain_images_and_other_backdrops(study):
    plain, unaligned = study.PairSet(count=6).samples(0), study.PairSet(count=6, aligned=False).samples(0)
    assert np.array_equal(plain.images[0], unaligned.images[0])
    assert np.array_equal(plain.masks[0], unaligned.masks[0])
    same = (unaligned.images == unaligned.counterfactuals).all(axis=-1).mean()
    assert same < 0.1


def test_fifty_classes_are_nouns_in_colours_in_training_and_in_the_test(study):
    pairs = study.SETS["fifty classes"].pairs
    assert len(pairs.vocabulary) == 50
    assert pairs.vocabulary.by_name("blue fish")
    scenes = pairs.held_out(EvaluateSettings(scenes=20), seed=0)
    found = [scenes.with_counterfactual(name) for name in scenes.names]
    labels = [set(np.unique(mask)) - {0} for _, mask, _ in found]
    assert {len(each) for each in labels} == {1, 2}
    assert max(set.union(*labels)) > 10
    reds = [
        image[mask == label].mean(axis=0)
        for (image, mask, _), own in zip(found, labels, strict=True)
        for label in own
        if pairs.vocabulary.by_id(int(label)).name.startswith("red")
    ]
    assert all(red[0] > red[1] and red[0] > red[2] for red in reds)


def test_every_term_has_settings_that_training_takes_and_a_digest_of_its_own(study):
    current = {
        (name, term): study.digest(data, study.TERMS[term], ())
        for name, data in study.SETS.items()
        for term in data.terms
    }
    assert len(set(current.values())) == len(current)


def test_a_row_of_other_settings_is_computed_again(study, tmp_path):
    path = tmp_path / "rows.jsonl"
    row = {
        "set": "plain",
        "term": "silence",
        "seed": 0,
        "digest": study.digest(study.SETS["plain"], study.TERMS["silence"], ()),
    }
    path.write_text(json.dumps(row) + "\n" + json.dumps({**row, "seed": 1, "digest": "of another weight"}) + "\n")
    assert list(study.kept(path, ())) == [("plain", "silence", 0)]
    assert study.kept(path, ("train.steps=5",)) == {}


def test_a_term_brings_the_one_that_it_is_compared_with(study):
    assert study.wanted(["plain"], ["release, c."], [0, 1]) == [
        ("plain", "base", 0),
        ("plain", "release", 0),
        ("plain", "release, c.", 0),
        ("plain", "base", 1),
        ("plain", "release", 1),
        ("plain", "release, c.", 1),
    ]


def test_the_table_compares_seeds_that_both_sides_have(study, capsys):
    def row(miou):
        return {"miou": miou, "false_pixels": 0.01, "cpu_seconds": 60, "peak_mib": 1000}

    rows = {("plain", "base", seed): row(0.7) for seed in range(3)}
    rows |= {("plain", "silence", seed): {**row(0.71 + 0.001 * seed), "cpu_seconds": 90} for seed in range(2)}
    keys = study.wanted(["plain"], ["base", "silence", "aligned pair"], range(3))
    study.print_table(study.lines_of(rows, keys))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| plain")]
    assert len(lines) == 2
    base, silence = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    assert base[2:5] == ["3", "0.700 [0.700, 0.700]", ""]
    assert silence[2] == "2"
    assert silence[4].startswith("+0.0105 [")
    assert silence[-2:] == ["x 1.50", "x 1.00"]


@pytest.mark.slow
def test_one_short_training_gives_a_row_and_is_not_repeated(study, tmp_path, monkeypatch, capsys):
    small = ["--set", "train.steps=1", "--set", "evaluate.scenes=4", "--seeds", "0", "--sets", "64 samples"]
    rows = tmp_path / "rows.jsonl"
    command = ["counterfactual_study.py", *small, "--terms", "base", "--work", str(tmp_path), "--rows", str(rows)]
    monkeypatch.setattr(sys, "argv", command)
    for _ in range(2):
        assert study.main() == 0
    (row,) = study.read_rows(rows)
    assert 0 <= row["miou"] <= 1
    assert row["peak_mib"] > 100
    assert "| 64 samples | base | 1 |" in capsys.readouterr().out
