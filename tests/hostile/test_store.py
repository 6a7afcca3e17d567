"""Stores whose files were changed or forged, and repairs beside work: nothing is believed, and nothing is lost."""

import contextlib
import os
import time

import pytest
from tiny_runs import do

from magicseg.errors import DamageError, DataError, RunError
from magicseg.run import Run
from magicseg.run.claims import try_claim
from magicseg.store.digest import logical_digest
from magicseg.store.hdf5 import export_hdf5
from magicseg.store.verify import inspect, repair

pytestmark = pytest.mark.usefixtures("bounded")


def test_a_repair_takes_nothing_away_that_was_committed_after_the_look(finished, expected_digest):
    """What inspect saw as a leftover of an open shard is committed by others before repair acts."""
    record = finished.ledger("mask").committed(2)
    finished.ledger("mask").take_back({2})
    findings = inspect(finished)
    assert {str(path.relative_to(finished.store.path)) for path in findings.leftovers} == set(record.files)
    do(finished, "mask")
    repair(finished, findings)
    assert inspect(finished).sound
    assert logical_digest(finished) == expected_digest


def test_a_repair_takes_no_commit_back_that_was_made_sound_after_the_look(finished, expected_digest):
    file = finished.store.path / "mask/mask/2.0.0"
    file.write_bytes(b"damaged")
    findings = inspect(finished)
    assert findings.shards == {"mask": {2}}
    finished.ledger("mask").take_back({2})
    do(finished, "mask")
    assert repair(finished, findings) == []
    assert logical_digest(finished) == expected_digest


@pytest.mark.parametrize("stage", ["describe", "generate", "mask"])
def test_a_repair_beside_live_work_is_refused(finished, fault_of, stage):
    (finished.store.path / "mask/mask/2.0.0").write_bytes(b"damaged")
    with try_claim(finished.ledger(stage).claim_path(4)):
        for command in ("repair", "reset"):
            error = fault_of(command, *(["mask", finished.path, "--yes"] if command == "reset" else [finished.path]))
            if command == "reset" and stage != "mask":
                continue
            assert isinstance(error, RunError)
            assert f"shard 4 of {stage} is being worked on: process {os.getpid()} on " in error.message
            assert f"magicseg {command}" in error.hint
    assert fault_of("repair", finished.path) is None


def test_a_worker_that_begins_in_the_middle_of_a_repair_is_left_alone(finished, monkeypatch):
    finished.ledger("mask").take_back({2})
    findings = inspect(finished)
    claim = try_claim(finished.ledger("mask").claim_path(2))
    monkeypatch.setattr(Run, "refuse_live_claims", lambda *_: None)  # it began just after
    with claim, pytest.raises(RunError, match="being worked on"):
        repair(finished, findings)
    assert (finished.store.path / "mask/mask/2.0.0").exists()


def test_repairs_beside_a_run_leave_a_sound_data_set(magicseg, fresh, expected_digest):
    do(fresh, "describe", "generate")
    worker = magicseg.start("mask", fresh.path, "--workers", 1)
    looks = 0
    while worker.poll() is None:
        findings = inspect(Run.open(fresh.path))
        with contextlib.suppress(RunError):  # beside live claims
            repair(Run.open(fresh.path), findings)
        looks += 1
        time.sleep(0.01)
    magicseg.finish(worker)
    assert looks
    do(fresh, "mask")  # a shard whose claim a repair held was left to others
    assert inspect(fresh).sound
    assert logical_digest(fresh) == expected_digest


@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "empty", "nulls"])
@pytest.mark.parametrize("name", ["mask/mask/2.0.0", "describe/captions/2.0", "generate/quality/2"])
def test_verify_finds_something_odd_in_the_place_of_a_shard(finished, put, name, kind):
    put(finished.store.path / name, kind)
    findings = inspect(finished)
    assert findings.shards == {name.split("/")[0]: {2}}
    assert any(name in fault for fault in findings.damage)


def test_a_shard_that_may_not_be_read_is_no_damage(finished, put):
    put(finished.store.path / "mask/mask/2.0.0", "denied")
    with pytest.raises(DamageError, match="Permission denied") as caught:
        inspect(finished)
    assert "permission" in caught.value.hint


@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "deep", "empty", "list", "number"])
def test_metadata_that_cannot_be_used_are_found(finished, put, kind):
    put(finished.store.path / "mask/mask/zarr.json", kind)
    assert inspect(finished).metadata == ["mask/mask/zarr.json"]


def test_an_export_follows_no_planted_link(finished, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    out = tmp_path / "data.h5"
    (tmp_path / "data.h5.partial").symlink_to(victim)
    export_hdf5(finished, out)
    assert victim.read_text() == "precious"
    assert not out.is_symlink()


@pytest.mark.parametrize("kind", ["dangling link", "link", "file", "folder"])
def test_an_export_replaces_nothing(finished, tmp_path, kind):
    out, victim = tmp_path / "data.h5", tmp_path / "victim"
    if kind == "link":
        victim.write_text("precious")
    if "link" in kind:
        out.symlink_to(victim)
    else:
        out.mkdir() if kind == "folder" else out.write_text("precious")
    with pytest.raises(DataError, match="exists"):
        export_hdf5(finished, out)
    assert victim.exists() == (kind == "link")


@pytest.mark.parametrize("name", [os.fsdecode(b"\xff\xfe.h5"), "a b'c.h5", "-x.h5", "é" * 100 + ".h5"])
def test_an_export_to_an_odd_name_is_imported_again(finished, fault_of, tmp_path, name, expected_digest):
    out = tmp_path / name
    assert fault_of("export", finished.path, "--out", out) is None
    assert fault_of("import", out, "--into", tmp_path / "again") is None
    assert logical_digest(Run.open(tmp_path / "again")) == expected_digest


def test_an_export_to_a_name_that_is_too_long_says_so(finished, fault_of, tmp_path):
    error = fault_of("export", finished.path, "--out", tmp_path / ("x" * 300))
    assert "File name too long" in error.message
    assert "shorter names" in error.hint


def test_a_caption_that_hdf5_cannot_hold_is_named(finished, tmp_path):
    captions = finished.store.read("describe/captions", 32, 48).copy()
    captions[5, 1] = "a photo\0of a cat"
    finished.store.array("describe/captions")[32:48] = captions
    with pytest.raises(DataError, match=r"a caption of sample 37 holds U\+0000") as caught:
        export_hdf5(finished, tmp_path / "out.h5")
    assert "magicseg reset describe" in caught.value.hint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy0"]
