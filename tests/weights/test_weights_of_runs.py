"""The weights of a run: no stage starts without them, and fingerprints include them."""

import json
import os
import shutil
import subprocess
import sys
from typing import ClassVar

import pytest

from helpers.small_hub import COMMIT, NAME
from helpers.tiny_runs import change, do, make_run
from magicseg.core.errors import BackendError, PlanMismatch
from magicseg.core.settings import Settings
from magicseg.exchange.hdf5 import export_hdf5, import_hdf5
from magicseg.run import Run
from magicseg.run.digest import logical_digest
from magicseg.run.fetch_weights import fetch
from magicseg.stages.mask.pair_difference import PairDifferenceMasker
from magicseg.weights import Weights
from magicseg.weights.cache import location

WHERE = "mask.options.detector.options.model"


class Detecting:
    """A masker with weights in nested options, like a plug-in's; it queries their location."""

    class Options(Settings):
        """Options of a nested detector, which magicseg does not know."""

        NEUTRAL: ClassVar[frozenset[str]] = frozenset({"detector.patience"})
        detector: dict

    @classmethod
    def identity(cls, options):
        return {}

    @classmethod
    def weights(cls, options):
        chosen = options.detector["options"]
        return [Weights(setting="detector.options.model", model=chosen["model"], revision=chosen["revision"])]

    def __init__(self, settings, options):
        self.folder = location(self.weights(options)[0])
        self.honest = PairDifferenceMasker(settings, PairDifferenceMasker.Options())

    def mask(self, requests):
        assert (self.folder / "config.json").is_file()
        return self.honest.mask(requests)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Create a hub cache with one downloaded model, without a network."""
    folder = tmp_path / "hub"
    snapshot = folder / f"models--{NAME.replace('/', '--')}" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (snapshot / "model.safetensors").write_bytes(bytes(1000))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return folder


@pytest.fixture
def detecting(tmp_path, monkeypatch, faulty, cache):
    """Create a run with these weights. Its other stages need no weights."""
    monkeypatch.setattr("faulty_backends.FaultyMasker", Detecting)
    options = f"{{model: {NAME}, revision: '{COMMIT}', t: 1}}"
    detector = f"{{name: d, patience: 1, options: {options}}}"
    return make_run(tmp_path / "run", "mask.backend=faulty", f"mask.options={{detector: {detector}}}")


def test_a_stage_starts_only_after_its_weights_are_fetched_and_no_shard_becomes_stale(detecting):
    do(detecting, "describe", "generate")
    with pytest.raises(BackendError, match=f"{WHERE}: {NAME} at {COMMIT} is not fetched") as caught:
        do(detecting, "mask")
    assert caught.value.hint == f"magicseg fetch {detecting.path}"
    assert detecting.ledger("mask").commits() == {}
    fetch(detecting)
    run = Run.open(detecting.path)
    do(run)
    for stage in ("describe", "generate", "mask"):
        assert len(run.checked_commits(stage)) == run.plan.shards
    fetch(run, verify=True)
    assert len(Run.open(run.path).checked_commits("mask")) == run.plan.shards


def test_missing_weights_are_named_with_the_cache_of_this_machine(detecting, cache, tmp_path, monkeypatch):
    fetch(detecting)
    run = Run.open(detecting.path)
    elsewhere = shutil.copytree(cache, tmp_path / "elsewhere")
    run.refuse_unfetched("mask")
    file = location(Detecting.weights(Detecting.Options(**run.config.mask.options))[0]) / "model.safetensors"
    file.write_bytes(bytes(999))
    monkeypatch.setenv("HF_HOME", "/elsewhere")
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    with pytest.raises(BackendError, match=r"model\.safetensors is not whole in this machine's cache") as caught:
        run.refuse_unfetched("mask")
    assert "(HF_HOME is /elsewhere)" in caught.value.message
    assert "set HF_HOME" in caught.value.hint
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(elsewhere))
    run.refuse_unfetched("mask")


def test_the_fingerprint_covers_the_names_and_digests_of_weights_but_not_their_settings(detecting, cache):
    before = detecting.fingerprints["mask"].inputs
    key = "mask.weights.detector.options.model"
    assert before[key] == f"{NAME}@{COMMIT}"
    assert f"{key}.files" not in before
    chosen = {name: value for name, value in before.items() if name.startswith("mask.options.")}
    assert chosen == {"mask.options.detector.name": "d", "mask.options.detector.options.t": 1}
    fetch(detecting)
    after = Run.open(detecting.path).fingerprints["mask"].inputs
    digest = after[f"{key}.files"]
    assert {name: value for name, value in after.items() if name != f"{key}.files"} == before
    for file in cache.rglob("model.safetensors"):
        file.write_bytes(bytes(999) + b"x")
    (detecting.path / "weights.json").unlink()
    fetch(detecting)
    assert Run.open(detecting.path).fingerprints["mask"].inputs[f"{key}.files"] != digest


def test_weights_by_name_and_by_path_have_different_identities(detecting, tmp_path):
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    options = {"name": "d", "patience": 1, "options": {"model": str(folder), "revision": None, "t": 1}}
    change(detecting, "mask.options", {"detector": options})
    run = Run.open(detecting.path)
    assert run.fingerprints["mask"].inputs["mask.weights.detector.options.model"].startswith("sha256:")
    run.refuse_unfetched("mask")
    do(run)
    moved = folder.rename(tmp_path / "moved")
    change(run, "mask.options", {"detector": {**options, "options": {**options["options"], "model": str(moved)}}})
    assert len(Run.open(run.path).checked_commits("mask")) == run.plan.shards
    (moved / "config.json").write_text("[]")
    with pytest.raises(PlanMismatch, match=r"mask\.weights\.detector\.options\.model is sha256"):
        Run.open(run.path).checked_commits("mask")


def test_a_lost_manifest_is_fetched_again(detecting):
    fetch(detecting)
    do(Run.open(detecting.path))
    (detecting.path / "weights.json").unlink()
    with pytest.raises(PlanMismatch) as caught:
        Run.open(detecting.path).checked_commits("mask")
    assert f"magicseg fetch {detecting.path}" in caught.value.hint
    fetch(detecting)
    Run.open(detecting.path).checked_commits("mask")


def test_an_export_contains_the_manifest_of_weights(detecting, tmp_path):
    fetch(detecting)
    run = Run.open(detecting.path)
    do(run)
    export_hdf5(run, tmp_path / "data.h5")
    back = import_hdf5(tmp_path / "data.h5", tmp_path / "back")
    assert logical_digest(back) == logical_digest(run)
    assert (back.path / "weights.json").read_bytes() == (run.path / "weights.json").read_bytes()
    assert len(Run.open(back.path).checked_commits("mask")) == run.plan.shards


def test_a_stage_command_refuses_missing_weights_before_the_first_shard(magicseg, tmp_path):
    run = make_run(
        tmp_path / "run",
        "describe.backend=transformers",
        f"describe.options={{model: {NAME}, revision: '{COMMIT}', device: cpu, dtype: float32}}",
    )
    for command in (["describe", run.path], ["run", run.path]):
        done = magicseg(*command)
        assert done.code == 2
        assert f"describe.options.model: {NAME} at {COMMIT} is not fetched" in done.err
        assert f"magicseg fetch {run.path}" in done.err
    assert run.ledger("describe").claimed() == []


def test_fetching_imports_no_model_library(detecting):
    code = (
        "import sys\n"
        "from magicseg.cli import main\n"
        "sys.argv = ['magicseg', 'fetch', sys.argv[1]]\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "print('loaded', sorted({'torch', 'transformers', 'diffusers'} & set(sys.modules)))"
    )
    change(detecting, "mask", {"backend": "pair-difference", "batch_size": 16, "options": {}})
    change(
        detecting,
        "describe",
        {"backend": "transformers", "batch_size": 4, "options": {"model": NAME, "revision": COMMIT}},
    )
    environment = {**os.environ, "HF_HUB_CACHE": str(detecting.path.parent / "hub"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(detecting.path)], capture_output=True, text=True, env=environment
    )
    assert done.stdout.splitlines() == ["loaded []"], done.stderr
    assert json.loads((detecting.path / "weights.json").read_bytes())["names"]
