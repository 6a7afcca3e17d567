"""``magicseg evaluate`` and ``compare`` as they are typed: several benchmarks, baselines, limits, processes."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

from helpers.benchmark_data import make
from helpers.tiny_clip import build
from magicseg.cli import app
from magicseg.config.evaluation import EvaluateSettings
from magicseg.config.model import ModelSettings
from magicseg.core.errors import MagicsegError
from magicseg.data.protocol import load_protocol
from magicseg.evaluate.compare import compare
from magicseg.evaluate.model_under_test import Target
from magicseg.evaluate.suite import Suite
from magicseg.evaluate.threshold import Threshold
from magicseg.model.saved_model import save_segmenter
from magicseg.model.segmenter import build_segmenter

HEADS = ("vanilla", "maskclip", "sclip", "clearclip")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    build("open_clip", folder)
    encoder = {"name": "open-clip", "weights": {"model": str(folder / "open_clip")}}
    settings = ModelSettings(encoder=encoder, decoder_width=16, decoder_heads=2, prompt_tokens=2)
    save_segmenter(build_segmenter(settings, seed=0), folder / "model")
    return folder / "model"


def protocol_file(folder, name):
    """A shipped protocol with windows that a test has time for."""
    values = load_protocol(name).model_dump(mode="json") | {"short_side": 24, "window": 24, "stride": 16}
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(values))  # JSON is YAML
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("protocols")
    return {name: str(protocol_file(folder, name)) for name in ("voc21", "voc20", "ade20k")}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of two data sets, VOC with a training split beside its validation split."""
    folder = tmp_path_factory.mktemp("data")
    voc = load_protocol("voc21")
    make(voc, folder / "VOCdevkit" / "VOC2012", count=20)
    train = voc.for_split("train")
    make(train, folder / "train", count=3, seed=9)
    for path in sorted((folder / "train").rglob("*.*")):
        target = folder / "VOCdevkit" / "VOC2012" / path.relative_to(folder / "train")
        if path.name != "train.txt":
            target = target.with_name(f"t{target.name}")
        target.write_bytes(path.read_bytes())
    names = (folder / "train" / "ImageSets" / "Segmentation" / "train.txt").read_text().split()
    listed = folder / "VOCdevkit" / "VOC2012" / "ImageSets" / "Segmentation" / "train.txt"
    listed.write_text("".join(f"t{name}\n" for name in names))
    make(load_protocol("ade20k"), folder / "ADEChallengeData2016", count=3)
    return folder


def run(*arguments):
    """The command's exit code, or the error that it ends with, and its outputs."""
    outcome = CliRunner().invoke(app, list(map(str, arguments)))
    error = outcome.exception
    if error is not None and not isinstance(error, (MagicsegError, SystemExit)):
        raise error
    return (error if isinstance(error, MagicsegError) else outcome.exit_code), outcome.stdout, outcome.stderr


@pytest.mark.slow
def test_all_benchmarks_and_baselines_in_one_command(small, model, data, tmp_path):
    code, printed, told = run(
        "evaluate", model, "--benchmark", small["voc21"], "--benchmark", small["ade20k"], "--data", data,
        "--out", tmp_path / "out",
        *(word for name in HEADS for word in ("--baseline", name)), "--json",
    )  # fmt: skip
    assert code == 0
    voc, ade = json.loads(printed)
    assert (voc["benchmark"], voc["images"], voc["complete"]) == ("voc21", 20, False)
    assert (ade["benchmark"], ade["images"], len(ade["iou"])) == ("ade20k", 3, 150)
    for results in (voc, ade):
        assert tuple(results["baselines"]) == HEADS
        for scores in (results, *results["baselines"].values()):
            if results is ade:
                assert scores["miou_interval"] is None  # three images say too little
            else:
                low, high = scores["miou_interval"]
                assert low <= scores["miou"] <= high
            assert (
                scores["provenance"]["weights_digest"]
                == json.loads((model / "model.json").read_text())["weights_digest"]
            )
            assert scores["provenance"]["protocol"]["name"] == results["benchmark"]
        assert json.loads((tmp_path / "out" / f"{results['benchmark']}.json").read_text()) == results
        folder = tmp_path / "out" / results["benchmark"] / "model"
        assert {"confusion.png", "classes.png", "worst.png", "best.png"} <= {path.name for path in folder.iterdir()}
    # Every head's threshold is its own, chosen on the training images, and printed.
    for name in ("model", *HEADS):
        scores = voc if name == "model" else voc["baselines"][name]
        assert (scores["threshold"]["origin"], scores["threshold"]["images"]) == ("swept", 3)
        text = Threshold.from_dict(scores["threshold"]).text
        assert f"voc21, {name}: background below {text}, chosen on 3 images" in told
    assert ade["threshold"] is None


@pytest.mark.slow
def test_what_is_done_is_not_done_again(small, model, data, tmp_path, monkeypatch):
    asked = ("evaluate", model, "--benchmark", small["voc21"], "--data", data, "--out", tmp_path, "--json")
    _, first, _ = run(*asked)
    monkeypatch.setattr("magicseg.evaluate.runner.label_batch", lambda *_: pytest.fail("computed again"))
    monkeypatch.setattr("magicseg.evaluate.sweep.batch_logits", lambda *_: pytest.fail("swept again"))
    assert run(*asked)[1] == first


@pytest.mark.parametrize("content", ["{}", "[]", "x", '{"value": "0.5", "details": {"images": 3, "split": "train"}}'])
def test_a_damaged_threshold_is_named_with_its_remedy(content, small, model, data, tmp_path):
    asked = ("evaluate", model, "--benchmark", small["voc21"], "--data", data, "--out", tmp_path, "--limit", 2)
    run(*asked)
    (path,) = tmp_path.rglob("threshold-*.json")
    path.write_text(content)
    error, _, _ = run(*asked)
    assert str(path) in error.message
    assert f"rm {path}" in error.hint


def test_without_another_split_the_protocols_threshold_is_used_and_said(small, model, tmp_path):
    make(load_protocol("voc21"), tmp_path / "voc", count=3)
    asked = ("evaluate", model, "--benchmark", small["voc21"], "--data", tmp_path / "voc", "--out", tmp_path / "out")
    code, _, told = run(*asked)
    assert code == 0
    assert "background below 0.5, the protocol's, not chosen on other images: split 'train'" in told
    results = json.loads((tmp_path / "out" / "voc21.json").read_text())
    assert results["threshold"] == {"value": 0.5, "score": "probability", "origin": "default"}
    assert "of 1449: not the whole benchmark" in told


def test_a_limit_and_the_other_rule_for_background_are_told(small, model, data, tmp_path):
    code, printed, _ = run(
        "evaluate", model, "--benchmark", small["voc21"], "--data", data, "--out", tmp_path, "--limit", 4,
        "--background", "prompts", "--json",
    )  # fmt: skip
    assert code == 0
    results = json.loads(printed)
    assert (results["images"], results["images_in_data_set"]) == (4, 20)
    assert results["provenance"]["protocol"]["background"]["rule"] == "prompts"
    assert results["provenance"]["evaluate"]["limit"] == 4
    assert (tmp_path / "voc21-prompts-limit-4.json").exists()


@pytest.mark.slow
def test_two_processes_give_what_one_gives(small, model, data, tmp_path):
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    asked = ("--benchmark", small["voc21"], "--data", data, "--baseline", "sclip")
    words = ("evaluate", model, *asked, "--json", "--out")
    run(*words, alone)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "magicseg"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    printed = subprocess.run(
        [*launcher, *map(str, words), str(shared)], env=environment, stdout=subprocess.PIPE, check=True
    ).stdout
    assert len(list((shared / "voc21").rglob("part-*.npz"))) > 2, "both did a share of both heads"
    one, two = (json.loads((folder / "voc21.json").read_text()) for folder in (alone, shared))
    assert json.loads(printed) == two, "printed once"
    for results in (one, two, one["baselines"]["sclip"], two["baselines"]["sclip"]):
        del results["provenance"]["seconds"]
    assert one == two


def test_an_image_of_the_sweep_without_memory_is_named_and_the_other_heads_are_scored(
    small, model, data, tmp_path, monkeypatch
):
    from magicseg.evaluate.heads.segmenter_head import SegmenterHead

    seen = []

    def choke(self, crops):
        seen.append(1)
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(SegmenterHead, "logits", choke)
    words = ("evaluate", model, "--benchmark", small["voc21"], "--data", data, "--baseline", "maskclip")
    error, _, _ = run(*words, "--limit", 2, "--out", tmp_path)
    assert error.exit_code == 1
    assert "36 x 24 pixels with 20 labels do not fit into memory (model: CUDA out of memory.)" in error.message
    assert "VOC2012" in error.message
    assert seen == [1], "the threshold cannot be chosen without an image: no image of the test is tried"
    assert list((tmp_path / "voc21" / "maskclip").rglob("results.json"))
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.slow
def test_the_last_process_joins_whichever_heads_the_others_finish_late(small, model, data, tmp_path):
    settings = EvaluateSettings(benchmarks=(small["voc21"],), data=str(data), baselines=("maskclip",), sweep_images=0)
    target = Target.of(model, out=tmp_path)
    first, other = (Suite.of(target, settings) for _ in range(2))
    pending = [lambda: list(other.evaluate(part=(1, 2)))]

    def stop():
        """The other process does its share between the first's two heads."""
        if pending and (tmp_path / "voc21" / "model" / "part-00000.npz").exists():
            pending.pop()()
        return False

    (results,) = first.evaluate(part=(0, 2), stop=stop)
    assert not pending
    assert results["images"] == 20
    assert list(results["baselines"]) == ["maskclip"]
    assert json.loads((tmp_path / "voc21.json").read_text()) == results


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--benchmark", "voc21"], "where are its data"),
        (["--benchmark", "voc12"], "did you mean"),
        ([], "name a benchmark"),
        (["--benchmark", "miniature"], "this is a model"),
        (["--benchmark", "voc21", "--data", "nowhere"], "there is no such folder"),
        (["--benchmark", "cityscapes", "--data", "."], "leftImg8bit"),
        (["--benchmark", "ade20k", "--data", "DATA", "--baseline", "memory-bank"], "a model by itself"),
        (["--benchmark", "ade20k", "--data", "DATA", "--baseline", "magic"], "--baseline"),
        (["--benchmark", "voc21", "--data", "DATA", "--background", "sky"], "--background"),
        (["--benchmark", "voc20", "--data", "DATA", "--background", "prompts", "--limit", "0"], None),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_a_model_is_loaded(
    words, told, model, data, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    if told != "a model by itself":
        monkeypatch.setattr("magicseg.evaluate.heads.baselines.load_segmenter", lambda *_: pytest.fail("loaded"))
    error, _, _ = run("evaluate", model, *(str(data) if word == "DATA" else word for word in words))
    if told is None:
        assert error == 2
    else:
        assert told in f"{error.message} {error.hint}"


@pytest.mark.slow
def test_results_stand_side_by_side_and_what_differs_is_said(small, model, data, tmp_path):
    for name, more in (("a", ()), ("b", ("--background", "prompts"))):
        asked = ("--benchmark", small["voc21"], "--data", data, *more)
        run("evaluate", model, *asked, "--out", tmp_path / name / "results")
    code, printed, told = run("compare", tmp_path / "a", tmp_path / "b", "--json")
    assert code == 0
    (row,) = json.loads(printed)
    assert (row["benchmark"], row["head"], len(row["cells"])) == ("voc21 (part)", "model", 2)
    assert row["notes"] == ["of different protocols"]
    code, table, told = run("compare", tmp_path / "a", tmp_path / "b")
    miou = json.loads((tmp_path / "a" / "results" / "voc21.json").read_text())["miou"]
    assert f"{miou:.4f} [" in " ".join(table.split())
    assert "voc21 (part), model: of different protocols" in told
    error, _, _ = run("compare", tmp_path / "nothing")
    assert "holds no results" in error.message


@pytest.mark.slow
def test_the_difference_over_the_same_images_has_a_paired_interval(small, model, data, tmp_path):
    for name in ("a", "b"):
        asked = ("--benchmark", small["voc21"], "--data", data, "--baseline", "maskclip")
        run("evaluate", model, *asked, "--out", tmp_path / name / "results")
    # As if the second model were the baseline: other scores of the same images.
    path = tmp_path / "b" / "results" / "voc21.json"
    results = json.loads(path.read_text())
    results = {**results["baselines"]["maskclip"], "head": "model", "baselines": {}}
    path.write_text(json.dumps(results))
    shutil.rmtree(path.parent / "voc21" / "model")
    (path.parent / "voc21" / "maskclip").rename(path.parent / "voc21" / "model")
    first = json.loads((tmp_path / "a" / "results" / "voc21.json").read_text())
    row = next(row for row in compare([tmp_path / "a", tmp_path / "b"]) if row.head == "model")
    assert row.differences[0] is None
    assert row.differences[1]["value"] == pytest.approx(results["miou"] - first["miou"])
    low, high = row.differences[1]["interval"]
    assert low <= row.differences[1]["value"] <= high
    (path.parent / "voc21" / "model" / "part-00001.npz").unlink()
    row = next(row for row in compare([tmp_path / "a", tmp_path / "b"]) if row.head == "model")
    assert row.differences == (None, None)


def test_results_of_several_limits_are_rows_of_their_own(tmp_path):
    for limit in (2, 5):
        results = {"benchmark": "voc21", "head": "model", "images": limit, "limited": True, "complete": False}
        path = tmp_path / "results" / f"voc21-limit-{limit}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({**results, "miou": limit / 10, "provenance": {}}))
    rows = compare([tmp_path])
    assert {row.benchmark: row.cells[0]["miou"] for row in rows} == {"voc21 (2 images)": 0.2, "voc21 (5 images)": 0.5}
