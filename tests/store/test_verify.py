"""Verify finds all damage; repair invalidates exactly the damaged shards; regeneration gives the same data."""

import random
import shutil

import pytest

from helpers.tiny_runs import do, make_run
from magicseg.core.errors import DamageError
from magicseg.run import Run
from magicseg.run.claims import try_claim
from magicseg.run.digest import logical_digest
from magicseg.run.verify import inspect, refuse_damage, repair


def commits_of(run):
    return {
        (stage, shard): record
        for stage in ("describe", "generate", "mask")
        for shard, record in run.ledger(stage).commits().items()
    }


def mend(run):
    """Repair until no damage is left, following the messages, and regenerate the invalidated shards."""
    for _ in range(3):
        opened = Run.open(run.path)
        if not repair(opened, inspect(opened)):
            break
    opened = Run.open(run.path)
    assert inspect(opened).sound
    do(opened)
    assert inspect(Run.open(run.path)).sound
    return Run.open(run.path)


def data_files(run, *folders):
    return sorted(path for folder in folders for path in (run.path / folder).rglob("*") if path.is_file())


def test_verify_finds_no_damage_in_a_finished_run(finished):
    findings = inspect(finished)
    assert findings.sound
    assert findings.leftovers == []
    assert findings.checked_files == 6 * 7
    refuse_damage(finished, findings)


def test_verify_finds_no_damage_in_an_unfinished_run(fresh):
    assert inspect(fresh).sound
    do(fresh, "describe", shards=[1])
    assert inspect(fresh).sound


@pytest.mark.parametrize("compacted", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_any_flipped_byte_in_any_file_is_found_and_repaired(finished, expected_digest, seed, compacted):
    if compacted:
        for stage in ("describe", "generate", "mask"):
            finished.ledger(stage).compact(finished.ledger(stage).commits())
    rng = random.Random(seed)
    for file in rng.sample(data_files(finished, "dataset.zarr", "ledger", "plan"), 4):
        if file.parent.name == "inputs":
            continue  # only explains errors; it affects no result
        content = bytearray(file.read_bytes())
        content[rng.randrange(len(content))] ^= rng.choice([0x01, 0x10, 0x80, 0xFF])
        file.write_bytes(content)
        findings = inspect(Run.open(finished.path))
        assert not findings.sound, file
        with pytest.raises(DamageError) as caught:
            refuse_damage(finished, findings)
        assert caught.value.hint == f"magicseg repair {finished.path}"
        assert logical_digest(mend(finished)) == expected_digest


@pytest.mark.parametrize("position", range(0, 1400, 90))
def test_every_part_of_an_image_file_is_under_a_checksum(finished, position):
    file = finished.store.path / "generate/image/3.0.0.0"
    content = bytearray(file.read_bytes())
    content[-1 - position * len(content) // 1400] ^= 0x04
    file.write_bytes(content)
    findings = inspect(finished)
    assert findings.shards == {"generate": {3}}
    assert findings.damage == [f"{file}: checksum differs (shard 3 of generate)"]
    with pytest.raises(DamageError):  # reading without verifying also fails
        finished.store.read("generate/image", 48, 64)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-1]), "bytes, not"),
        (lambda file: file.write_bytes(b""), "has 0 bytes"),
        (lambda file: file.write_bytes(file.read_bytes() + b"x"), "bytes, not"),
        (lambda file: file.unlink(), "is missing"),
        (lambda file: (file.unlink(), file.mkdir()), ""),
    ],
    ids=["truncated", "emptied", "longer", "removed", "a-folder"],
)
def test_a_changed_file_is_found(finished, damage, words):
    file = finished.store.path / "mask/mask/4.0.0"
    damage(file)
    findings = inspect(finished)
    assert findings.shards == {"mask": {4}}
    assert str(file) in findings.damage[0]
    assert words in findings.damage[0]


def test_repair_invalidates_exactly_the_damaged_shards(finished, expected_digest):
    before = commits_of(finished)
    (finished.store.path / "mask/mask/4.0.0").unlink()
    (finished.store.path / "describe/captions/0.0").write_bytes(b"x")
    done = repair(finished, inspect(finished))
    assert done == ["shard 0 of describe: commit invalidated", "shard 4 of mask: commit invalidated"]
    assert before.keys() - commits_of(finished).keys() == {("describe", 0), ("mask", 4)}
    assert logical_digest(mend(finished)) == expected_digest
    untouched = {
        key: record for key, record in commits_of(finished).items() if key not in {("describe", 0), ("mask", 4)}
    }
    assert all(before[key] == record for key, record in untouched.items())


def test_one_flipped_byte_in_a_compacted_ledger_invalidates_one_shard(finished, expected_digest):
    ledger = finished.ledger("generate")
    ledger.compact(ledger.commits())
    content = bytearray(ledger.compact_path.read_bytes())
    content[len(content) // 2 + 100] ^= 1  # inside a line: a lost line break would invalidate two records
    ledger.compact_path.write_bytes(content)
    repair(finished, inspect(finished))
    assert len(ledger.commits()) == 5
    assert logical_digest(mend(finished)) == expected_digest


@pytest.mark.parametrize("codec", ["lossless", "jpeg"])
@pytest.mark.parametrize("how", ["truncated", "zeroed", "emptied"])
def test_a_damaged_shorter_last_shard_can_be_regenerated(tmp_path, codec, how):
    run = make_run(tmp_path / "run", "plan.samples=20", f"store.image_codec={codec}")
    do(run)
    expected = logical_digest(run)
    for name in ("describe/captions", "generate/image", "generate/counterfactual", "mask/mask", "mask/quality"):
        file = run.store.path / run.store.shard_file(name, 1)
        content = file.read_bytes()
        file.write_bytes({"truncated": content[:-9], "zeroed": bytes(len(content)), "emptied": b""}[how])
    assert logical_digest(mend(run)) == expected


def test_foreign_files_are_found_and_quarantined(finished, expected_digest):
    foreign = [
        finished.store.path / "notes.txt",
        finished.store.path / "mask/mask/99.0.0",
        finished.store.path / "mask/mask/0.0.0.0",
        finished.store.path / "extra/zarr.json",
        finished.path / "ledger/mask/commits/notes.txt",
    ]
    for number, path in enumerate(foreign):
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"mine {number}")
    findings = inspect(finished)
    assert all(any(str(path) in sentence for sentence in findings.damage) for path in foreign)
    repair(finished, findings)
    for number, path in enumerate(foreign):
        kept = finished.path / "quarantine" / path.relative_to(finished.path)
        assert kept.read_text() == f"mine {number}"
        assert not path.exists()
    assert inspect(finished).sound
    assert logical_digest(finished) == expected_digest


def test_quarantine_keeps_several_files_of_the_same_name(finished):
    for text in ("first", "second"):
        (finished.store.path / "notes.txt").write_text(text)
        repair(finished, inspect(finished))
    kept = [path.read_text() for path in (finished.path / "quarantine/dataset.zarr").iterdir()]
    assert sorted(kept) == ["first", "second"]


def test_leftovers_of_killed_writers_are_not_damage(fresh):
    do(fresh, "describe", shards=[0])
    leftovers = [
        fresh.store.path / "describe/captions/1.0",
        fresh.store.path / "describe/captions/0.abc.partial",
        fresh.path / "ledger/describe/commits/00000003.json.1.ab.partial",
    ]
    for path in leftovers:
        path.write_bytes(b"half")
    findings = inspect(fresh)
    assert findings.sound
    assert sorted(findings.leftovers) == sorted(leftovers)
    repair(fresh, findings)
    assert not any(path.exists() for path in leftovers)


def test_files_of_active_writers_are_left_alone(fresh):
    with try_claim(fresh.ledger("describe").claim_path(1)):
        (fresh.store.path / "describe/captions/1.0").write_bytes(b"half")
        findings = inspect(fresh)
    assert findings.sound
    assert findings.leftovers == []


@pytest.mark.parametrize("name", ["zarr.json", "mask/zarr.json", "mask/mask/zarr.json"])
@pytest.mark.parametrize("content", [None, b"", b"{}", b'{"zarr_format": 2}'])
def test_damaged_metadata_is_found_and_rewritten(finished, expected_digest, name, content):
    file = finished.store.path / name
    file.unlink() if content is None else file.write_bytes(content)
    findings = inspect(Run.open(finished.path))
    assert findings.metadata == [name]
    assert logical_digest(mend(finished)) == expected_digest


def test_a_deleted_store_is_recreated_and_filled(finished, expected_digest):
    shutil.rmtree(finished.store.path)
    assert not inspect(Run.open(finished.path)).sound
    assert logical_digest(mend(finished)) == expected_digest


def test_the_shards_of_a_deleted_ledger_are_regenerated(finished, expected_digest):
    shutil.rmtree(finished.path / "ledger/generate")
    assert inspect(Run.open(finished.path)).sound
    assert logical_digest(mend(finished)) == expected_digest


@pytest.mark.parametrize("old", [b'"seed": 0', b'"plan.samples": 96', b'"plan.shard_size": 16', b'"name": "'])
def test_a_damaged_plan_is_redrawn_and_no_commit_is_lost(finished, expected_digest, old):
    file = finished.path / "plan/plan.json"
    content = file.read_bytes()
    assert old in content
    file.write_bytes(content.replace(old, old[:-1] + bytes([old[-1] ^ 1]), 1))
    findings = inspect(Run.open(finished.path))
    assert not findings.sound
    repair(Run.open(finished.path), findings)
    assert file.read_bytes() == content
    assert len(commits_of(Run.open(finished.path))) == 18
    assert logical_digest(Run.open(finished.path)) == expected_digest


def test_a_flipped_label_in_the_plan_is_found(finished):
    file = finished.path / "plan/classes.npy"
    content = bytearray(file.read_bytes())
    content[-2] ^= 3
    file.write_bytes(content)
    assert inspect(Run.open(finished.path)).damage == [f"{file}: checksum differs"]
