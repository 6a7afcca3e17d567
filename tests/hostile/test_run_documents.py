"""Damaged or forged documents of a run: every fault is an error that names the file."""

import hashlib
import json
import os
import time

import pytest

from magicseg.core.errors import DamageError
from magicseg.core.files import to_json
from magicseg.run import Run
from magicseg.run.claims import is_live, try_claim
from magicseg.run.progress import run_status
from magicseg.run.verify import inspect, repair

pytestmark = pytest.mark.usefixtures("bounded")

ODD = ("folder", "pipe", "device", "denied", "empty", "deep", "bytes", "list", "nulls", "number")
WARNED = ("train.jsonl", "model/model.json", "results/miniature.json")
DOCUMENTS = {
    "ledger/mask/commits/00000002.json": "refused",
    "ledger/mask/commits.jsonl": "refused",
    "plan/plan.json": "refused",
    "plan/classes.npy": "refused",
    "ledger/mask/failures/00000002.json": "no matter",  # the shard is committed, so the note is ignored
    "ledger/mask/claims/00000002.json": "no matter",
    **dict.fromkeys(WARNED, "warned"),
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("document", DOCUMENTS)
def test_status_names_a_document_that_cannot_be_used(finished, fault_of, put, capsys, document, kind):
    path = finished.path / document
    put(path, kind)
    error = fault_of("status", finished.path, "--json")
    if DOCUMENTS[document] == "refused" and not (document.endswith("commits.jsonl") and kind == "empty"):
        assert error is not None
        assert path.name in error.message or path.parent.name in error.message
        assert error.hint
        assert ("permission" in error.hint) == (kind == "denied")
        return
    assert error is None
    told = json.loads(capsys.readouterr().out)
    assert told["stages"]["mask"]["shards"]["committed"] == 6
    lines_only = document == "train.jsonl" and kind not in {"folder", "pipe", "device", "denied"}
    is_told = any(path.name in warning for warning in told["warnings"])
    assert is_told == (document in WARNED and not lines_only)


@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "denied", "deep", "list"])
@pytest.mark.parametrize("document", WARNED)
def test_the_report_is_written_and_warns_of_a_document_that_cannot_be_used(finished, fault_of, put, document, kind):
    path = finished.path / document
    put(path, kind)
    assert fault_of("report", finished.path) is None
    page = (finished.path / "report.html").read_text()
    assert (path.name in page) == (document != "train.jsonl" or kind not in {"deep", "list"})


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("document", ["estimate.json", "image.json"])
def test_submissions_and_estimates_refuse_an_unusable_document_by_name(finished, fault_of, put, document, kind):
    path = finished.path / document
    put(path, kind)
    error = (
        fault_of("estimate", finished.path) if document == "estimate.json" else fault_of("describe", finished.path)
    )
    if error is not None:
        assert document in error.message
        assert error.hint


@pytest.mark.parametrize("kind", ODD)
def test_an_unusable_failure_record_still_counts_as_a_failure(fresh, put, kind):
    path = fresh.ledger("describe").failure_path(3)
    put(path, kind)
    described = run_status(fresh)["stages"]["describe"]
    assert described["shards"]["failed"] == 1
    assert path.name in described["failures"]["3"]


@pytest.mark.parametrize("kind", ODD)
def test_an_unusable_claim_expires(fresh, put, kind):
    path = fresh.ledger("describe").claim_path(3)
    put(path, kind)
    os.utime(path, (0, 0), follow_symlinks=False)
    assert not is_live(path)
    assert run_status(fresh)["stages"]["describe"]["shards"]["running"] == 0


CLAIMS = [
    {"namespace": ["x"]}, {"pid": "1"}, {"pid": 10**40}, {"pid": -1, "started": 0.0}, {"started": None}, {"job": 5},
    {"restarts": "many"}, {"restarts": 1e300}, {"token": {}}, {"host": 7},
]  # fmt: skip


@pytest.mark.parametrize("change", CLAIMS, ids=lambda change: str(change)[:40])
def test_a_claim_with_wrong_types_is_treated_as_empty(tmp_path, change):
    path = tmp_path / "claim.json"
    with try_claim(path):
        path.write_bytes(to_json(json.loads(path.read_bytes()) | change))
        assert is_live(path), "its owner may be writing it"
        os.utime(path, (time.time() - 30, time.time() - 30))
        assert not is_live(path)
    with try_claim(path) as claim:
        assert claim is not None


@pytest.mark.parametrize("content", ["{}", "", '{"namespace": "elsewhere", "token": "t"}'])
@pytest.mark.parametrize("seconds", [3600, 1e9])
def test_a_claim_dated_in_the_future_does_not_block_a_shard(tmp_path, content, seconds):
    path = tmp_path / "claim.json"
    path.write_text(content)
    os.utime(path, (time.time() + seconds, time.time() + seconds))
    assert not is_live(path)
    with try_claim(path) as claim:
        assert claim is not None


def test_a_takeover_dated_in_the_future_does_not_block_a_shard(tmp_path):
    path, lock = tmp_path / "claim.json", tmp_path / ".claim.json.takeover"
    for each in (path, lock):
        each.write_text("")
        os.utime(each, (time.time() + 1e8, time.time() + 1e8))
    assert try_claim(path) is None, "the first look removes the lock"
    with try_claim(path) as claim:
        assert claim is not None


RECORDS = {
    "as many kept as memory cannot hold": {"kept": "0-99999999999"},
    "and as many samples": {"kept": "0-99999999999", "samples": 100_000_000_000},
    "more kept than the shard has": {"kept": "0-16"},
    "kept backwards": {"kept": "5-3"},
    "kept twice": {"kept": "0-3,2-5"},
    "kept in words": {"kept": "all"},
    "kept with a number of 5,000 digits": {"kept": "0-" + "9" * 5000},
    "kept as a list": {"kept": [0, 1]},
    "kept as a truth": {"kept": True},
    "other Unicode digits": {"kept": "\u0660-\u0663"},
    "another number of samples": {"samples": 15},
    "samples as a float": {"samples": 16.0},
    "no such shard": {"shard": 6},
    "a negative shard": {"shard": -1},
    "a shard of many digits": {"shard": 10**30},
    "finished yesterday": {"finished": "yesterday"},
    "finished in no time zone": {"finished": "2026-01-01T00:00:00"},
    "finished as a number": {"finished": 1e9},
    "no seconds": {"seconds": None},
    "negative seconds": {"seconds": -1.0},
    "seconds that are no number": {"seconds": float("nan")},
    "endless seconds": {"seconds": float("inf")},
    "a file outside of the store": {"files": {"../../../etc/passwd": ["00" * 32, 1]}},
    "an absolute file": {"files": {"/etc/passwd": ["00" * 32, 1]}},
    "files as a list": {"files": ["mask/mask/2.0.0"]},
    "a file of a negative size": {"files": {"mask/mask/2.0.0": ["00" * 32, -1]}},
    "a file of a wrong digest": {"files": {"mask/mask/2.0.0": ["zz", 1]}},
    "more dropped than there are": {"dropped": {"reason": 10**9}},
    "a negative number dropped": {"dropped": {"reason": -5}},
    "versions as a list": {"versions": ["1"]},
    "a version of a megabyte": {"versions": {"numpy": "x" * 900_000}},
    "a host of no text": {"host": {"name": "x"}},
    "memory as a text": {"peak_memory": "1 GB"},
    "a fingerprint of a path": {"fingerprint": "../../secret"},
    "a key too much": {"surprise": 1},
}


def forge(path, change):
    """Write a changed record with a valid checksum."""
    data = json.loads(path.read_bytes()) | change
    data.pop("checksum")
    path.write_bytes(to_json(data | {"checksum": hashlib.sha256(to_json(data)).hexdigest()}))


@pytest.mark.parametrize("change", RECORDS.values(), ids=list(RECORDS))
def test_a_forged_record_is_refused_by_name_and_repaired(finished, change):
    ledger = finished.ledger("mask")
    path = ledger.record_path(2)
    forge(path, change)
    with pytest.raises(DamageError, match=path.name) as caught:
        run_status(finished)
    assert caught.value.hint == f"magicseg repair {finished.path}"
    findings = inspect(finished)
    assert findings.records == [path]
    repair(finished, findings)
    assert run_status(Run.open(finished.path))["stages"]["mask"]["shards"]["committed"] == 5


@pytest.mark.parametrize("change", [{"kept": "0-99999999999"}, {"finished": "yesterday"}, {"shard": 77}])
def test_a_forged_line_among_compact_records_is_refused_by_its_number(finished, change):
    ledger = finished.ledger("mask")
    forge(ledger.record_path(2), change)
    lines = [ledger.record_path(shard).read_bytes() for shard in range(6)]
    for shard in range(6):
        ledger.record_path(shard).unlink()
    ledger.compact_path.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(DamageError, match=r"commits\.jsonl, line 3: "):
        run_status(finished)
    repair(finished, inspect(finished))
    assert run_status(Run.open(finished.path))["stages"]["mask"]["shards"]["committed"] == 5


@pytest.mark.parametrize("name", ["ledger/mask/commits/00000002.json", "ledger/mask/commits.jsonl"])
def test_verify_stops_at_an_unreadable_ledger_file(finished, put, name):
    path = finished.path / name
    put(path, "denied")
    with pytest.raises(DamageError, match="Permission denied"):
        inspect(finished)
    assert path.exists()


PLANS = {
    "too many samples": {"plan.samples": 10**15},
    "samples as a text": {"plan.samples": "96"},
    "a shard of nothing": {"plan.shard_size": 0},
    "negative shards": {"plan.shard_size": -16},
    "more labels than columns": {"plan.max_labels": 8},
    "labels of no number": {"plan.max_labels": None},
}


def forge_plan(path, change):
    document = json.loads(path.read_bytes())
    document.pop("checksum")
    change(document)
    document["checksum"] = hashlib.sha256(to_json(document)).hexdigest()
    path.write_text(json.dumps(document))


@pytest.mark.parametrize("change", PLANS.values(), ids=list(PLANS))
def test_a_forged_plan_is_refused_by_name(finished, fault_of, change):
    forge_plan(finished.path / "plan/plan.json", lambda document: document["inputs"].update(change))
    error = fault_of("status", finished.path)
    assert isinstance(error, DamageError)
    assert "plan" in error.message
    assert error.hint == f"magicseg repair {finished.path}"


@pytest.mark.parametrize(
    "labels", [{}, {"labels": 5}, {"name": 1, "labels": [{}]}, {"labels": [[1]], "background": 3}], ids=str
)
def test_labels_of_a_forged_plan_are_refused(finished, fault_of, labels):
    forge_plan(finished.path / "plan/plan.json", lambda document: document.update(labels=labels))
    error = fault_of("status", finished.path)
    assert isinstance(error, DamageError)


def test_a_label_that_the_plan_does_not_have_is_refused(finished):
    table = finished.path / "plan/classes.npy"
    content = bytearray(table.read_bytes())
    content[-4:] = b"\xff\xff\xff\xff"
    table.write_bytes(content)
    with pytest.raises(DamageError, match="label 65535"):
        Run.open(finished.path).plan.label_ids(95)


RESULTS = [
    {"miou": "high"}, {"miou": [1]}, {"miou": {"value": 1}}, {"miou": float("nan")}, {"miou": 10**400},
    {"provenance": 5}, {"provenance": {"evaluate": [1]}}, {"benchmark": ["x"]}, {"classes": 5}, {"confusion": "x"},
    {"iou": [1, 2]}, {"baselines": [1]}, {"images": "many"}, {"iou_interval": 3}, {"threshold": {"value": "x"}},
]  # fmt: skip


@pytest.mark.parametrize("change", RESULTS, ids=lambda change: str(change)[:40])
def test_status_and_report_survive_results_of_wrong_types(finished, fault_of, change):
    content = {
        "benchmark": "miniature", "miou": 0.5, "iou": {"a": 0.5}, "provenance": {"weights_digest": "x"}, "images": 3,
    }  # fmt: skip
    path = finished.path / "results/miniature.json"
    path.parent.mkdir()
    path.write_text(json.dumps(content | change))
    for command in ("status", "report"):
        assert fault_of(command, finished.path) is None
    error = fault_of("compare", finished.path)
    assert error is None or "miniature.json" in error.message
