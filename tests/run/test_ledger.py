"""The ledger: permanent commits, transparent compaction, detected damage."""

import dataclasses
import json
import re
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from helpers.tiny_runs import change, do
from magicseg.core.errors import DamageError, PlanMismatch
from magicseg.run import Run, versions
from magicseg.run.fingerprint import Fingerprint
from magicseg.run.ledger import CommitRecord, Ledger
from magicseg.run.progress import run_status

FINGERPRINT = Fingerprint.of({"x": 1})


def record(shard, *, host="here", kept="0-3"):
    return CommitRecord(
        shard=shard, fingerprint=FINGERPRINT.digest, samples=16, kept=kept, dropped={"too-small": 1},
        files={f"a/{shard}": ("00" * 32, 5)}, seconds=0.5, peak_memory=1, host=host, job="",
        finished="2026-01-01T00:00:00+00:00", versions={"python": "3"},
    )  # fmt: skip


@pytest.fixture
def ledger(tmp_path):
    made = Ledger(tmp_path / "run/ledger/mask", 96, 16)
    made.create()
    return made


class Killed(BaseException):
    """Simulates a kill in the middle of an operation."""


class LedgerMachine(RuleBasedStateMachine):
    """Compare commits, compactions and repairs, with kills in between, with a plain dictionary."""

    @initialize(shards=st.integers(1, 5))
    def start(self, shards):
        self.folder = tempfile.TemporaryDirectory()
        self.shards = shards
        self.ledger = Ledger(Path(self.folder.name) / "run/ledger/mask", 16 * shards, 16)
        self.ledger.create()
        self.model = {}

    def teardown(self):
        if hasattr(self, "folder"):
            self.folder.cleanup()

    @rule(shard=st.integers(0, 4), host=st.sampled_from(["a", "b"]))
    def commit(self, shard, host):
        if shard < self.shards:
            assert self.ledger.commit(record(shard, host=host), FINGERPRINT) == (shard not in self.model)
            self.model.setdefault(shard, host)

    @rule(shard=st.integers(0, 4))
    def fail(self, shard):
        if shard < self.shards:
            self.ledger.fail(shard, "Boom", "why")

    @rule()
    def compact(self):
        self.ledger.compact(self.ledger.commits())

    @rule(after=st.integers(0, 3))
    def compact_and_be_killed(self, after):
        self._killed_after(after, lambda: self.ledger.compact(self.ledger.commits()))

    @rule(shards=st.sets(st.integers(0, 4)))
    def take_back(self, shards):
        self.ledger.take_back(shards)
        self.model = {shard: host for shard, host in self.model.items() if shard not in shards}

    @rule(shards=st.sets(st.integers(0, 4), min_size=1), after=st.integers(0, 2))
    def take_back_and_be_killed(self, shards, after):
        self._killed_after(after, lambda: self.ledger.take_back(shards))
        left = self.ledger.commits()
        assert {shard for shard in self.model if shard not in shards} <= left.keys(), "others are not touched"
        assert left.keys() <= self.model.keys()
        self.model = {shard: host for shard, host in self.model.items() if shard in left}

    def _killed_after(self, unlinks, action):
        """Run ``action``, and simulate a kill after ``unlinks`` removals of commit records."""
        original, left = Path.unlink, [unlinks]

        def unlink(path, missing_ok=False):
            if path.suffix == ".json" and path.parent.name == "commits":
                if not left[0]:
                    raise Killed
                left[0] -= 1
            original(path, missing_ok=missing_ok)

        Path.unlink = unlink
        try:
            action()
        except Killed:
            pass
        finally:
            Path.unlink = original

    @invariant()
    def everybody_sees_the_same_commits(self):
        if not hasattr(self, "ledger"):
            return
        commits = self.ledger.commits()
        assert {shard: found.host for shard, found in commits.items()} == self.model
        for shard in range(self.shards):
            found = self.ledger.committed(shard)
            assert (found.host if found else None) == self.model.get(shard)
            assert found == commits.get(shard)
        assert self.ledger.unreadable() == []
        assert self.ledger.leftovers() == []


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(max_examples=40, stateful_step_count=20)


def test_the_first_commit_of_a_shard_is_kept(ledger):
    assert ledger.commit(record(2, host="first"), FINGERPRINT)
    assert not ledger.commit(record(2, host="second"), FINGERPRINT)
    assert ledger.committed(2).host == "first"


def test_a_commit_clears_the_note_of_a_failure(ledger):
    ledger.fail(2, "Boom", "it broke")
    assert ledger.failures() == {2: "Boom: it broke"}
    ledger.commit(record(2), FINGERPRINT)
    assert ledger.failures() == {}


def test_compaction_makes_one_file_of_many_and_changes_no_record(ledger):
    for shard in range(6):
        ledger.commit(record(shard), FINGERPRINT)
    before = ledger.commits()
    ledger.compact(before)
    assert list((ledger.folder / "commits").iterdir()) == []
    assert ledger.commits() == before
    assert ledger.committed(3) == before[3]
    assert before[3].kept_offsets() == [0, 1, 2, 3]
    assert before[3].kept_count == 4


def test_an_unfinished_stage_is_not_compacted(ledger):
    for shard in range(5):
        ledger.commit(record(shard), FINGERPRINT)
    ledger.compact(ledger.commits())
    assert not ledger.compact_path.exists()


def test_compactions_and_reads_at_the_same_time_lose_nothing(tmp_path):
    count = 60
    ledger = Ledger(tmp_path / "run/ledger/mask", 16 * count, 16)
    ledger.create()
    wrong, stop = [], threading.Event()

    def read():
        while not stop.is_set():
            seen = ledger.commits()
            if not expected <= seen.keys():
                wrong.append(expected - seen.keys())

    def compact():
        barrier.wait()
        ledger.compact(ledger.commits())

    for _ in range(5):
        for shard in range(count):
            ledger.commit(record(shard), FINGERPRINT)
        expected = set(range(count))
        barrier = threading.Barrier(3)
        stop.clear()
        reader = threading.Thread(target=read)
        compactors = [threading.Thread(target=compact) for _ in range(3)]
        for thread in (reader, *compactors):
            thread.start()
        for thread in compactors:
            thread.join()
        stop.set()
        reader.join()
        assert ledger.commits().keys() == expected
        expected = set()
        ledger.take_back(range(count))
    assert wrong == []


@pytest.mark.parametrize("compacted", [False, True])
@pytest.mark.parametrize("step", range(0, 400, 13))
def test_every_flipped_byte_of_a_record_is_detected(ledger, compacted, step):
    for shard in range(6):
        ledger.commit(record(shard), FINGERPRINT)
    if compacted:
        ledger.compact(ledger.commits())
    file = ledger.compact_path if compacted else ledger.record_path(3)
    content = bytearray(file.read_bytes())
    content[step % len(content)] ^= 0x01
    file.write_bytes(content)
    assert ledger.unreadable() == [file]
    with pytest.raises(DamageError) as caught:
        ledger.commits()
    assert caught.value.hint == f"magicseg repair {ledger.folder.parents[1]}"


def test_a_damaged_line_of_a_compacted_ledger_invalidates_one_record(ledger):
    for shard in range(6):
        ledger.commit(record(shard), FINGERPRINT)
    ledger.compact(ledger.commits())
    lines = ledger.compact_path.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b"here", b"hexe")
    ledger.compact_path.write_bytes(b"".join(lines))
    assert ledger.commits_except([ledger.compact_path]).keys() == {0, 1, 3, 4, 5}
    ledger.salvage()
    assert ledger.commits().keys() == {0, 1, 3, 4, 5}


def test_a_record_under_another_shards_name_is_refused(ledger):
    ledger.commit(record(2), FINGERPRINT)
    ledger.record_path(2).rename(ledger.record_path(4))
    assert ledger.unreadable() == [ledger.record_path(4)]


def test_a_file_of_a_killed_writer_is_a_leftover_not_damage(ledger):
    orphan = ledger.folder / "commits" / "00000002.json.123.abcd.partial"
    orphan.write_bytes(b'{"half":')
    assert ledger.unreadable() == []
    assert ledger.commits() == {}
    assert ledger.leftovers() == [orphan]


@pytest.mark.parametrize(
    ("key", "value", "stage", "reset"),
    [
        ("generate.size", 48, "generate", "generate"),
        ("mask.options.threshold", 37.5, "mask", "mask"),
        # The change is upstream: the message names the upstream stage, which has to be reset.
        ("describe.batch_size", 8, "mask", "describe"),
        ("store.image_codec", "jpeg", "mask", "generate"),
    ],
)
def test_changed_settings_are_refused_by_name_and_the_hint_works(finished, magicseg, key, value, stage, reset):
    old = change(finished, key, value)
    with pytest.raises(PlanMismatch, match=re.escape(f"{key} is {value}, was {old}")) as caught:
        Run.open(finished.path).checked_commits(stage)
    command = caught.value.hint[caught.value.hint.index("magicseg reset") :]
    assert command == f"magicseg reset {reset} {finished.path}"
    assert magicseg.typed(f"{command} --yes").code == 0
    run = Run.open(finished.path)
    assert run.checked_commits(stage) == {}
    assert {event.outcome for event in do(run)} == {"committed"}


def test_restoring_the_former_setting_makes_shards_valid_again(finished):
    old = change(finished, "generate.size", 48)
    with pytest.raises(PlanMismatch):
        Run.open(finished.path).checked_commits("mask")
    change(finished, "generate.size", old)
    assert len(Run.open(finished.path).checked_commits("mask")) == 6


def test_a_stage_with_stale_inputs_is_not_reset(finished):
    old = change(finished, "generate.size", 48)
    with pytest.raises(PlanMismatch, match=r"generate\.size is 48"):
        Run.open(finished.path).reset("mask")
    change(finished, "generate.size", old)
    assert len(Run.open(finished.path).checked_commits("mask")) == 6


def test_neutral_settings_do_not_make_shards_stale(finished):
    change(finished, "store.jpeg_quality", 60)  # does not affect lossless images
    change(finished, "train.steps", 9)
    run = Run.open(finished.path)
    assert run.config.store.jpeg_quality == 60
    assert run.config.train.steps == 9
    assert len(run.checked_commits("mask")) == 6


def test_resetting_a_stage_also_resets_only_its_dependent_stages(finished):
    for name in ("checkpoints", "model", "results"):
        (finished.path / name).mkdir()
    assert finished.reset("generate") == ["generate", "mask", "train", "evaluate"]
    assert len(finished.ledger("describe").commits()) == 6
    assert finished.ledger("generate").commits() == finished.ledger("mask").commits() == {}
    assert not (finished.path / "model").exists()
    assert not (finished.path / "results").exists()
    assert not (finished.store.path / "generate/image/0.0.0.0").exists()


def test_the_cpu_name_is_recorded_on_linux(tmp_path, monkeypatch):
    told = tmp_path / "cpuinfo"
    told.write_text("processor\t: 0\nmodel\t\t: 85\nmodel name\t: Big CPU @ 2.00GHz \nprocessor\t: 1\n")
    monkeypatch.setattr(versions, "_CPU", told)
    assert versions._library_versions.__wrapped__()["cpu"] == "Big CPU @ 2.00GHz"
    told.write_text("processor\t: 0\nCPU part\t: 0xd0c\n")
    assert "cpu" not in versions._library_versions.__wrapped__()
    monkeypatch.setattr(versions, "_CPU", tmp_path / "nowhere")
    assert "cpu" not in versions._library_versions.__wrapped__()


def test_a_run_with_mixed_machines_or_libraries_names_them(finished):
    assert run_status(finished)["warnings"] == []
    ledger = finished.ledger("mask")
    record = ledger.commits()[0]
    ledger.take_back([0])
    other = {**record.versions, "cpu": "another", "scipy": "0.1"}
    ledger.commit(dataclasses.replace(record, versions=other), finished.fingerprints["mask"])
    (warning,) = run_status(finished)["warnings"]
    assert warning.startswith("mask: made with 2 different sets")
    assert warning.endswith(": cpu, scipy differ")


def test_commit_records_contain_versions_memory_files_and_inputs(finished):
    made = finished.ledger("generate").commits()[0]
    assert made.samples == 16
    assert {"python", "numpy", "zarr", "magicseg", "machine"} <= made.versions.keys()
    assert {"torchvision", "scipy", "segment-anything", "groundingdino-py", "openai"} <= made.versions.keys()
    assert made.peak_memory > 1e6
    assert made.files.keys() == {"generate/image/0.0.0.0", "generate/counterfactual/0.0.0.0", "generate/quality/0"}
    inputs = finished.ledger("generate").fingerprints({0: made})[made.fingerprint]
    assert inputs["generate.size"] == 32
    assert json.loads((finished.path / "ledger/generate/inputs" / f"{made.fingerprint}.json").read_text()) == inputs
