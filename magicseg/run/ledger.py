"""The ledger of one stage: which shards are committed, being worked on, or failed.

ledger/STAGE/commits/00000012.json   the commit record: the only proof that a shard is done
ledger/STAGE/commits.jsonl           the same records in one file, once the stage is whole
ledger/STAGE/failures/00000012.json  why the last attempt at a shard failed
ledger/STAGE/claims/00000012.json    who is at work on a shard (see `magicseg.run.claims`)
ledger/STAGE/inputs/DIGEST.json      what a fingerprint was made of
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from magicseg.core.text import command
from magicseg.errors import DamageError
from magicseg.run.claims import is_live
from magicseg.run.files import TEMPORARY, to_json, write_atomic
from magicseg.run.fingerprint import Fingerprint
from magicseg.run.ranges import parse_ranges


@dataclass(frozen=True, kw_only=True)
class CommitRecord:
    """What a committed shard is. ``files`` maps a path inside the store to its SHA-256 and size in bytes.

    ``kept`` are offsets inside the shard, as ranges; ``dropped`` counts this stage's own drops by reason,
    ``fallbacks`` its kept samples that a fallback made, by reason.
    ``seconds`` is wall time, ``peak_memory`` bytes of resident memory of the worker, ``peak_gpu_memory`` those on
    its GPU. ``job`` is the Slurm task, ``123_4``, if there was one.
    """

    shard: int
    fingerprint: str
    samples: int
    kept: str
    dropped: dict[str, int]
    files: dict[str, tuple[str, int]]
    seconds: float
    peak_memory: int
    finished: str
    host: str
    job: str
    versions: dict[str, str]
    imported_from: str | None = None
    peak_gpu_memory: int = 0
    fallbacks: dict[str, int] = field(default_factory=dict)

    def kept_offsets(self) -> list[int]:
        """Offsets of the kept samples inside the shard."""
        return parse_ranges(self.kept)

    @property
    def kept_count(self) -> int:
        """Number of kept samples."""
        return sum(
            1 + int(part.partition("-")[2] or part) - int(part.partition("-")[0])
            for part in self.kept.split(",")
            if part
        )


def _record_bytes(record: CommitRecord) -> bytes:
    """A record as one line of JSON that carries its own checksum."""
    data = dict(vars(record))
    if not data["fallbacks"]:
        del data["fallbacks"]  # so that versions without fallbacks read it
    return to_json(data | {"checksum": hashlib.sha256(to_json(data)).hexdigest()})


def _parse_record(text: bytes, where: Path) -> CommitRecord:
    try:
        data = json.loads(text)
        checksum = data.pop("checksum")
        if checksum != hashlib.sha256(to_json(data)).hexdigest():
            raise ValueError("checksum differs")
        data["files"] = {name: (str(digest), int(size)) for name, (digest, size) in data["files"].items()}
        return CommitRecord(**data)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DamageError(
            f"{where}: is not a commit record: {error}", hint=command("magicseg", "repair", _run_of(where))
        ) from error


def _run_of(path: Path) -> Path:
    """The run that a file inside a stage's ledger belongs to."""
    return next((folder.parent for folder in path.parents if folder.name == "ledger"), path.parent)


@dataclass(frozen=True)
class Ledger:
    """The ledger of one stage of one run."""

    folder: Path
    shards: int

    def create(self) -> None:
        """Make the folders."""
        for name in ("commits", "failures", "claims", "inputs"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)

    @property
    def compact_path(self) -> Path:
        """The file that holds all records of a whole stage."""
        return self.folder / "commits.jsonl"

    def record_path(self, shard: int) -> Path:
        """A shard's own commit record."""
        return self.folder / "commits" / f"{shard:08d}.json"

    def failure_path(self, shard: int) -> Path:
        """A shard's failure note."""
        return self.folder / "failures" / f"{shard:08d}.json"

    def claim_path(self, shard: int) -> Path:
        """A shard's claim."""
        return self.folder / "claims" / f"{shard:08d}.json"

    def commit(self, record: CommitRecord, fingerprint: Fingerprint) -> bool:
        """Publish a commit record. False if another process had committed the shard first: that one stands."""
        inputs = self.folder / "inputs" / f"{fingerprint.digest}.json"
        if not inputs.exists():
            write_atomic(inputs, to_json(fingerprint.inputs), exclusive=True)
        if self.compact_path.exists() and self.committed(record.shard) is not None:
            return False
        first = write_atomic(self.record_path(record.shard), _record_bytes(record), exclusive=True)
        self.failure_path(record.shard).unlink(missing_ok=True)
        return first

    def fail(self, shard: int, reason: str, detail: str) -> None:
        """Note why an attempt at a shard failed."""
        write_atomic(self.failure_path(shard), to_json({"shard": shard, "reason": reason, "detail": detail}))

    def commits(self) -> dict[int, CommitRecord]:
        """All commit records by shard.

        Single records are listed before the compact file is read, so that a compaction at the same time cannot
        hide one.
        """
        found: dict[int, CommitRecord] = {}
        vanished = False
        for shard, path in self._listed("commits"):
            try:
                found[shard] = _parse_record(path.read_bytes(), path)
            except FileNotFoundError:
                vanished = True
        if vanished or self.compact_path.exists():
            return self._compacted() | found
        return found

    def commits_except(self, unreadable: Collection[Path]) -> dict[int, CommitRecord]:
        """All commit records but those in files known to be damaged."""
        singles = {
            shard: _parse_record(path.read_bytes(), path)
            for shard, path in self._listed("commits")
            if path not in unreadable
        }
        return (self._sound_lines() if self.compact_path in unreadable else self._compacted()) | singles

    def committed(self, shard: int) -> CommitRecord | None:
        """One shard's commit record, or None."""
        path = self.record_path(shard)
        with contextlib.suppress(FileNotFoundError):
            return _parse_record(path.read_bytes(), path)
        try:
            text = self.compact_path.read_bytes()
        except FileNotFoundError:
            return None
        # Of thousands of records one is wanted: only lines that may be it are parsed.
        needle = b'"shard":%d,' % shard
        for line in text.splitlines():
            if needle in line:
                record = _parse_record(line, self.compact_path)
                if record.shard == shard:
                    return record
        return None

    def failures(self) -> dict[int, str]:
        """Why shards failed, by shard."""
        found: dict[int, str] = {}
        for shard, path in self._listed("failures"):
            with contextlib.suppress(FileNotFoundError, ValueError, KeyError):
                data = json.loads(path.read_bytes())
                found[shard] = f"{data['reason']}: {data['detail']}"
        return found

    def claimed(self) -> list[int]:
        """Shards with a claim, live or not."""
        return [shard for shard, _ in self._listed("claims")]

    def fingerprints(self, commits: Mapping[int, CommitRecord]) -> dict[str, Mapping[str, Any]]:
        """The inputs of every fingerprint that occurs among ``commits``."""
        result: dict[str, Mapping[str, Any]] = {}
        for digest in {record.fingerprint for record in commits.values()}:
            try:
                result[digest] = json.loads((self.folder / "inputs" / f"{digest}.json").read_bytes())
            except (OSError, ValueError):
                result[digest] = {}
        return result

    def compact(self, commits: Mapping[int, CommitRecord]) -> None:
        """Move a whole stage's records into one file: thousands of small files become one."""
        if len(commits) != self.shards:
            return
        singles = list(self._listed("commits"))
        if not singles:
            return
        self._write_compact(commits)
        for _, path in singles:
            path.unlink(missing_ok=True)

    def take_back(self, shards: Collection[int]) -> None:
        """Remove the commits of ``shards``, so that they are done again."""
        if self.compact_path.exists():
            left = {shard: record for shard, record in self._compacted().items() if shard not in shards}
            if left:
                self._write_compact(left)
            else:
                self.compact_path.unlink()
        for shard in shards:
            self.record_path(shard).unlink(missing_ok=True)
            self.failure_path(shard).unlink(missing_ok=True)

    def unreadable(self) -> list[Path]:
        """Record files that cannot be read, and files that do not belong in the ledger."""
        bad: list[Path] = []
        folder = self.folder / "commits"
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path.name.endswith(TEMPORARY):
                continue  # of a writer at work, or one that was killed
            try:
                record = _parse_record(path.read_bytes(), path)
                if path != self.record_path(record.shard) or record.shard >= self.shards:
                    bad.append(path)
            except (DamageError, OSError):
                bad.append(path)
        if self.compact_path.exists():
            try:
                self._compacted()
            except DamageError:
                bad.append(self.compact_path)
        return bad

    def leftovers(self) -> list[Path]:
        """Temporary files of writers that were killed; none while anybody is at work on the stage."""
        if any(is_live(self.claim_path(shard)) for shard in self.claimed()):
            return []
        return sorted(path for path in self.folder.rglob(f"*{TEMPORARY}") if path.is_file())

    def salvage(self) -> None:
        """Write the compact file again without its damaged lines."""
        self._write_compact(self._sound_lines())

    def _sound_lines(self) -> dict[int, CommitRecord]:
        found: dict[int, CommitRecord] = {}
        for line in self.compact_path.read_bytes().splitlines():
            with contextlib.suppress(DamageError):
                record = _parse_record(line, self.compact_path)
                found[record.shard] = record
        return found

    def _write_compact(self, commits: Mapping[int, CommitRecord]) -> None:
        lines = b"".join(_record_bytes(commits[shard]) + b"\n" for shard in sorted(commits))
        write_atomic(self.compact_path, lines)

    def _compacted(self) -> dict[int, CommitRecord]:
        try:
            text = self.compact_path.read_bytes()
        except FileNotFoundError:
            return {}
        records = (_parse_record(line, self.compact_path) for line in text.splitlines())
        return {record.shard: record for record in records}

    def _listed(self, kind: str) -> Iterator[tuple[int, Path]]:
        folder = self.folder / kind
        try:
            names = sorted(os.listdir(folder))
        except FileNotFoundError:
            return
        for name in names:
            stem, suffix = os.path.splitext(name)
            if suffix == ".json" and stem.isdigit():
                yield int(stem), folder / name
