"""The threshold's sweep against scoring at every single threshold, and what it refuses."""

import numpy as np
import pytest
from benchmark_data import ColourHead, make
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from magicseg.errors import ConfigError, DataError
from magicseg.evaluate.benchmark import evaluate_benchmark
from magicseg.evaluate.deciding import Threshold
from magicseg.evaluate.metrics import Scores, confusion_matrix
from magicseg.evaluate.protocol import load_protocol
from magicseg.evaluate.sweep import Sweep, sweep_threshold, why_not

SHAPE = (6, 7)


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
    sweep = Sweep.empty(3, steps=20)
    totals = np.zeros((21, 4, 4), int)
    for truth, score, place in images:
        sweep.add(truth, score, place, 255)
        for number, threshold in enumerate(sweep.thresholds):
            predicted = np.where(score < threshold, 0, place + 1)
            totals[number] += confusion_matrix(truth, predicted, 4, 255)
    expected = [np.nan if (value := Scores(total).miou) is None else value for total in totals]
    np.testing.assert_allclose(sweep.miou(), expected, atol=1e-12)


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
    chosen = sweep_threshold(head, protocol, voc)
    details = chosen.to_dict()
    assert (details["origin"], details["split"], details["images"]) == ("swept", "train", 8)
    assert details["miou"] == max(value for _, value in details["curve"])
    train = protocol.for_split("train")
    scores = {}
    for value in (chosen.value, *np.linspace(0, 1, 9)):
        given_ = Threshold(value=float(value), origin="given")
        scores[value] = evaluate_benchmark(head, train, voc, tmp_path / f"at{value}", threshold=given_).results[
            "miou"
        ]
    assert scores[chosen.value] == pytest.approx(details["miou"], abs=1e-12)
    assert scores[chosen.value] == max(scores.values())


def test_results_say_what_was_swept(voc, tmp_path, protocol):
    head = ColourHead()
    chosen = sweep_threshold(head, protocol, voc, limit=5)
    results = evaluate_benchmark(head, protocol, voc, tmp_path / "out", threshold=chosen).results
    assert results["threshold"] == chosen.to_dict()
    assert results["threshold"]["images"] == 5
    assert results["provenance"]["protocol"]["split"] == "val"


def test_test_images_are_refused(voc, protocol):
    listed = voc / "ImageSets" / "Segmentation" / "train.txt"
    listed.write_text(listed.read_text() + "img000002\n")
    with pytest.raises(DataError, match=r"1 of the 9 images .* are test images of voc21: img000002"):
        sweep_threshold(ColourHead(), protocol, voc)


def test_a_folder_of_ones_own_may_hold_the_tuning_split(voc, tmp_path, protocol):
    make(protocol.for_split("train"), tmp_path / "other", 3, seed=50)
    for path in [*(tmp_path / "other").glob("*/*.png"), *(tmp_path / "other").glob("*/*.jpg")]:
        path.rename(path.with_name(f"o{path.name}"))
    listed = tmp_path / "other" / "ImageSets" / "Segmentation" / "train.txt"
    listed.write_text("".join(f"o{name}\n" for name in listed.read_text().split()))
    assert sweep_threshold(ColourHead(), protocol, voc, tuning=tmp_path / "other").details["images"] == 3


def test_without_another_split_there_is_no_sweep(voc, protocol):
    assert why_not(protocol, voc) is None
    (voc / "ImageSets" / "Segmentation" / "train.txt").unlink()
    assert "of the split" in why_not(protocol, voc)
    with pytest.raises(DataError, match=r"train\.txt"):
        sweep_threshold(ColourHead(), protocol, voc)
    with pytest.raises(ConfigError, match="names no other split"):
        sweep_threshold(ColourHead(), protocol.model_copy(update={"tuning_split": None}), voc)
    with pytest.raises(ConfigError, match="without threshold"):
        sweep_threshold(ColourHead(), load_protocol("ade20k"), voc)
