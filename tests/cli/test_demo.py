"""`magicseg demo`: the pipeline with the learned models, and the two comparison runs."""

import json

import pytest

from helpers.tiny_runs import change
from magicseg.cli import learn, runs
from magicseg.miniature.short_demo import SHORT
from magicseg.run import Run
from magicseg.run.digest import logical_digest

BESIDE = ("exact-masks", "no-counterfactual-loss")
SMALLEST = (
    *(*SHORT, "plan.samples=8", "plan.shard_size=8", "generate.batch_size=4", "generate.options.steps=2"),
    *("train.steps=2", "train.checkpoint_every=1", "evaluate.scenes=4"),
)
SETS = [word for setting in SMALLEST for word in ("--set", setting)]


@pytest.mark.slow
def test_the_demo_s_report_shows_the_comparison_runs(magicseg):
    done = magicseg.patiently("demo", "demo", *SETS)
    assert done.code == 0, done.err
    run = Run.open(magicseg.folder / "demo")
    assert run.config.generate.backend == "diffusers"
    scores = {name: json.loads((path / "results/miniature.json").read_bytes()) for name, path in _all(magicseg)}
    assert {"vanilla", "maskclip", "clearclip", "untrained"} <= scores["demo"]["baselines"].keys()
    assert (
        scores["demo"]["baselines"]["untrained"]["miou"]
        == scores["demo-exact-masks"]["baselines"]["untrained"]["miou"]
    )
    page = (run.path / "report.html").read_text(encoding="utf-8")
    for name in BESIDE:
        assert f"demo-{name}" in page
        assert f"demo-{name}" in done.out
    exact, without = (Run.open(magicseg.folder / f"demo-{name}") for name in BESIDE)
    assert (exact.config.generate.backend, exact.config.mask.backend) == ("painter", "painter")
    assert without.config.train.counterfactual_weight == 0
    assert without.config.train.sources[0].run == str(run.path)
    for other in (exact, without):
        assert other.config.train.encoder == run.config.train.encoder
        assert other.config.train.steps == run.config.train.steps

    digest = logical_digest(run)
    change(without, "train.batch_size", 3)  # differs from the existing training
    broken = magicseg.patiently("demo", "demo", *SETS)
    assert broken.code != 0
    assert logical_digest(run) == digest, "what is done is left alone"
    assert "demo-no-counterfactual-loss" in broken.err


def test_the_short_demo_makes_no_comparison_runs(tmp_path, monkeypatch):
    for module, name in ((runs, "_make_data"), (runs, "_train_and_evaluate"), (learn, "report")):
        monkeypatch.setattr(module, name, lambda *_: None)
    runs.demo(tmp_path / "run", short=True)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def _all(magicseg):
    return [(path.name, path) for path in sorted(magicseg.folder.glob("demo*"))]
