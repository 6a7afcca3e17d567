"""Prediction on pictures of one's own: which pictures are meant, and what is left of them."""

import hashlib
import json

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from helpers.tiny_models import tiny_settings
from magicseg.cli import app
from magicseg.core.errors import DataError, MagicsegError
from magicseg.evaluate.predict_images import find_images
from magicseg.model.open_vocabulary import load_model
from magicseg.model.saved_model import save_segmenter
from magicseg.model.segmenter import build_segmenter
from magicseg.run.attempts import Attempts

SETTINGS = tiny_settings(prompt_tokens=0, image_size=16, stride=4)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_segmenter(build_segmenter(SETTINGS, seed=0), folder)
    return folder


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    for name, size in (("a.png", (24, 30)), ("below/b.jpg", (17, 41))):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(path)
    return tmp_path / "photos"


def run(*arguments, text=None):
    """The command's exit code, or the error that it ends with, and its standard output."""
    outcome = CliRunner().invoke(app, ["predict", *map(str, arguments)], input=text)
    error = outcome.exception
    return (error if isinstance(error, MagicsegError) else outcome.exit_code), outcome.stdout


def test_a_picture_gets_an_index_png_an_overlay_and_its_areas(photos, model, tmp_path):
    code, printed = run(
        photos, "--model", model, "--labels", "cat, dog", "--out", tmp_path / "out", "--threshold", "0.1", "--json"
    )
    assert code == 0
    entries = {entry["image"]: entry for entry in json.loads(printed)}
    assert entries.keys() == {"a.png", "below/b.jpg"}
    for name, entry in entries.items():
        values = np.asarray(Image.open(tmp_path / "out" / f"{name}.png"))
        assert values.shape == (entry["height"], entry["width"])
        counts = {label: int((values == place).sum()) for place, label in enumerate(("cat", "dog"), 1)}
        assert {label: area["pixels"] for label, area in entry["areas"].items()} == {
            label: count for label, count in counts.items() if count
        }
        assert sum(counts.values()) > 0
        for area in entry["areas"].values():
            assert area["share"] == pytest.approx(area["pixels"] / values.size, abs=1e-6)
            assert 0.1 <= area["mean_score"] <= 1
        assert Image.open(tmp_path / "out" / "overlays" / f"{name}.jpg").size == values.shape[::-1]


def test_the_label_map_is_that_of_the_loaded_model(photos, model, tmp_path):
    from magicseg import load_model

    picture = np.asarray(Image.open(photos / "a.png"))
    found = load_model(model).segment(picture, ["cat", "dog"], threshold=0.12, window=16)
    run(
        photos / "a.png", "--model", model, "--labels", "cat, dog", "--out", tmp_path / "o", "--window", 16,
        "--threshold", 0.12,
    )  # fmt: skip
    assert np.array_equal(np.asarray(Image.open(tmp_path / "o" / "a.png.png")), found.labels)


def test_synonyms_of_a_label_file_are_asked_for_too(photos, model, tmp_path):
    from magicseg import load_model

    names, asked = tmp_path / "names.txt", (photos / "a.png", "--model", model, "--threshold", 0.12)
    names.write_text("sofa, couch, settee\ndog\n")
    run(*asked, "--labels", names, "--out", tmp_path / "o")
    loaded = load_model(model)
    picture = np.asarray(Image.open(photos / "a.png"))
    found = loaded.segment(picture, [["sofa", "couch", "settee"], "dog"], threshold=0.12)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "o" / "a.png.png")), found.labels)
    assert not np.array_equal(found.scores, loaded.segment(picture, ["sofa", "dog"]).scores)


def test_nothing_scores_above_a_threshold_of_one(photos, model, tmp_path):
    run(photos, "--model", model, "--labels", "cat", "--out", tmp_path / "out", "--threshold", 1)
    assert not np.asarray(Image.open(tmp_path / "out" / "a.png.png")).any()


def test_what_is_done_is_not_done_again_and_other_settings_are_refused(photos, model, tmp_path):
    asked = (photos, "--model", model, "--labels", "cat", "--out", tmp_path / "out")
    run(*asked)
    before = (tmp_path / "out" / "a.png.png").stat().st_mtime_ns
    assert run(*asked)[0] == 0
    assert (tmp_path / "out" / "a.png.png").stat().st_mtime_ns == before
    error, _ = run(*asked, "--threshold", 0.3)
    assert "threshold is 0.3, was 0.5" in error.message


def test_a_damaged_picture_is_told_and_does_not_end_the_others(photos, model, tmp_path):
    (photos / "broken.jpg").write_bytes((photos / "below" / "b.jpg").read_bytes()[:300])
    error, _ = run(photos, "--model", model, "--labels", "cat", "--out", tmp_path / "out")
    assert "1 images failed, such as broken.jpg" in error.message
    assert (tmp_path / "out" / "below" / "b.jpg.png").exists()


def test_pictures_come_from_folders_files_patterns_and_standard_input(photos, model, tmp_path):
    out = tmp_path / "out"
    named = {name: path.relative_to(photos).as_posix() for name, path in find_images([str(photos)], out).items()}
    assert named == {"a.png": "a.png", "below/b.jpg": "below/b.jpg"}
    assert find_images([f"{photos}/**/*.jpg"], out).keys() == {"b.jpg"}
    lines = [f"{photos}/a.png\n", "\n", f"{photos}/below\n"]
    assert find_images(["-"], out, lines=lines).keys() == {"a.png", "b.jpg"}
    code, _ = run("-", "--model", model, "--labels", "cat", "--out", out, text="".join(lines))
    assert code == 0
    assert (out / "b.jpg.png").exists()


@pytest.mark.parametrize(
    ("paths", "told"),
    [
        (["nowhere.png"], "there is no such image"),
        (["-"], "standard input names no images"),
        (["photos/a.png", "other/a.png"], "would have the same name"),
        (["empty"], "holds no images"),
    ],
)
def test_pictures_that_cannot_be_meant_are_refused(paths, told, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.png").write_bytes((photos / "a.png").read_bytes())
    with pytest.raises(DataError, match=told):
        find_images(paths, tmp_path / "out")


def test_without_a_trained_model_the_error_says_so(photos, tmp_path):
    error, _ = run(photos, "--model", tmp_path, "--labels", "cat", "--out", tmp_path / "out")
    assert "holds no trained model" in error.message


def test_a_gpu_is_used_where_there_is_one(photos, model, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    asked = []

    def loaded(path, *, device):
        asked.append(device)
        return load_model(path)

    monkeypatch.setattr("magicseg.model.open_vocabulary.load_model", loaded)
    code, _ = run(photos / "a.png", "--model", model, "--labels", "cat", "--out", tmp_path / "out")
    assert code == 0
    assert asked == ["cuda:0"]


@pytest.mark.parametrize(
    ("error", "window", "told"),
    [
        (MemoryError(), (), "--window 512"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
            (),
            "can't alloc",
        ),
        (torch.OutOfMemoryError("CUDA out of memory."), ("--window", 8), "a smaller --window"),
    ],
)
def test_an_image_without_memory_is_told_with_its_size_and_does_not_end_the_others(
    error, window, told, photos, model, tmp_path, monkeypatch
):
    from magicseg.model.open_vocabulary import OpenVocabularyModel

    honest = OpenVocabularyModel.segment

    def segment(self, image, *arguments, **options):
        if image.shape[0] == 24:
            raise error
        return honest(self, image, *arguments, **options)

    monkeypatch.setattr(OpenVocabularyModel, "segment", segment)
    raised, _ = run(photos, "--model", model, "--labels", "cat, dog", "--out", tmp_path / "out", *window)
    assert (raised.exit_code, "1 images failed, such as a.png" in raised.message) == (1, True)
    assert (tmp_path / "out" / "below" / "b.jpg.png").exists()
    _, *lines = map(json.loads, (tmp_path / "out" / "predictions.jsonl").read_text().splitlines())
    (entry,) = [line for line in lines if line["status"] == "failed"]
    assert entry["reason"] == "out-of-memory"
    assert "30 x 24 pixels with 2 labels do not fit into memory" in entry["detail"]
    assert told in entry["detail"]


def test_an_image_that_killed_an_earlier_process_is_told_with_the_way_to_try_it_again(photos, model, tmp_path):
    out = tmp_path / "my out"
    with Attempts(out) as attempts, attempts.on("a.png", hashlib.sha256((photos / "a.png").read_bytes()).hexdigest()):
        (path,) = (out / "attempts").iterdir()
        left = json.loads(path.read_bytes()) | {"started": 1.0}  # a process of this number that is gone
    path.parent.mkdir()
    path.write_text(json.dumps(left))
    asked = (photos, "--model", model, "--labels", "cat", "--out", out)
    error, _ = run(*asked)
    assert error.exit_code == 1
    assert "1 images failed, such as a.png" in error.message
    assert f"rm -r '{out}/attempts'" in error.hint
    assert (out / "below" / "b.jpg.png").exists()
    path.unlink()
    assert run(*asked)[0] == 0


def test_what_is_recorded_of_an_image_is_what_all_its_scores_say(photos, model, tmp_path):
    run(photos, "--model", model, "--labels", "cat, dog", "--out", tmp_path / "out", "--threshold", 0.1)
    _, *lines = map(json.loads, (tmp_path / "out" / "predictions.jsonl").read_text().splitlines())
    (entry,) = [line for line in lines if line["image"] == "a.png"]
    found = load_model(model).segment(np.asarray(Image.open(photos / "a.png")), ["cat", "dog"], threshold=0.1)
    assert np.array_equal(found.best, found.scores.max(axis=0))
    for place, name in enumerate(["cat", "dog"]):
        where = found.labels == place + 1
        told = entry["areas"].get(name, {"pixels": 0})
        assert told["pixels"] == where.sum()
        if where.any():
            assert told["mean_score"] == round(float(found.scores[place][where].mean()), 4)
