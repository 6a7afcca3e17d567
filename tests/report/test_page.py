import json
import re

import numpy as np
import pytest

from helpers.markup_checks import parsed
from magicseg.config.loading import load_config
from magicseg.report.page import write_report
from magicseg.run import STAGES, Run
from magicseg.stages.worker import run_shards

CLASSES = ["background", "car", "house"]
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)> & \"quoted\" 'caption'"


def _make(path, *, stages=STAGES, overrides=()):
    settings = [
        "plan.samples=40",
        "plan.shard_size=16",
        "generate.size=32",
        "mask.backend=pair-difference",
        *overrides,
    ]
    run = Run.create(path, load_config(preset="painted", overrides=settings))
    for stage in stages:
        run_shards(run, stage, range(run.plan.shards), report=lambda event: None)
    return run


def _page(run):
    path = write_report(run)
    assert path == run.path / "report.html"
    return path.read_text(encoding="utf-8")


def _add_training(run, rows=5):
    lines = [
        {"step": 10 * row, "loss": 9 / row, "focal": 0.1 / row, "dice": 0.8, "learning_rate": 1e-5 * row}
        for row in range(1, rows + 1)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run.path / "train.jsonl").write_text(text + '{"step": 60, "lo', encoding="utf-8")


def _add_results(run, name="miniature", **changes):
    results = {
        "benchmark": "miniature",
        "images": 8,
        "miou": 0.6543,
        "pixel_accuracy": 0.987,
        "classes": CLASSES,
        "iou": {"background": 0.97, "car": 0.3386, "house": None},
        "confusion": [[90, 10, 0], [25, 75, 0], [0, 0, 0]],
        "baselines": {"all background": {"miou": 0.0909}},
        "provenance": {"weights_digest": "beef" * 16, "versions": {"torch": "9.9"}},
        **changes,
    }
    (run.path / "results").mkdir(exist_ok=True)
    (run.path / "results" / f"{name}.json").write_text(json.dumps(results), encoding="utf-8")


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    run = _make(tmp_path_factory.mktemp("complete") / "run", overrides=["plan.max_labels=2"])
    _add_training(run)
    _add_results(run)
    (run.path / "model").mkdir()
    (run.path / "model" / "model.json").write_text(json.dumps({"weights_digest": "beef" * 16}))
    return run


def test_other_runs_scores_are_shown_with_their_differing_settings(complete, tmp_path):
    other = _make(tmp_path / "without <loss>", stages=(), overrides=["train.counterfactual_weight=0"])
    _add_results(other, miou=0.4321, baselines={})
    page = write_report(complete, beside=[other]).read_text(encoding="utf-8")
    assert "without &lt;loss&gt;" in page
    assert "0.432" in page
    assert "train.counterfactual_weight: 0.0" in page
    assert "all background (baseline)" in page
    for content, words in (("[]", "cannot be used"), (None, "has no miniature.json yet")):
        path = other.path / "results" / "miniature.json"
        path.write_text(content) if content else path.unlink()
        page = write_report(complete, beside=[other]).read_text(encoding="utf-8")
        assert words in page
        assert "0.654" in page, "its own scores stay"
    assert "0.432" not in _page(complete)


def test_a_complete_run_shows_everything(complete):
    page = _page(complete)
    dropped = sum(record.dropped["ambiguous-labels"] for record in complete.ledger("mask").commits().values())
    assert f"{dropped} ambiguous-labels" in page
    assert page.count('alt="mask of sample') == 12
    assert page.count('class="reason"') == 2
    assert page.count('<svg class="chart"') == 4
    assert "0.654" in page
    assert "98.7 %" in page
    assert "0.339" in page
    assert "all background (baseline)" in page
    assert "75.0" in page  # percent of the car's pixels are predicted correctly
    assert complete.fingerprints["mask"].digest in page
    assert "beef" * 16 in page
    assert "versions.torch" in page
    assert "numpy " in page
    assert "warning" not in parsed(page).text


def test_the_page_is_well_formed_and_accessible(complete):
    tags = parsed(_page(complete))
    assert tags.seen.count("img") == sum(name == "alt" for name, _ in tags.attributes)
    assert tags.seen.count("svg") == sum(name == "aria-label" for name, _ in tags.attributes)
    identities = [value for name, value in tags.attributes if name == "id"]
    assert len(identities) == len(set(identities))
    assert {value for name, value in tags.attributes if name == "aria-labelledby"} <= set(identities)
    assert "h1" in tags.seen


def test_the_page_loads_nothing_from_outside(complete):
    page = _page(complete)
    tags = parsed(page)
    assert not {"script", "link", "iframe", "object", "base", "form"} & set(tags.seen)
    sources = [value for name, value in tags.attributes if name in {"src", "href", "srcset", "data", "action"}]
    assert sources
    assert all(value.startswith("data:image/png;base64,") for value in sources)
    assert not re.search(r"url\(|@import|https?:|//[a-z]", re.sub(r"base64,[^\"]*", "", page))


def test_the_same_run_gives_the_same_page(complete):
    def stripped():
        return re.sub(r"written [\d: -]+ UTC", "", _page(complete))

    assert stripped() == stripped()


def test_captions_are_escaped(tmp_path):
    run = _make(tmp_path / "run", stages=("describe", "generate"))
    captions = np.full((40, 2), HOSTILE, dtype=object)
    run.store.array("describe/captions")[:] = captions
    page = _page(run)
    tags = parsed(page)
    assert "script" not in tags.seen
    assert not [name for name, _ in tags.attributes if name.startswith("on")]
    assert HOSTILE in "".join(tags.text)


def test_labels_and_results_are_escaped(tmp_path):
    labels = tmp_path / "labels.txt"
    labels.write_text('<script>x\nan "apple" & <i>pear\n', encoding="utf-8")
    run = _make(tmp_path / "run", stages=("describe",), overrides=[f"labels.vocabulary={labels}"])
    _add_results(run, benchmark="</title><script>", iou={"<script>": 0.5}, classes=["<script>"], confusion=[[1]])
    tags = parsed(_page(run))
    assert "script" not in tags.seen
    assert "i" in tags.seen  # the bar of an IoU
    assert tags.seen.count("i") == 1


def test_the_report_of_an_empty_run_suggests_the_first_command(tmp_path):
    run = _make(tmp_path / "run", stages=())
    page = _page(run)
    parsed(page)
    assert "Nothing is generated yet" in page
    assert f"magicseg run {run.path}" in page
    assert "No training yet" in page
    assert "No results yet" in page


@pytest.mark.parametrize(
    ("stages", "sentence", "pictures"),
    [(STAGES[:1], "captions only", 0), (STAGES[:2], "No masks yet", 2)],
)
def test_a_run_without_masks_shows_what_there_is(tmp_path, stages, sentence, pictures):
    page = _page(_make(tmp_path / "run", stages=stages))
    parsed(page)
    assert sentence in page
    assert page.count("<article") == 12
    assert page.count("<img") == 12 * pictures
    assert "The data set is not complete" in page


def test_a_half_masked_run_shows_masked_samples(tmp_path):
    run = _make(tmp_path / "run", stages=STAGES[:2])
    run_shards(run, "mask", [1], report=lambda event: None)
    page = _page(run)
    assert "1 of 3" in page
    assert page.count('alt="mask of sample') == 12
    assert {int(index) for index in re.findall(r"mask of sample (\d+)", page)} <= set(range(16, 32))


def test_a_run_whose_masks_were_all_dropped_says_so(tmp_path):
    page = _page(
        _make(tmp_path / "run", overrides=["plan.min_labels=2", "plan.max_labels=2", "mask.one_reason_at_most=1"])
    )
    parsed(page)
    assert "The mask stage kept no sample" in page
    assert page.count('class="reason">ambiguous-labels') == 2
    assert "40 ambiguous-labels" in page


def test_damaged_samples_become_warnings(tmp_path):
    run = _make(tmp_path / "run")
    (run.store.path / run.store.shard_file("mask/mask", 0)).write_bytes(b"no such thing")
    page = _page(run)
    parsed(page)
    assert "is not shown" in page
    assert 'alt="mask of sample 3' in page


def test_unreadable_results_become_warnings(tmp_path):
    run = _make(tmp_path / "run", stages=())
    _add_results(run, name="wrong", confusion=[[1, 2]])
    (run.path / "results" / "torn.json").write_text('{"miou": 0.')
    _add_results(run, name="sparse", baselines={}, confusion=[], pixel_accuracy=None, miou=None, provenance={})
    page = _page(run)
    parsed(page)
    assert "results/torn.json: cannot be used" in page
    assert "results/wrong.json cannot be read: ValueError: the confusion matrix does not fit the 3 classes" in page
    assert "IoU by class" in page


def test_a_score_of_other_weights_becomes_a_warning(tmp_path):
    run = _make(tmp_path / "run", stages=())
    _add_results(run)
    (run.path / "model").mkdir()
    (run.path / "model" / "model.json").write_text(json.dumps({"weights_digest": "feed" * 16}))
    assert "of other weights than the current model" in _page(run)


def test_many_classes_give_a_list_of_confusions(tmp_path):
    names = [f"class {number}" for number in range(60)]
    confusion = np.eye(60, dtype=int) * 90
    confusion[7, 9] = 10
    run = _make(tmp_path / "run", stages=())
    _add_results(run, classes=names, iou=dict.fromkeys(names, 0.5), confusion=confusion.tolist())
    page = _page(run)
    parsed(page)
    assert "Largest confusions" in page
    assert "10.0 %" in page
    assert 'class="matrix"' not in page


def test_large_images_are_shrunk(tmp_path):
    run = _make(tmp_path / "run", overrides=["plan.samples=2", "generate.size=512", "store.image_codec=jpeg"])
    page = _page(run)
    assert 'class="pixelated"' not in page
    assert len(page) < 2_000_000
