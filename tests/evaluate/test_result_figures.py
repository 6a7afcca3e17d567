"""Figures of results: they are there, large enough to read, and the same each time."""

import numpy as np
import pytest
from PIL import Image

from helpers.benchmark_data import ColourHead, evaluate, make
from magicseg.data.ground_truth import open_data_set
from magicseg.data.protocol import load_protocol
from magicseg.evaluate import figures
from magicseg.evaluate.figures import write_charts, write_examples


@pytest.fixture(params=["voc21", "coco-stuff"])
def scored(request, tmp_path):
    protocol = load_protocol(request.param).model_copy(update={"short_side": None})
    make(protocol, tmp_path / "data", 3, size=(40, 60), noise=40)
    head = ColourHead()
    return head, protocol, tmp_path / "data", evaluate(head, protocol, tmp_path / "data", tmp_path / "out")


@pytest.mark.slow
def test_charts_have_room_for_the_name_of_every_class(scored, tmp_path):
    _, protocol, _, outcome = scored
    written = write_charts(outcome.results, tmp_path / "figures")
    assert [path.name for path in written] == ["confusion.png", "classes.png"]
    width, height = Image.open(written[0]).size
    assert min(width, height) >= 12 * len(protocol.classes)
    drawn = sum(value is not None for value in outcome.results["iou"].values())
    assert Image.open(written[1]).size[1] >= 18 * min(drawn, 60)
    before = [path.read_bytes() for path in written]
    assert [path.read_bytes() for path in write_charts(outcome.results, tmp_path / "figures")] == before


@pytest.mark.parametrize("name", ["confusion", "classes"])
def test_a_title_is_not_cut_where_the_figure_is_narrow(name):
    results = {
        "head": "a model with a long name",
        "benchmark": "a-benchmark-of-my-own",
        "images": 100_000,
        "miou": 0.5,
        "confusion": [[2, 2], [1, 2]],
        "iou": {"a": 0.4, "b": 0.6, "c": None},
        "iou_interval": {"a": [0.3, 0.5], "b": None},
    }
    title = figures.chart_title(results)
    if name == "classes":
        figure = figures._classes(results, title)
    else:
        figure = figures._confusion(np.array(results["confusion"]), ["a", "b"], title, truth="ground truth")
    figure.draw_without_rendering()
    drawn = figure._suptitle.get_window_extent()
    assert 0 <= drawn.x0 < drawn.x1 <= figure.bbox.width
    assert drawn.y1 <= figure.bbox.height


def test_the_best_and_worst_images_are_shown_with_truth_and_prediction(scored, tmp_path):
    head, protocol, data, outcome = scored
    written = write_examples(head, open_data_set(protocol, data), outcome.results, tmp_path / "figures", count=2)
    assert [path.name for path in written] == ["best.png", "worst.png"]
    for path in written:
        assert len(np.unique(np.asarray(Image.open(path).convert("L")))) > 50


def test_results_without_any_pixel_have_charts_too(tmp_path):
    results = {
        "head": "x",
        "benchmark": "y",
        "images": 1,
        "miou": None,
        "confusion": [[0, 0], [0, 0]],
        "iou": {"a": None, "b": None},
        "iou_interval": {"a": None, "b": None},
    }
    assert all(path.is_file() for path in write_charts(results, tmp_path))
