"""Whole evaluations: known answers, resuming, sharing out, damage, and what the results say."""

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.benchmark_data import ColourHead, evaluate, make, save_png
from helpers.tiny_models import tiny_settings
from helpers.whole_logits import slide
from magicseg.core.errors import ConfigError, DataError
from magicseg.data.ground_truth import open_data_set
from magicseg.data.protocol import load_protocol
from magicseg.evaluate.benchmark import read_results, results_folder
from magicseg.evaluate.committed_parts import PART, evenly, read_part
from magicseg.evaluate.metrics.confusion import Scores, confusion_matrix
from magicseg.evaluate.threshold import Threshold

EIGHT = ("voc21", "voc20", "context60", "context59", "coco-object", "coco-stuff", "ade20k", "cityscapes")
GIVEN = Threshold(value=0.6, origin="given")


def small(name):
    """The protocol at the size of the test's pictures."""
    return load_protocol(name).model_copy(update={"short_side": 16, "window": 16, "stride": 12})


def without_time(results):
    provenance = {key: value for key, value in results["provenance"].items() if key != "seconds"}
    return {**results, "provenance": provenance}


def part_contents(folder):
    return {
        path.name: {key: value.tolist() for key, value in np.load(path).items() if key != "seconds"}
        for path in sorted(folder.glob("part-*.npz"))
    }


@pytest.fixture
def voc(tmp_path):
    make(load_protocol("voc21"), tmp_path / "voc", 2 * PART + 5, noise=60)
    return tmp_path / "voc"


@pytest.mark.parametrize("name", EIGHT)
def test_a_head_that_sees_the_classes_colours_is_nearly_perfect_on_every_benchmark(tmp_path, name):
    protocol = load_protocol(name).model_copy(update={"short_side": None})
    truths = make(protocol, tmp_path / "data", 3, size=(48, 60))
    outcome = evaluate(ColourHead(), protocol, tmp_path / "data", tmp_path / "out")
    results = outcome.results
    assert results["pixels"] == sum(np.count_nonzero(truth != 255) for truth in truths.values())
    assert results["miou"] > 0.9
    assert list(results["iou"]) == list(protocol.classes)
    assert results["images"] == 3
    assert results["complete"] is False
    assert (results["threshold"] is None) == (not protocol.counts_background)


def test_the_confusion_matrix_is_that_of_sliding_deciding_and_counting_by_hand(voc, tmp_path):
    protocol, head = small("voc21"), ColourHead()
    results = evaluate(head, protocol, voc, tmp_path / "out", threshold=GIVEN).results
    data = open_data_set(protocol, voc)
    total = np.zeros((21, 21), int)
    for name in data.names:
        image, truth = data.pair(name)
        logits = slide(head.logits, image, short_side=16, window=16, stride_px=12, batch_size=4, multiple=head.stride)
        best, place = logits.max(dim=0)
        predicted = np.where(best.sigmoid().numpy() < np.float32(0.6), 0, place.numpy() + 1)
        total += confusion_matrix(truth, predicted, 21, 255)
    assert results["confusion"] == total.tolist()
    assert results["miou"] == Scores(total).miou
    assert 0.1 < results["miou"] < 0.99
    low, high = results["miou_interval"]
    assert low < results["miou"] < high
    assert results["threshold"] == {"value": 0.6, "score": "probability", "origin": "given"}


def test_neither_processes_nor_their_order_nor_readers_change_anything(voc, tmp_path):
    protocol = small("voc21")
    expected = evaluate(ColourHead(), protocol, voc, tmp_path / "one", threshold=GIVEN)
    plans = {"two": [(1, 2), (0, 2)], "three": [(0, 3), (2, 3), (1, 3)], "five": [(n, 5) for n in (4, 3, 2, 1, 0)]}
    for name, shares in plans.items():
        outcomes = [
            evaluate(ColourHead(), protocol, voc, tmp_path / name, threshold=GIVEN, part=share, readers=1 + number)
            for number, share in enumerate(shares)
        ]
        done = [outcome.done for outcome in outcomes]
        assert done == sorted(done)
        assert (done[-1], outcomes[-1].parts) == (3, 3)
        assert outcomes[0].results is None
        assert without_time(outcomes[-1].results) == without_time(expected.results)
        assert part_contents(outcomes[-1].folder) == part_contents(expected.folder)


SHARE = """
import sys
from pathlib import Path
sys.path[:0] = {paths!r}
from helpers.benchmark_data import ColourHead
from test_benchmark_runs import GIVEN, small
from helpers.benchmark_data import evaluate
evaluate(
    ColourHead(), small("voc21"), Path({data!r}), Path({out!r}), threshold=GIVEN, part=(int(sys.argv[1]), 3)
)
"""


@pytest.mark.slow
def test_processes_at_the_same_time_give_what_one_gives(voc, tmp_path):
    expected = evaluate(ColourHead(), small("voc21"), voc, tmp_path / "one", threshold=GIVEN)
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    code = SHARE.format(paths=paths, data=str(voc), out=str(tmp_path / "three"))
    started = [subprocess.Popen([sys.executable, "-c", code, str(number)]) for number in range(3)]
    assert [process.wait() for process in started] == [0, 0, 0]
    outcome = evaluate(ColourHead(), small("voc21"), voc, tmp_path / "three", threshold=GIVEN)
    assert without_time(outcome.results) == without_time(expected.results)
    assert part_contents(outcome.folder) == part_contents(expected.folder)


@pytest.mark.slow
def test_a_small_vision_transformer_gives_the_same_on_real_photographs_whoever_does_what(real_data, tmp_path):
    from magicseg.model.segmenter import build_segmenter

    settings = tiny_settings()

    class Random:
        name, identity, score_kinds, window_average = "random", {"seed": 2}, ("log-odds",), "logits"
        model = build_segmenter(settings, seed=2).eval().requires_grad_(False)
        for parameter in model.parameters():
            parameter.mul_(3)  # fresh weights are small, and then one class wins everywhere
        stride = model.encoder.stride

        def prepare(self, classes):
            with torch.inference_mode():
                self.text = self.model.encode_classes([names[0] for names in classes])

        def logits(self, crops):
            return self.model(crops, self.text).logits

        def score(self, logits, chosen, kind):
            return logits.gather(-3, chosen.unsqueeze(-3)).squeeze(-3)

    protocol = load_protocol("voc21").model_copy(update={"short_side": 48, "window": 48, "stride": 32})
    folder = real_data / "VOCdevkit" / "VOC2012"
    always = Threshold(value=0.0, origin="given")
    whole = evaluate(Random(), protocol, folder, tmp_path / "whole", threshold=always).results
    assert np.count_nonzero(np.sum(whole["confusion"], axis=0)) > 3
    assert (whole["images"], whole["official_images"], whole["complete"]) == (120, 1449, False)
    for share in ((1, 2), (0, 2)):
        outcome = evaluate(Random(), protocol, folder, tmp_path / "shared", threshold=always, part=share, readers=4)
    assert without_time(outcome.results) == without_time(whole)


def test_what_is_committed_is_not_computed_again(voc, tmp_path):
    protocol = small("voc21")
    stopped = ColourHead()
    seen = []

    def enough():
        seen.append(1)
        return len(seen) > PART + 3

    outcome = evaluate(stopped, protocol, voc, tmp_path / "out", stop=enough)
    assert (outcome.done, outcome.results) == (1, None)
    resumed, calls = ColourHead(), []
    outcome = evaluate(
        resumed, protocol, voc, tmp_path / "out", progress=lambda done, total: calls.append((done, total))
    )
    assert calls == [(number, PART + 5) for number in range(1, PART + 6)]
    whole = evaluate(ColourHead(), protocol, voc, tmp_path / "whole")
    assert without_time(outcome.results) == without_time(whole.results)
    again = ColourHead()
    assert evaluate(again, protocol, voc, tmp_path / "out").results == outcome.results
    assert again.prepared == 0


class Choking(ColourHead):
    """Lacks memory for some images, known by their first crops."""

    def __init__(self, error, images):
        super().__init__()
        self.error, self.images = error, list(images)

    def logits(self, crops):
        pixels = crops.numpy()
        for image in self.images:
            if any(np.array_equal(crop, image) for crop in pixels):
                raise self.error
        return super().logits(crops)


def first_window(data, name):
    """The first crop of an image that a head sees."""
    seen = []

    def note(crops):
        seen.extend(crops.numpy())
        return torch.zeros(len(crops), 1, *crops.shape[2:])

    slide(note, data.pair(name)[0], short_side=16, window=16, stride_px=12, batch_size=4, multiple=4)
    return seen[0]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("9 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        torch.OutOfMemoryError("CUDA"),
    ],
)
def test_images_without_memory_are_named_and_the_other_parts_done(voc, tmp_path, error):
    protocol = small("voc21")
    data = open_data_set(protocol, voc)
    large = [data.names[3], data.names[5]]
    head = Choking(error, [first_window(data, name) for name in large])
    outcome = evaluate(head, protocol, voc, tmp_path / "out")
    assert (outcome.done, outcome.parts, outcome.results) == (2, 3, None)
    assert [name in failure.message for name, failure in zip(large, outcome.failed, strict=True)] == [True, True]
    assert "36 x 24 pixels with 20 labels do not fit into memory" in outcome.failed[0].message
    again = evaluate(ColourHead(), protocol, voc, tmp_path / "out")
    assert without_time(again.results) == without_time(
        evaluate(ColourHead(), protocol, voc, tmp_path / "whole").results
    )


@pytest.mark.slow
def test_an_image_that_killed_an_evaluation_is_skipped_by_name_until_its_attempt_is_removed(voc, tmp_path):
    protocol = small("voc21")
    data = open_data_set(protocol, voc)
    code = (
        "import os, signal, sys; from pathlib import Path; import numpy as np\n"
        "from helpers.benchmark_data import ColourHead, evaluate\n"
        "from magicseg.data.protocol import Protocol\n"
        "calls = []\n"
        "class Killed(ColourHead):\n"
        "    def logits(self, crops):\n"
        "        calls.append(1)\n"
        "        if len(calls) == 20: os.kill(os.getpid(), signal.SIGKILL)\n"
        "        return super().logits(crops)\n"
        "protocol = Protocol.model_validate_json(sys.argv[1])\n"
        "evaluate(Killed(), protocol, Path(sys.argv[2]), Path(sys.argv[3]))"
    )
    words = [sys.executable, "-c", code, protocol.model_dump_json(), str(voc), str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    assert subprocess.run(words, check=False, env=environment).returncode == -signal.SIGKILL
    for _ in range(2):
        outcome = evaluate(ColourHead(), protocol, voc, tmp_path / "out")
        assert (outcome.done, outcome.parts, outcome.results) == (2, 3, None)  # parts of 16: the second is left
        (failure,) = outcome.failed
        assert data.names[19] in failure.message
    subprocess.run(shlex.split(failure.message.partition("try it again: ")[2]), check=True)
    results = evaluate(ColourHead(), protocol, voc, tmp_path / "out").results
    whole = evaluate(ColourHead(), protocol, voc, tmp_path / "whole").results
    assert without_time(results) == without_time(whole)


@pytest.mark.parametrize("values", [900, 5000])
def test_images_in_stripes_of_rows_count_the_same(voc, tmp_path, monkeypatch, values):
    class Untied(ColourHead):
        """Colours are whole numbers: many pixels are as near to one class as another."""

        def logits(self, crops):
            return super().logits(crops) + torch.arange(20).sin()[:, None, None] / 7

    protocol = small("voc21")
    whole = evaluate(Untied(), protocol, voc, tmp_path / "whole", threshold=GIVEN)
    monkeypatch.setattr("magicseg.model.sliding_window.WHOLE_VALUES", 0)
    monkeypatch.setattr("magicseg.model.sliding_window.STRIPE_VALUES", values)
    stripes = evaluate(Untied(), protocol, voc, tmp_path / "stripes", threshold=GIVEN)
    assert without_time(stripes.results) == without_time(whole.results)


def test_damaged_parts_are_made_again(voc, tmp_path):
    protocol = small("voc21")
    outcome = evaluate(ColourHead(), protocol, voc, tmp_path / "out")
    path = outcome.folder / "part-00001.npz"
    content = path.read_bytes()
    for damaged in (b"", content[:100], content[:-50], content[:300] + b"xxxx" + content[304:]):
        path.write_bytes(damaged)
        (outcome.folder / "results.json").unlink()
        head = ColourHead()
        repaired = evaluate(head, protocol, voc, tmp_path / "out")
        assert head.prepared == 1
        assert without_time(repaired.results) == without_time(outcome.results)


def test_a_part_with_any_damaged_byte_is_no_part_or_the_same(voc, tmp_path):
    protocol = small("voc21")
    outcome = evaluate(ColourHead(), protocol, voc, tmp_path / "out")
    path = outcome.folder / "part-00002.npz"
    names = evenly(open_data_set(protocol, voc).names, None)[2 * PART :]
    identity = outcome.results["provenance"]["identity"]
    content = path.read_bytes()
    whole = read_part(path, identity=identity, names=names, classes=21)
    refused = 0
    for place in range(0, len(content), 5):
        path.write_bytes(content[:place] + bytes([content[place] ^ 64]) + content[place + 1 :])
        part = read_part(path, identity=identity, names=names, classes=21)
        refused += part is None
        assert part is None or (part.confusion == whole.confusion).all()
    assert refused > len(content) / 10


@pytest.mark.parametrize("change", ["head", "threshold", "protocol", "data"])
def test_parts_of_other_settings_are_made_again(voc, tmp_path, change):
    protocol, head, threshold = small("voc21"), ColourHead(), GIVEN
    first = evaluate(head, protocol, voc, tmp_path / "out", threshold=threshold).results
    head = ColourHead()
    if change == "head":
        head = ColourHead(sharp=3)
    elif change == "threshold":
        threshold = Threshold(value=0.9, origin="given")
    elif change == "protocol":
        protocol = protocol.model_copy(update={"short_side": 12, "window": 12, "stride": 8})
    else:
        save_png(voc / "SegmentationClass" / "img000003.png", np.ones((24, 36)))
    second = evaluate(head, protocol, voc, tmp_path / "out", threshold=threshold).results
    assert head.prepared == 1
    assert second["confusion"] != first["confusion"]
    assert second["provenance"]["identity"] != first["provenance"]["identity"]


def test_a_limit_takes_images_spread_over_the_list_and_says_so(voc, tmp_path):
    protocol = small("voc21")
    whole = evaluate(ColourHead(), protocol, voc, tmp_path / "out")
    few = evaluate(ColourHead(), protocol, voc, tmp_path / "out", limit=4)
    assert few.folder == results_folder(tmp_path / "out", protocol, "colour", limit=4)
    assert (few.results["images"], few.results["images_in_data_set"]) == (4, 2 * PART + 5)
    assert (few.results["limited"], whole.results["limited"]) == (True, False)
    assert read_results(whole.folder) == whole.results
    assert evenly([str(n) for n in range(10)], 4) == ("0", "2", "5", "7")
    assert evenly(["a", "b"], 9) == ("a", "b")


def test_an_image_that_fails_stops_the_evaluation_with_its_name(voc, tmp_path):
    path = voc / "JPEGImages" / "img000009.jpg"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"img000009\.jpg: this image cannot be read"):
        evaluate(ColourHead(), small("voc21"), voc, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("results.json"))


def test_scores_that_are_not_finite_are_an_error_that_names_the_image(voc, tmp_path):
    class Broken(ColourHead):
        def logits(self, crops):
            return super().logits(crops) * float("nan")

    with pytest.raises(DataError, match=r"img000000\.jpg: the scores of colour are not finite"):
        evaluate(Broken(), small("voc21"), voc, tmp_path / "out")


@pytest.mark.parametrize(("limit", "part"), [(0, (0, 1)), (None, (2, 2)), (None, (-1, 2))])
def test_a_share_or_limit_that_is_none_is_refused(voc, tmp_path, limit, part):
    with pytest.raises(ConfigError):
        evaluate(ColourHead(), small("voc21"), voc, tmp_path / "out", limit=limit, part=part)


def test_names_of_background_are_asked_like_classes(tmp_path):
    """Black is background in the pictures; a query of that colour takes it where the threshold cannot."""

    class WithBlack(ColourHead):
        def prepare(self, classes):
            super().prepare(classes)
            self.asked = classes
            self.colours[20:] = 0

    protocol = load_protocol("voc21").model_copy(update={"short_side": None})
    make(protocol, tmp_path / "data", 3, size=(48, 60))
    head = WithBlack()
    results = evaluate(head, protocol.with_background("prompts"), tmp_path / "data", tmp_path / "out").results
    assert head.asked[20:] == tuple((name,) for name in protocol.background.prompts)
    assert results["threshold"] is None
    assert results["iou"]["background"] > 0.95


def test_results_are_json_with_their_whole_provenance(voc, tmp_path):
    outcome = evaluate(ColourHead(), small("voc21"), voc, tmp_path / "out", provenance={"weights": "abc"})
    results = json.loads((outcome.folder / "results.json").read_text())
    assert results == outcome.results
    provenance = results["provenance"]
    assert provenance["weights"] == "abc"
    assert provenance["protocol"]["stride"] == 12
    assert provenance["head"] == {"name": "colour", "sharp": 8.0, "soft": False}
    assert results["threshold"] == {"value": 0.5, "score": "probability", "origin": "default"}
    assert {"miou", "iou", "pixel_accuracy", "confusion", "boundary_iou", "frequency_weighted_iou"} <= set(results)
    worst, best = results["worst"][0], results["best"][0]
    assert worst["miou"] <= best["miou"]


def test_content_is_digested_as_it_was_read(voc, tmp_path):
    first = evaluate(ColourHead(), small("voc21"), voc, tmp_path / "a").results["provenance"]["data"]
    same = evaluate(ColourHead(), small("voc21"), voc, tmp_path / "b").results["provenance"]["data"]
    label = voc / "SegmentationClass" / "img000000.png"
    values = np.array(Image.open(label))
    values[10, 10] = 20 - values[10, 10]
    save_png(label, values)
    other = evaluate(ColourHead(), small("voc21"), voc, tmp_path / "c").results["provenance"]["data"]
    assert first == same
    assert first["content"] != other["content"]


def test_protocols_and_scoring_need_no_torch():
    code = (
        "import magicseg.evaluate.score_predictions, magicseg.data.ground_truth, sys; "
        "assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
def test_an_evaluation_without_a_clip_does_not_wait_for_open_clip():
    code = "import magicseg.evaluate.heads.baselines, sys; assert 'open_clip' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
