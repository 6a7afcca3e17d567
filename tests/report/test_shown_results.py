"""Results of ``magicseg evaluate`` in the report."""

import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from helpers.markup_checks import parsed
from magicseg.config.loading import load_config
from magicseg.evaluate.figures import write_charts
from magicseg.evaluate.metrics.counts import CONVENTIONS, count_image, scored, tabulate
from magicseg.evaluate.metrics.false_positives import FALSE_POSITIVE_CONVENTIONS
from magicseg.report import results as results_module
from magicseg.report.page import write_report
from magicseg.run import Run

HEADS = ("vanilla", "maskclip", "sclip", "clearclip", "memory-bank", "untrained", "background")
SWEPT = {"value": 0.432, "origin": "swept", "split": "train", "images": 200, "curve": [[0.0, 0.1], [0.5, 0.2]]}


def scores_of(classes, *, images=12, wrong=0.3, seed=0):
    """Return the results that evaluation writes for a head that errs on a share of the pixels."""
    rng = np.random.default_rng(seed)
    counted = []
    for _ in range(images):
        truth = rng.integers(0, len(classes), (12, 16))
        guess = np.where(rng.random(truth.shape) < wrong, rng.integers(0, len(classes), truth.shape), truth)
        counted.append(count_image(truth, guess, len(classes), 255))
    return scored(*tabulate(counted, len(classes)), classes)


def results_of(classes, **changes):
    """Return the results that `magicseg.evaluate.suite` writes for a whole benchmark with all heads."""
    return {
        "benchmark": "voc21",
        "head": "model",
        "images": 1449,
        "images_in_data_set": 1449,
        "limited": False,
        "official_images": 1449,
        "complete": True,
        "classes": classes,
        **scores_of(classes),
        "conventions": CONVENTIONS,
        "threshold": SWEPT,
        "provenance": {"identity": "beef" * 16, "protocol": {"name": "voc21", "background": {"rule": "threshold"}}},
        "baselines": {
            name: {
                **scores_of(classes, wrong=0.6, seed=place),
                "head": name,
                "threshold": {"value": 0.5, "origin": "default"},
            }
            for place, name in enumerate(HEADS, start=1)
        },
        **changes,
    }


@pytest.fixture(scope="module")
def settings():
    return load_config(preset="painted", overrides=["plan.samples=4", "plan.shard_size=4", "generate.size=32"])


@pytest.fixture
def run(settings, tmp_path):
    return Run.create(tmp_path / "run", settings)


def add(run, results, stem=None):
    folder = run.path / "results"
    folder.mkdir(exist_ok=True)
    (folder / f"{stem or results['benchmark']}.json").write_text(json.dumps(results), encoding="utf-8")


def page_of(run):
    return write_report(run).read_text(encoding="utf-8")


def text_of(page):
    return " ".join(" ".join(parsed(page).text).split())


def png(side=8, noisy=False):
    values = np.random.default_rng(0).integers(0, 256 if noisy else 1, (side, side, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    return buffer.getvalue()


def test_the_model_and_every_baseline_have_all_scores_with_intervals(run):
    results = results_of(["background", "cat", "dog"])
    add(run, results)
    text = text_of(page_of(run))
    for title in (
        "mIoU",
        "mIoU, classes in ground truth",
        "frequency-weighted IoU",
        "mean boundary IoU",
        "pixel accuracy",
        "mean accuracy",
    ):
        assert title in text
    for scores in (results, *results["baselines"].values()):
        for name in ("miou", "miou_over_classes_in_ground_truth", "frequency_weighted_iou", "mean_boundary_iou"):
            low, high = scores[f"{name}_interval"]
            assert f"{scores[name]:.3f} {low:.3f} to {high:.3f}" in text
        for name in ("pixel_accuracy", "mean_accuracy"):
            low, high = scores[f"{name}_interval"]
            assert f"{100 * scores[name]:.1f} % {100 * low:.1f} to {100 * high:.1f}" in text
    assert all(f"{name} (baseline)" in text for name in HEADS)
    for convention in CONVENTIONS.values():
        assert convention in text


def test_false_positives_of_every_head_have_a_table_with_definitions(run):
    found = {"images": 256}
    for place, name in enumerate(FALSE_POSITIVE_CONVENTIONS, start=1):
        found |= {name: place / 10, f"{name}_interval": [place / 10 - 0.05, place / 10 + 0.05]}
    untrained = scores_of(["background", "cat"]) | {"false_positives": {**found, "own_pixels_interval": None}}
    results = results_of(
        ["background", "cat"],
        false_positives=found,
        false_positive_conventions=FALSE_POSITIVE_CONVENTIONS,
        baselines={"untrained": untrained},
    )
    add(run, results)
    text = text_of(page_of(run))
    assert "False positives on 256 counterfactual images" in text
    assert "this model 10.0 % 5.0 to 15.0 20.0 % 15.0 to 25.0 30.0 % 25.0 to 35.0 40.0 % 35.0 to 45.0" in text
    assert "untrained (baseline) 10.0 % 5.0 to 15.0 20.0 % 30.0 %" in text
    assert all(convention in text for convention in FALSE_POSITIVE_CONVENTIONS.values())


def test_results_without_counterfactual_images_have_no_such_table(run):
    add(run, results_of(["background", "cat"]))
    assert "False positives" not in text_of(page_of(run))


def test_every_class_has_its_iou_and_boundary_iou_with_intervals(run):
    results = results_of(["background", "cat", "dog"])
    add(run, results)
    text = text_of(page_of(run))
    for name in results["classes"]:
        for measure in ("iou", "boundary_iou"):
            low, high = results[f"{measure}_interval"][name]
            assert f"{results[measure][name]:.3f} {low:.3f} to {high:.3f}" in text
        assert f"{results['baselines']['sclip']['iou'][name]:.3f}" in text


def test_every_threshold_says_where_it_comes_from(run):
    add(run, results_of(["background", "cat"]))
    text = text_of(page_of(run))
    assert "0.432, swept on 200 images of the split 'train'" in text
    assert text.count("0.5, the protocol's") == len(HEADS)


def test_without_a_threshold_there_is_no_column_for_it(run):
    results = results_of(["cat", "dog"], threshold=None)
    for scores in results["baselines"].values():
        scores["threshold"] = None
    add(run, results)
    assert "background below" not in page_of(run)


@pytest.mark.parametrize(
    ("changes", "sentence", "part"),
    [
        ({}, "The whole benchmark: all 1449 images of the data set; 1449 are published.", False),
        (
            {"images": 50, "limited": True, "complete": False},
            "Not the whole benchmark: 50 of the data set's 1449 images, evenly spread; 1449 are published.",
            True,
        ),
        (
            {"images": 120, "images_in_data_set": 120, "complete": False},
            "Not the whole benchmark: all 120 images of the data set; 1449 are published.",
            True,
        ),
        ({"official_images": None, "complete": None}, "the protocol does not say how many are published", False),
    ],
)
def test_the_page_says_whether_the_whole_benchmark_was_scored(run, changes, sentence, part):
    add(run, results_of(["background", "cat"], **changes))
    text = text_of(page_of(run))
    assert sentence in text
    assert ("voc21, part of it" in text) == part


def test_several_benchmarks_are_put_side_by_side(run):
    for name in ("voc21", "ade20k"):
        results = results_of(["background", "cat"], benchmark=name)
        results["baselines"] = {"sclip": results["baselines"]["sclip"]} if name == "voc21" else {}
        add(run, results)
    page = page_of(run)
    tags = parsed(page)
    identities = [value for name, value in tags.attributes if name == "id"]
    assert len(identities) == len(set(identities))
    overview = page[page.index("mIoU on all benchmarks") :]
    overview = overview[: overview.index("</table>")]
    assert overview.index("ade20k") < overview.index("voc21") < overview.index("this model") < overview.index("sclip")
    assert overview.count("<td>") == 4


def test_a_table_of_many_classes_is_collapsed(run):
    names = [f"thing {number}" for number in range(171)]
    add(run, results_of(names, baselines={}))
    page = page_of(run)
    parsed(page)
    assert "<details><summary>171 classes</summary>" in page
    assert "thing 170" in page
    assert len(page) < 1_000_000
    add(run, results_of(names[:5], baselines={}))
    assert "<details open><summary>5 classes</summary>" in page_of(run)


@pytest.mark.parametrize("limit", [None, 50])
def test_figures_beside_the_results_are_in_the_page(run, limit):
    changes = {} if limit is None else {"images": limit, "limited": True, "complete": False}
    results = results_of(["background", "cat"], **changes)
    add(run, results, stem="voc21" if limit is None else "voc21-limit-50")
    folder = run.path / "results" / "voc21" / "model"
    folder = folder if limit is None else folder / "limit-50"
    write_charts(results, folder)
    (folder / "best.png").write_bytes(png())
    tags = parsed(page_of(run))
    sources = [value for name, value in tags.attributes if name == "src"]
    assert len(sources) == 3
    assert all(value.startswith("data:image/png;base64,") for value in sources)
    alternatives = [value for name, value in tags.attributes if name == "alt"]
    assert alternatives == [
        "Images with the best mean IoU",
        "IoU by class, best first, with intervals",
        "Confusion matrix",
    ]


def test_figures_of_a_part_are_not_shown_for_the_whole(run):
    add(run, results_of(["background", "cat"]))
    folder = run.path / "results" / "voc21" / "model" / "limit-50"
    folder.mkdir(parents=True)
    (folder / "best.png").write_bytes(png())
    assert "<img" not in page_of(run)


@pytest.mark.parametrize("content", [b"", b"no picture", png(64, noisy=True)[:600]])
def test_damaged_figures_become_warnings(run, content):
    add(run, results_of(["background", "cat"]))
    folder = run.path / "results" / "voc21" / "model"
    folder.mkdir(parents=True)
    (folder / "worst.png").write_bytes(content)
    page = page_of(run)
    assert "<img" not in page
    assert "results/voc21/model/worst.png cannot be shown" in text_of(page)
    assert "this model" in page


def test_figures_that_are_too_large_are_named_instead(run, monkeypatch):
    add(run, results_of(["background", "cat"]))
    folder = run.path / "results" / "voc21" / "model"
    folder.mkdir(parents=True)
    (folder / "best.png").write_bytes(png(64, noisy=True))
    (folder / "worst.png").write_bytes(png())
    monkeypatch.setattr(results_module, "_MOST_BYTES", 1000)
    page = page_of(run)
    assert page.count("<img") == 1
    assert "kB), see results/voc21/model/best.png" in page
    monkeypatch.setattr(results_module, "_MOST_CHARACTERS", 10)
    assert "<img" not in page_of(run)


def test_a_benchmark_s_name_cannot_point_to_another_folder(run):
    folder = run.path / "model"
    folder.mkdir()
    (folder / "best.png").write_bytes(png())
    add(run, results_of(["background", "cat"], benchmark=".."), stem="voc21")
    assert "<img" not in page_of(run)


def test_results_of_earlier_versions_are_shown_without_intervals(run):
    add(run, {"benchmark": "old", "miou": 0.5, "iou": {"cat": 0.5}, "baselines": {"all background": {"miou": 0.1}}})
    page = page_of(run)
    text = text_of(page)
    assert "all background (baseline)" in text
    assert "cat 0.500" in text
    assert "frequency-weighted" not in text
    assert 'class="interval"' not in page


@pytest.mark.parametrize(
    "changes",
    [
        {"miou_interval": [0.1]},
        {"miou_interval": ["a", "b"]},
        {"miou_interval": [0.1, float("nan")]},
        {"iou_interval": [1, 2]},
        {"images": float("inf")},
        {"images": "many"},
        {"threshold": {"value": 0.5}},
        {"threshold": 0.5},
        {"baselines": ["sclip"]},
        {"conventions": "none"},
        {"confusion": [[float("inf"), 0], [0, 1]]},
        {"confusion": [["1", "2"], ["3", "4"]]},
        {"provenance": 3},
        {"miou": 10**400},
    ],
)
def test_damaged_results_become_warnings(run, changes):
    add(run, results_of(["background", "cat"], **changes))
    add(run, results_of(["background", "dog"], benchmark="ade20k"))
    text = text_of(page_of(run))
    assert "results/voc21.json cannot be read" in text
    assert "ade20k" in text


def test_results_that_are_no_mapping_or_are_nested_without_end_become_warnings(run):
    folder = run.path / "results"
    folder.mkdir()
    (folder / "list.json").write_text("[1, 2]")
    (folder / "deep.json").write_text("[" * 200_000)
    (folder / "empty.json").write_text("{}")
    text = text_of(page_of(run))
    assert all(f"results/{name}.json: cannot be used" in text for name in ("deep", "list"))
    assert "results/empty.json cannot be read" in text


def test_all_text_of_results_is_escaped(run):
    evil = '"><script>alert(1)</script><img src=x onerror=alert(2)>'
    results = results_of(["background", evil], benchmark=evil, conventions={"miou": evil, evil: evil})
    results["baselines"] = {evil: {**results["baselines"]["sclip"], "threshold": {"value": 1, "origin": evil}}}
    results["threshold"] = {**SWEPT, "split": evil}
    results["provenance"] = {evil: evil}
    add(run, results, stem="voc21")
    add(run, {**results, "complete": False}, stem="voc22")
    tags = parsed(page_of(run))
    assert not {"script", "img"} & set(tags.seen)
    assert not [name for name, _ in tags.attributes if name.startswith("on")]


@pytest.mark.parametrize("torn", ['{"step": 4, "lo', "[1]", "[" * 100_000])
def test_all_numbers_of_the_training_log_have_curves(run, torn):
    rows = [
        {
            "step": step,
            "loss": 1 / step,
            "deep_supervision": 0.5,
            "samples_per_second": 9.0,
            "loss_scale": 65536.0,
            "gradient_norm": 3.5,
            "evaluation": {"miou": 0.1 * step},
        }
        for step in (1, 2, 3)
    ]
    (run.path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + torn)
    page = page_of(run)
    parsed(page)
    titles = re.findall(r"<h3><span>([^<]*)</span>", page)
    assert titles == [
        "loss (weighted sum)",
        "deep supervision, earlier layers",
        "validation mIoU during training",
        "loss scale (fp16)",
        "samples per second",
        "gradient_norm",
    ]
    assert '<span class="soft">0.3</span>' in page
