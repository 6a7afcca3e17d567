"""Untrusted records of weights: the manifest, cached digests, file lists of a hub."""

import json
import os
from types import SimpleNamespace

import pytest

from magicseg.core.errors import BackendError, RunError
from magicseg.weights import Weights, hashing, hub
from magicseg.weights.manifest import MANIFEST, Fetched, FetchedFile, Manifest

SHA = "0" * 64
GOOD = {"names": {"a/b@c": {"files": {"x.json": {"sha256": SHA, "size": 1}}, "others": ["y"]}}, "paths": {"/p": "d"}}


def with_file(name="x.json", **entries):
    file = {"sha256": SHA, "size": 1, **entries}
    return json.dumps({"names": {"a/b@c": {"files": {name: file}, "others": []}}, "paths": {}})


def a_pipe(path):
    os.mkfifo(path)


def a_folder(path):
    path.mkdir()


def a_device(path):
    path.symlink_to("/dev/zero")


DAMAGE = [
    "",
    "[]",
    "null",
    "{",
    "[" * 200_000,
    '{"names": ' * 200_000,
    '{"names": {}, "paths": {}, "names": 3}',
    '{"names": {}}',
    '{"names": [], "paths": {}}',
    '{"names": {"a": {"files": {}}}, "paths": {}}',
    '{"names": {}, "paths": {"/p": NaN}}',
    '{"names": {}, "paths": {"/p": ["d"]}}',
    "\ufeff{}",
    "\ud800",
    with_file(size=-1),
    with_file(size="1"),
    with_file(size=1.5),
    with_file(size=10**400),
    with_file(size=True),
    with_file(sha256="x"),
    with_file(sha256=None),
    with_file(sha256="\x1b[2J"),
    with_file("../../outside"),
    with_file("/etc/passwd"),
    with_file("a/../../b"),
    with_file("a\0b"),
    with_file(""),
    a_pipe,
    a_folder,
    a_device,
]


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: getattr(damage, "__name__", repr(damage)[:40]))
def test_an_invalid_manifest_is_an_error_that_names_it(tmp_path, damage):
    path = tmp_path / MANIFEST
    if callable(damage):
        damage(path)
    else:
        path.write_bytes(damage.encode("utf-8", "surrogatepass"))
    with pytest.raises(RunError) as refused:
        Manifest.read(tmp_path)
    assert str(path) in refused.value.message
    assert refused.value.message.isprintable()
    assert "magicseg fetch" in refused.value.hint


def test_a_valid_manifest_is_read_back_unchanged(tmp_path):
    (tmp_path / MANIFEST).write_text(json.dumps(GOOD))
    manifest = Manifest.read(tmp_path)
    assert manifest == Manifest({"a/b@c": Fetched({"x.json": FetchedFile(SHA, 1)}, ("y",))}, {"/p": "d"})
    assert manifest.to_dict() == GOOD


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{",
        "[" * 200_000,
        '{"config.json": 1}',
        '{"config.json": [[1], "x"]}',
        '{"config.json": [[1, 2], "x"]}',
    ],
    ids=lambda content: content[:30],
)
def test_invalid_cached_digests_are_recomputed(tmp_path, monkeypatch, content):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    weights = Weights(setting="model", model=str(folder))
    expected = hashing.path_identity(weights, "model")
    (memory,) = (tmp_path / "cache" / "magicseg" / "weights").iterdir()
    memory.write_text(content)
    assert hashing.path_identity(weights, "model") == expected


@pytest.mark.parametrize("name", ["../x.json", "/etc/passwd", "a/../../x", "x\x1b[2J.json", "x\u202e", "x\n"])
def test_a_hub_that_lists_files_outside_the_folder_is_refused(name):
    weights = Weights(setting="model", model="owner/name", revision="0" * 40)
    with pytest.raises(BackendError, match="lists a file called") as refused:
        hub._plainly_named(weights, {name: hub.HubFile(1, None)})
    assert refused.value.message.isprintable()


def test_a_hub_that_lists_files_without_end_is_refused(monkeypatch):
    import huggingface_hub

    def endless(*_, **__):
        while True:
            yield SimpleNamespace(path="x")

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_tree", endless)
    monkeypatch.setattr(hub, "_MOST_FILES", 1000)
    with pytest.raises(BackendError, match="more than 1000 files"):
        hub.listing(Weights(setting="model", model="owner/name", revision="0" * 40))
