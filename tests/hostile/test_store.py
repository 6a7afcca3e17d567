"""Changed or forged store files, and repairs during work: forged data is refused, and no data is lost."""

import contextlib
import json
import os
import struct
import time

import google_crc32c
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from numcodecs import Zstd

from helpers.tiny_runs import do
from magicseg.core.errors import DamageError, DataError, RunError
from magicseg.exchange.hdf5 import export_hdf5
from magicseg.run import Run
from magicseg.run.claims import try_claim
from magicseg.run.digest import logical_digest
from magicseg.run.verify import inspect, repair
from magicseg.store.sample_reader import SampleFiles
from magicseg.store.size_limits import zstd_size

pytestmark = pytest.mark.usefixtures("bounded")


def test_a_repair_keeps_shards_committed_after_its_inspection(finished, expected_digest):
    """Another process commits a shard after `inspect` classified its files as leftovers, before `repair` runs."""
    record = finished.ledger("mask").committed(2)
    finished.ledger("mask").take_back({2})
    findings = inspect(finished)
    assert {str(path.relative_to(finished.store.path)) for path in findings.leftovers} == set(record.files)
    do(finished, "mask")
    repair(finished, findings)
    assert inspect(finished).sound
    assert logical_digest(finished) == expected_digest


def test_a_repair_keeps_commits_that_were_repaired_after_its_inspection(finished, expected_digest):
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


def test_a_repair_does_not_disturb_a_worker_that_starts_meanwhile(finished, monkeypatch):
    finished.ledger("mask").take_back({2})
    findings = inspect(finished)
    claim = try_claim(finished.ledger("mask").claim_path(2))
    monkeypatch.setattr(Run, "refuse_live_claims", lambda *_: None)  # the worker starts just after the check
    with claim, pytest.raises(RunError, match="being worked on"):
        repair(finished, findings)
    assert (finished.store.path / "mask/mask/2.0.0").exists()


def test_repairs_during_a_run_leave_a_valid_data_set(magicseg, fresh, expected_digest):
    do(fresh, "describe", "generate")
    worker = magicseg.start("mask", fresh.path, "--workers", 1)
    looks = 0
    while worker.poll() is None:
        findings = inspect(Run.open(fresh.path))
        with contextlib.suppress(RunError):  # while claims are live
            repair(Run.open(fresh.path), findings)
        looks += 1
        time.sleep(0.01)
    magicseg.finish(worker)
    assert looks
    do(fresh, "mask")  # shards whose claim a repair held were skipped
    assert inspect(fresh).sound
    assert logical_digest(fresh) == expected_digest


@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "empty", "nulls"])
@pytest.mark.parametrize("name", ["mask/mask/2.0.0", "describe/captions/2.0", "generate/quality/2"])
def test_verify_finds_a_shard_file_replaced_by_something_else(finished, put, name, kind):
    put(finished.store.path / name, kind)
    findings = inspect(finished)
    assert findings.shards == {name.split("/")[0]: {2}}
    assert any(name in fault for fault in findings.damage)


def test_verify_stops_at_a_shard_without_read_permission(finished, put):
    put(finished.store.path / "mask/mask/2.0.0", "denied")
    with pytest.raises(DamageError, match="Permission denied") as caught:
        inspect(finished)
    assert "permission" in caught.value.hint


@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "deep", "empty", "list", "number"])
def test_verify_finds_unusable_metadata(finished, put, kind):
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
def test_an_export_with_an_unusual_file_name_can_be_imported(finished, fault_of, tmp_path, name, expected_digest):
    out = tmp_path / name
    assert fault_of("export", finished.path, "--out", out) is None
    assert fault_of("import", out, "--into", tmp_path / "again") is None
    assert logical_digest(Run.open(tmp_path / "again")) == expected_digest


def test_an_export_to_a_too_long_file_name_is_an_error(finished, fault_of, tmp_path):
    error = fault_of("export", finished.path, "--out", tmp_path / ("x" * 300))
    assert "File name too long" in error.message
    assert "shorter names" in error.hint


def test_a_caption_that_hdf5_cannot_store_is_named(finished, tmp_path):
    captions = finished.store.read("describe/captions", 32, 48).copy()
    captions[5, 1] = "a photo\0of a cat"
    finished.store.array("describe/captions")[32:48] = captions
    with pytest.raises(DataError, match=r"a caption of sample 37 holds U\+0000") as caught:
        export_hdf5(finished, tmp_path / "out.h5")
    assert "magicseg reset describe" in caught.value.hint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy0"]


def reader(run):
    return SampleFiles(run.store.path, shard_size=16, image_size=32)


@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "denied", "empty", "nulls"])
@pytest.mark.parametrize("name", ["mask/mask/2.0.0", "describe/captions/2.0", "generate/image/2.0.0.0"])
def test_a_shard_file_replaced_by_something_else_is_not_read(finished, put, name, kind):
    put(finished.store.path / name, kind)
    array = name.rpartition("/")[0]
    with pytest.raises(DamageError, match=array):
        finished.store.read(array, 32, 48)
    if array != "describe/captions":
        with pytest.raises(DamageError, match=array):
            reader(finished).mask(33) if array == "mask/mask" else reader(finished).image(array, 33)


def forge_index(path, part, offset, length):
    """Change the offset and the length of a chunk in the shard's index, with a valid checksum."""
    content = bytearray(path.read_bytes())
    start = len(content) - 4 - 16 * 16
    content[start + 16 * part : start + 16 * part + 16] = struct.pack("<QQ", offset, length)
    content[-4:] = google_crc32c.value(bytes(content[start:-4])).to_bytes(4, "little")
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("offset", "length"), [(0, 10**15), (10**15, 10), (0, 2**63), (2**63, 2**63), (5, 2**64 - 1)], ids=range(5)
)
def test_a_shard_index_beyond_the_end_of_the_file_is_damage(finished, offset, length):
    forge_index(finished.store.path / "mask/mask/2.0.0", 3, offset, length)
    with pytest.raises(DamageError):
        finished.store.read("mask/mask", 32, 48)
    with pytest.raises(DamageError):
        reader(finished).mask(35)


@pytest.mark.parametrize("size", [10**6, 10**15, 2**64 - 1, 0, None])
def test_a_frame_with_a_wrong_decompressed_size_is_not_decompressed(finished, monkeypatch, size):
    """The forged frame header declares ``size``; None: it does not declare a size."""
    path = finished.store.path / "mask/mask/2.0.0"
    content = path.read_bytes()
    header = b"\x28\xb5\x2f\xfd" + (b"\xe0" + struct.pack("<Q", size) if size is not None else b"\x00\x58")
    path.write_bytes(header + content)
    forge_index(path, 3, 0, len(header) + 40)
    expanded = []
    monkeypatch.setattr(zarr.codecs.ZstdCodec, "_decode_sync", lambda *_: expanded.append(1))
    with pytest.raises(DamageError, match=r"expand|state its content size"):
        finished.store.read("mask/mask", 35, 36)
    with pytest.raises(DamageError, match=r"expand|state its content size"):
        reader(finished).mask(35)
    assert not expanded


@given(st.binary(max_size=20_000), st.integers(1, 9))
def test_the_declared_frame_size_equals_the_decompressed_size(content, level):
    assert zstd_size(Zstd(level=level).encode(content)) == len(content)


@pytest.mark.parametrize(
    "frame", [b"", b"\x28\xb5\x2f\xfd", b"PK\x03\x04" + bytes(20), b"\x50\x2a\x4d\x18" + bytes(9)]
)
def test_bytes_that_are_not_a_frame_have_no_size(frame):
    with pytest.raises(ValueError, match="Zstandard"):
        zstd_size(frame)


METADATA = {
    "shape of terabytes": lambda data: data.update(shape=[96, 10**6, 10**6]),
    "fewer samples": lambda data: data.update(shape=[40, 32, 32]),
    "negative shape": lambda data: data.update(shape=[-96, 32, 32]),
    "shape as a text": lambda data: data.update(shape="96"),
    "no shape": lambda data: data.update(shape=[]),
    "chunks of terabytes": lambda data: data["chunk_grid"]["configuration"].update(chunk_shape=[10**9, 32, 32]),
    "chunk grid as a list": lambda data: data.update(chunk_grid=[]),
    "inner chunks of all": lambda data: data["codecs"][0]["configuration"].update(chunk_shape=[16, 32, 32]),
    "a foreign codec": lambda data: data["codecs"][0]["configuration"].update(codecs=[{"name": "numcodecs.pickle"}]),
    "codecs as a text": lambda data: data.update(codecs="zstd"),
    "no codecs": lambda data: data.update(codecs=[]),
}


@pytest.mark.parametrize("change", METADATA.values(), ids=list(METADATA))
def test_metadata_that_contradicts_the_settings_is_refused(finished, change):
    path = finished.store.path / "mask/mask/zarr.json"
    data = json.loads(path.read_bytes())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(DamageError, match=r"mask/mask/zarr\.json"):
        Run.open(finished.path).store.read("mask/mask", 32, 48)
