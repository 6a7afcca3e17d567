"""Identity of weights: names, selected files, and digests of whole files at any path."""

import os
import sys

import pytest
from pydantic import ValidationError

from magicseg.core.errors import BackendError
from magicseg.weights import PinnedSettings, Weights, hashing
from magicseg.weights.cache import location
from magicseg.weights.hashing import path_identity

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def identified(model_path, **more):
    return path_identity(Weights(setting="model", model=str(model_path), **more), "stage.options.model")


@pytest.fixture
def folder(tmp_path):
    """Create a folder with weights, with files that are read with them, and with other files."""
    folder = tmp_path / "weights"
    (folder / "onnx").mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "pytorch_model.bin", "README.md", "onnx/model.json"):
        (folder / name).write_text(name)
    return folder


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"model": "owner/name"}, "needs a revision"),
        ({"model": "name"}, "needs a revision"),
        ({"model": "owner/name", "revision": "main"}, "40 hexadecimal digits"),
        ({"model": "owner/name", "revision": 7}, "40 hexadecimal digits"),
        ({"model": "/nowhere", "revision": COMMIT}, "model is a path"),
        ({"model": "../nowhere", "revision": COMMIT}, "model is a path"),
        ({"model": "what is this?", "revision": COMMIT}, "neither a path nor a name"),
        ({"model": " "}, "neither a path nor a name"),
        ({"model": ""}, "neither a path nor a name"),
        ({"model": 3}, "string"),
    ],
)
def test_references_to_mutable_weights_are_refused(values, words):
    with pytest.raises(ValidationError, match=words):
        PinnedSettings.model_validate(values)


def test_a_path_becomes_absolute_and_a_pinned_name_stays_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "model").mkdir(parents=True)
    (tmp_path / "model.pth").write_text("x")
    for path in ("org/model", "model.pth", "./later"):
        assert PinnedSettings(model=path).model == str(tmp_path / path)
    assert PinnedSettings(model="org/model", revision=COMMIT).model == "org/model"


def test_the_identity_covers_the_selected_files_at_any_path(folder, tmp_path):
    before = identified(folder)
    assert before.startswith("sha256:")
    for name in ("README.md", "onnx/model.json", "pytorch_model.bin"):
        (folder / name).write_text("changed")
    moved = folder.rename(tmp_path / "elsewhere")
    assert identified(moved) == before
    (moved / "config.json").write_text("changed")
    assert identified(moved) != before


def test_pickled_weights_are_used_only_without_safetensors(folder):
    (folder / "model.safetensors").unlink()
    before = identified(folder)
    (folder / "pytorch_model.bin").write_text("changed")
    assert identified(folder) != before


def test_one_file_is_identified_by_its_content(tmp_path):
    for name in ("one.pth", "other.gguf"):
        (tmp_path / name).write_bytes(b"the same")
    assert identified(tmp_path / "one.pth") == identified(tmp_path / "other.gguf")
    (tmp_path / "other.gguf").write_bytes(b"not same")
    assert identified(tmp_path / "one.pth") != identified(tmp_path / "other.gguf")


def test_a_flipped_byte_in_the_middle_of_a_large_file_is_detected(folder):
    file = folder / "model.safetensors"
    with file.open("wb") as sparse:
        sparse.truncate(50 * 2**20)
    before = identified(folder)
    with file.open("r+b") as sparse:
        sparse.seek(25 * 2**20 + 12345)
        sparse.write(b"\1")
    assert identified(folder) != before


def test_a_pattern_stops_at_a_slash_and_variants_exclude_each_other(tmp_path):
    names = [
        "model.safetensors",
        "unet/model.safetensors",
        "unet/model.fp16-00001-of-00002.safetensors",
        "vae/model.fp16.safetensors",
        "vae/deep/model.safetensors",
    ]
    weights = {"setting": "model", "model": "a/b", "revision": COMMIT}
    assert Weights(**weights).chosen(names) == ["model.safetensors"]
    both = Weights(**weights, files=("*/*.safetensors",))
    assert both.chosen(names) == ["unet/model.safetensors", "vae/model.fp16.safetensors"]
    half = Weights(**weights, files=("*/*.safetensors",), variant="fp16")
    assert half.chosen(names) == ["unet/model.fp16-00001-of-00002.safetensors", "vae/model.fp16.safetensors"]


@pytest.mark.parametrize(
    ("model_path", "more", "words"),
    [
        ("nowhere", {}, "there is no such folder or file"),
        ("weights/onnx", {"files": ("*.gguf",)}, "holds no weights"),
        ("weights", {"files": ("small.gguf", "*.json")}, r"lacks 'small\.gguf'"),
    ],
)
def test_missing_weights_give_an_error_with_the_setting_and_a_hint(folder, tmp_path, model_path, more, words):
    with pytest.raises(BackendError, match=words) as caught:
        identified(tmp_path / model_path, **more)
    assert caught.value.message.startswith(f"stage.options.model: {tmp_path / model_path}")
    assert caught.value.hint


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_weights_file_is_an_error(folder):
    (folder / "config.json").chmod(0)
    with pytest.raises(BackendError, match=r"config\.json cannot be read"):
        identified(folder)


def test_files_are_hashed_once_and_again_when_they_change(folder, monkeypatch):
    hashed = []
    sha256 = hashing.file_sha256
    monkeypatch.setattr(hashing, "file_sha256", lambda path: hashed.append(path.name) or sha256(path))
    first = identified(folder)
    assert sorted(hashed) == ["config.json", "model.safetensors"]
    assert identified(folder) == first
    assert len(hashed) == 2, "the second time nothing is read"
    stamp = (folder / "config.json").stat().st_mtime_ns + 1
    os.utime(folder / "config.json", ns=(stamp, stamp))
    assert identified(folder) == first
    assert hashed[2:] == ["config.json"]


@pytest.mark.parametrize("damage", [b"", b"[]", b"\xff", b'{"config.json": 3}'])
def test_a_damaged_or_unwritable_digest_cache_only_costs_time(folder, damage, monkeypatch):
    first = identified(folder)
    hashing._memory(folder).write_bytes(damage)
    assert identified(folder) == first
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "config.json"))
    assert identified(folder) == first


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """Create shipped weights called ``small``."""
    (tmp_path / "shipped" / "small").mkdir(parents=True)
    (tmp_path / "shipped" / "small" / "model.safetensors").write_bytes(b"weights")
    monkeypatch.setattr(sys.modules["magicseg.weights.pinned"], "_shipped_folder", lambda: tmp_path / "shipped")
    return tmp_path / "shipped" / "small"


def test_shipped_weights_keep_their_name_and_identity_on_any_machine(shipped, folder):
    chosen = PinnedSettings(model="shipped:small")
    assert chosen.model == "shipped:small"  # not a path of this machine
    weights = Weights(setting="model", model=chosen.model)
    assert not weights.by_name
    assert location(weights) == shipped
    assert path_identity(weights, "model") == identified(shipped)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"model": "shipped:other"}, "shipped: shipped:small"),
        ({"model": "shipped:../small"}, "no weights called"),
        ({"model": "shipped:small", "revision": COMMIT}, "goes with a name on the hub"),
    ],
)
def test_a_shipped_name_without_shipped_weights_is_refused(shipped, values, words):
    with pytest.raises(ValidationError, match=words):
        PinnedSettings(**values)
