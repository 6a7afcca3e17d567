"""``magicseg fetch`` with a fake local hub: complete, repeated and interrupted downloads, and errors."""

import json
import os
import shlex

import httpx2
import pytest
from huggingface_hub import errors

from helpers.small_hub import COMMIT, LARGE, NAME, SmallHub, sha256
from helpers.tiny_runs import CommandLine, make_run
from magicseg.core.errors import IncompleteError, StoreError
from magicseg.weights import Weights
from magicseg.weights.hub import hub_errors

SETTING = f"describe.options.model: {NAME} at {COMMIT}"


@pytest.fixture
def hub():
    with SmallHub() as hub:
        yield hub


@pytest.fixture
def run(tmp_path):
    return make_run(
        tmp_path / "run",
        "describe.backend=transformers",
        f"describe.options={{model: {NAME}, revision: '{COMMIT}', device: cpu, dtype: float32}}",
    )


@pytest.fixture
def online(magicseg, hub, tmp_path):
    """Return a function that gives a command line with a hub and an empty cache: ``online(HF_TOKEN="...")``."""

    def make(**more):
        kept = {key: value for key, value in magicseg.environment.items() if not key.startswith("HF_")}
        ours = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1"}
        return CommandLine(magicseg.folder, {**kept, **ours, **more})

    return make


def manifest(run):
    return json.loads((run.path / "weights.json").read_bytes())


def test_required_files_are_fetched_verified_and_recorded_once(hub, run, online):
    done = online()("fetch", run.path)
    assert done.code == 0, done.err
    assert "verified" in done.err
    entry = manifest(run)["names"][f"{NAME}@{COMMIT}"]
    wanted = ["config.json", LARGE]
    assert entry["files"] == {
        name: {"sha256": sha256(hub.files[name]), "size": len(hub.files[name])} for name in wanted
    }
    assert entry["others"] == ["README.md", "pytorch_model.bin"]
    assert not [path for _, path, _ in hub.requests if path.endswith(("README.md", ".bin"))]
    before = (run.path / "weights.json").read_bytes()
    hub.requests.clear()
    again = online()("fetch", run.path)
    assert again.code == 0
    assert "nothing to do" in again.err
    verified = online()("fetch", run.path, "--verify")
    assert "verified" in verified.err
    assert hub.requests == [], "no network is needed for either"
    assert (run.path / "weights.json").read_bytes() == before


def test_an_interrupted_download_is_resumed_at_its_position(hub, run, online):
    hub.files[LARGE] = os.urandom(24 << 20)
    hub.breaks = 1
    done = online()("fetch", run.path)
    assert done.code == 0, done.err
    resumed = [asked for command, path, asked in hub.requests if command == "GET" and path.endswith(LARGE)]
    assert resumed[0] is None
    assert int(resumed[1].removeprefix("bytes=").split("-")[0]) > 0
    assert manifest(run)["names"][f"{NAME}@{COMMIT}"]["files"][LARGE]["sha256"] == sha256(hub.files[LARGE])


@pytest.mark.parametrize("name", [LARGE, "config.json"])
def test_files_that_differ_from_the_hubs_digest_are_refused_until_deleted(hub, run, online, name):
    content = bytearray(hub.files[name])
    content[len(content) // 2] ^= 1
    hub.served[name] = bytes(content)
    for _ in range(2):
        done = online()("fetch", run.path)
        assert done.code == 1
        assert "their digests differ" in done.err
        assert not (run.path / "weights.json").exists()
    hub.served.clear()
    remove, again = done.err.split("hint:")[1].strip().split(" && ")
    command, force, file = shlex.split(remove)
    assert (command, force) == ("rm", "-f")
    os.unlink(file)
    assert online().typed(again).code == 0


@pytest.mark.parametrize(
    ("trouble", "words", "hint"),
    [
        ({"refusal": (404, "RepoNotFound")}, "knows no such model", "check the name"),
        ({"refusal": (401, "RepoNotFound")}, "knows no such model", "HF_TOKEN"),
        ({"refusal": (401, None)}, "refuses (HTTP 401)", "HF_TOKEN"),
        ({"refusal": (404, "RevisionNotFound")}, "no such commit", "40 digits"),
        ({"refusal": (403, None)}, "refuses (HTTP 403)", "HF_TOKEN"),
        ({"gated": True}, "is gated", "accept the licence"),
    ],
)
def test_a_refusal_of_the_hub_is_an_error_with_a_hint(hub, run, online, trouble, words, hint):
    for key, value in trouble.items():
        setattr(hub, key, value)
    done = online()("fetch", run.path)
    assert done.code == 2
    assert f"{SETTING}" in done.err
    assert words in done.err
    assert hint in done.err.split("hint:")[1]
    assert "http://" not in done.err
    assert not (run.path / "weights.json").exists()


def test_a_token_gives_access_and_is_never_printed_or_stored(hub, run, online, tmp_path):
    hub.token = "hf_secret"
    refused = online(HF_TOKEN="hf_wrong")("fetch", run.path)
    assert refused.code == 2
    done = online(HF_TOKEN="hf_secret")("fetch", run.path)
    assert done.code == 0, done.err
    for result in (refused, done):
        assert "hf_secret" not in result.out + result.err
        assert "hf_wrong" not in result.out + result.err
    for path in run.path.rglob("*"):
        assert not path.is_file() or b"hf_secret" not in path.read_bytes()


def test_a_missing_required_file_is_named(hub, run, online, tmp_path):
    other = make_run(
        tmp_path / "other",
        "describe.backend=transformers",
        f"describe.options={{model: {NAME}, revision: '{COMMIT}', gguf_file: small.gguf}}",
    )
    done = online()("fetch", other.path)
    assert done.code == 2
    assert "has no file 'small.gguf'" in done.err
    assert "config.json" in done.err.split("hint:")[1]


def test_offline_another_run_can_use_cached_weights(hub, run, online, tmp_path):
    assert online()("fetch", run.path).code == 0
    other = make_run(tmp_path / "other", *_overrides(run))
    offline = online(HF_HUB_OFFLINE="1")
    hub.requests.clear()
    done = offline("fetch", other.path)
    assert done.code == 0, done.err
    assert manifest(other) == manifest(run)
    storage = tmp_path / "hf" / "hub" / f"models--{NAME.replace('/', '--')}"
    (storage / "trees" / f"{COMMIT}.json").unlink()
    third = make_run(tmp_path / "third", *_overrides(run))
    done = offline("fetch", third.path)
    assert done.code == 0, done.err
    assert "is not known without the network" in done.err
    assert (
        manifest(third)["names"][f"{NAME}@{COMMIT}"]["files"] == manifest(run)["names"][f"{NAME}@{COMMIT}"]["files"]
    )
    file = storage / "snapshots" / COMMIT / LARGE
    content = bytearray(file.read_bytes())
    content[1000] ^= 1
    file.resolve().write_bytes(content)
    done = offline("fetch", third.path, "--verify")
    assert done.code == 1
    assert "their digests differ" in done.err
    assert hub.requests == []


def test_offline_missing_weights_are_named(hub, run, online, tmp_path):
    offline = online(HF_HUB_OFFLINE="1")
    done = offline("fetch", run.path)
    assert done.code == 1
    assert "HF_HUB_OFFLINE is set" in done.err
    assert f"HF_HOME is {tmp_path / 'hf'}" in done.err
    assert online()("fetch", run.path).code == 0
    (tmp_path / "hf" / "hub" / f"models--{NAME.replace('/', '--')}" / "snapshots" / COMMIT / LARGE).unlink()
    done = offline("fetch", run.path)
    assert done.code == 1
    assert f"{LARGE} is not in this machine's cache" in done.err
    assert online()("fetch", run.path).code == 0, "with a network it is fetched again"


def test_weights_that_differ_from_the_manifest_are_an_error(run, online):
    assert online()("fetch", run.path).code == 0
    data = manifest(run)
    data["names"][f"{NAME}@{COMMIT}"]["files"][LARGE]["sha256"] = "0" * 64
    (run.path / "weights.json").write_text(json.dumps(data))
    done = online()("fetch", run.path, "--verify")
    assert done.code == 1
    assert f"{LARGE} is not what was fetched for this run before" in done.err
    assert str(run.path / "weights.json") in done.err.split("hint:")[1]


def test_a_disk_that_is_too_small_is_an_error_before_the_download(hub, run, online, small_disk):
    hub.files[LARGE] = bytes(6 << 20)
    done = online(HF_HOME=str(small_disk))("fetch", run.path)
    assert done.code == 1
    assert "MB more" in done.err
    assert "set HF_HOME" in done.err
    assert not [path for _, path, _ in hub.requests if path.endswith(LARGE)]


def test_weights_given_by_path_are_recorded_in_the_manifest(tmp_path, online):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "config.json").write_text("{}")
    run = make_run(
        tmp_path / "run", "describe.backend=transformers", f"describe.options={{model: {tmp_path / 'weights'}}}"
    )
    assert online()("fetch", run.path).code == 0
    assert manifest(run)["paths"][str(tmp_path / "weights")].startswith("sha256:")


def test_a_run_without_weights_has_nothing_to_fetch(fresh, magicseg):
    done = magicseg("fetch", fresh.path)
    assert done.code == 0
    assert "needs no weights" in done.err


def test_a_damaged_manifest_is_an_error_message_not_a_traceback(run, online):
    (run.path / "weights.json").write_text('{"names": 3}')
    for command in ("fetch", "describe"):
        done = online()(command, run.path)
        assert done.code == 2
        assert "weights.json: cannot be used" in done.err


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (httpx2.ConnectError("https://there/?Signature=secret"), IncompleteError, "cannot be reached"),
        (errors.OfflineModeIsEnabled("secret"), IncompleteError, "cannot be reached"),
        (OSError(28, "No space left on device"), StoreError, "is full"),
        (PermissionError(13, "Permission denied", "/cache/file"), StoreError, "/cache/file cannot be written"),
        (RuntimeError("secret"), IncompleteError, "cannot be fetched: RuntimeError"),
    ],
)
def test_other_errors_of_the_hub_library_give_one_short_message(error, kind, words, tmp_path):
    weights = Weights(setting="model", model=NAME, revision=COMMIT)

    def ask():
        with hub_errors(weights, "stage.options.model", tmp_path):
            try:
                raise error
            except type(error) as cause:
                raise errors.LocalEntryNotFoundError("secret") from cause

    with pytest.raises(kind) as caught:
        ask()
    words = words.replace("RuntimeError", "LocalEntryNotFoundError")
    assert words in caught.value.message
    assert f"magicseg fetch {tmp_path}" in caught.value.hint
    assert "secret" not in caught.value.message + caught.value.hint


def _overrides(run):
    options = run.config.describe.options
    text = ", ".join(f"{key}: '{options[key]}'" for key in ("model", "revision", "device", "dtype"))
    return "describe.backend=transformers", f"describe.options={{{text}}}"
