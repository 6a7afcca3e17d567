"""The ledger of one stage: which shards are committed, being worked on, or failed.

ledger/STAGE/commits/00000012.json   the commit record: the only proof that a shard is done
ledger/STAGE/commits.jsonl           the same records in one file, once the stage is whole
ledger/STAGE/failures/00000012.json  why the last attempt at a shard failed
ledger/STAGE/claims/00000012.json    who is at work on a shard (see `magicseg.run.claims`)
ledger/STAGE/inputs/DIGEST.json      what a fingerprint was made of
"""

import contextlib
import datetime
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NotRequired

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints
from typing_extensions import TypedDict

from magicseg.core.digests import json_sha256
from magicseg.core.documents import parse_json, read_bytes, read_json
from magicseg.core.errors import DamageError, DataError
from magicseg.core.files import TEMPORARY, fsync_path, to_json, write_atomic
from magicseg.core.shard_ranges import count_ranges, parse_ranges
from magicseg.core.text import command
from magicseg.run.claims import is_live
from magicseg.run.fingerprint import Fingerprint

_RECORD_BYTES = 1 << 20  # of one record or note


@dataclass(frozen=True, kw_only=True)
class CommitRecord:
    """The record of a committed shard. ``files`` maps a path inside the store to its SHA-256 and size in bytes.

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
        """Return the offsets of the kept samples inside the shard."""
        return parse_ranges(self.kept, count=self.samples)

    @property
    def kept_count(self) -> int:
        """Number of kept samples."""
        return count_ranges(self.kept, count=self.samples)


def _moment(text: str) -> str:
    if datetime.datetime.fromisoformat(text).tzinfo is None:
        raise ValueError("it has no time zone")
    return text


_Count = Annotated[int, Field(ge=0, lt=2**63)]
_Digest = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]
_Word = Annotated[str, StringConstraints(max_length=1000)]
_File = Annotated[str, StringConstraints(pattern=r"^[\w-]+(/[\w.-]*[\w-])+$", max_length=200)]  # no ".." in it


class _StoredRecord(TypedDict):
    """A commit record as it is stored."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)  # type: ignore[misc]

    checksum: _Digest
    shard: _Count
    fingerprint: _Digest
    samples: _Count
    kept: str
    dropped: dict[_Word, _Count]
    files: dict[_File, tuple[_Digest, _Count]]
    seconds: Annotated[float, Field(ge=0)]
    peak_memory: _Count
    finished: Annotated[str, AfterValidator(_moment)]
    host: _Word
    job: _Word
    versions: dict[_Word, _Word]
    imported_from: NotRequired[_Word | None]
    peak_gpu_memory: NotRequired[_Count]
    fallbacks: NotRequired[dict[_Word, _Count]]


class _FailureNote(TypedDict):
    reason: str
    detail: str


def _record_bytes(record: CommitRecord) -> bytes:
    """Return a record as one line of JSON that contains its own checksum."""
    data = dict(vars(record))
    if not data["fallbacks"]:
        del data["fallbacks"]  # so that versions without fallbacks read it
    return to_json(data | {"checksum": json_sha256(data)})


@dataclass(frozen=True)
class Ledger:
    """The ledger of one stage of one run, given the plan's number of samples and of samples per shard."""

    folder: Path
    samples: int
    shard_size: int

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.samples // self.shard_size)

    def create(self) -> None:
        """Create the folders."""
        for name in ("commits", "failures", "claims", "inputs"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)

    @property
    def compact_path(self) -> Path:
        """The file that holds all records of a whole stage."""
        return self.folder / "commits.jsonl"

    def record_path(self, shard: int) -> Path:
        """Return the path of a shard's own commit record."""
        return self.folder / "commits" / f"{shard:08d}.json"

    def failure_path(self, shard: int) -> Path:
        """Return the path of a shard's failure note."""
        return self.folder / "failures" / f"{shard:08d}.json"

    def claim_path(self, shard: int) -> Path:
        """Return the path of a shard's claim."""
        return self.folder / "claims" / f"{shard:08d}.json"

    def commit(self, record: CommitRecord, fingerprint: Fingerprint) -> bool:
        """Publish a commit record. Returns False if another process committed the shard first; its record stays."""
        inputs = self.folder / "inputs" / f"{fingerprint.digest}.json"
        if not inputs.exists():
            write_atomic(inputs, to_json(fingerprint.inputs), exclusive=True)
        if self.compact_path.exists() and self.committed(record.shard) is not None:
            return False
        first = write_atomic(self.record_path(record.shard), _record_bytes(record), exclusive=True)
        self.failure_path(record.shard).unlink(missing_ok=True)
        return first

    def fail(self, shard: int, reason: str, detail: str) -> None:
        """Record why an attempt at a shard failed."""
        write_atomic(self.failure_path(shard), to_json({"shard": shard, "reason": reason, "detail": detail}))

    def commits(self) -> dict[int, CommitRecord]:
        """Return all commit records by shard.

        Single records are listed before the compact file is read, so that a compaction at the same time cannot
        hide one.
        """
        found: dict[int, CommitRecord] = {}
        vanished = False
        for shard, path in self._listed("commits"):
            try:
                found[shard] = self._read_record(path)
            except FileNotFoundError:
                vanished = True
        if vanished or self.compact_path.exists():
            return self._compacted() | found
        return found

    def commits_except(self, unreadable: Collection[Path]) -> dict[int, CommitRecord]:
        """Return all commit records except those in files that are known to be damaged."""
        singles = {}
        for shard, path in self._listed("commits"):
            if path not in unreadable:
                with contextlib.suppress(FileNotFoundError):  # moved into the compact file meanwhile
                    singles[shard] = self._read_record(path)
        return (self._sound_lines() if self.compact_path in unreadable else self._compacted()) | singles

    def committed(self, shard: int) -> CommitRecord | None:
        """Return one shard's commit record, or None."""
        with contextlib.suppress(FileNotFoundError):
            return self._read_record(self.record_path(shard))
        # Of thousands of records one is wanted: only lines that may be it are parsed.
        needle = b'"shard":%d,' % shard
        for number, line in self._lines():
            if needle in line:
                record = self._parse_record(line, f"{self.compact_path}, line {number}")
                if record.shard == shard:
                    return record
        return None

    def failures(self) -> dict[int, str]:
        """Return the reasons of failed shards, by shard. An unreadable note is reported as the reason."""
        found: dict[int, str] = {}
        for shard, path in self._listed("failures"):
            try:
                note = read_json(path, _FailureNote, limit=_RECORD_BYTES)
                found[shard] = f"{note['reason']}: {note['detail']}"
            except FileNotFoundError:
                continue
            except DataError as error:
                found[shard] = f"unreadable note: {error.message}"
        return {shard: why for shard, why in found.items() if shard < self.shards}

    def live_claims(self) -> list[int]:
        """Return the shards that a live process may be working on."""
        return [shard for shard in self.claimed() if is_live(self.claim_path(shard))]

    def claimed(self) -> list[int]:
        """Return the shards that have a claim, live or stale."""
        return [shard for shard, _ in self._listed("claims") if shard < self.shards]

    def fingerprints(self, commits: Mapping[int, CommitRecord]) -> dict[str, Mapping[str, Any]]:
        """Return the inputs of every fingerprint in ``commits``, by digest."""
        result: dict[str, Mapping[str, Any]] = {}
        for digest in {record.fingerprint for record in commits.values()}:
            path = self.folder / "inputs" / f"{digest}.json"
            try:
                result[digest] = read_json(path, dict[str, Any])
            except (FileNotFoundError, DataError):  # it only names what differs
                result[digest] = {}
        return result

    def compact(self, commits: Mapping[int, CommitRecord]) -> None:
        """Move a finished stage's records into one file, to save thousands of small files."""
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
        with contextlib.suppress(FileNotFoundError):
            fsync_path(self.folder / "commits")  # files of a commit are removed only after the commit itself

    def unreadable(self) -> list[Path]:
        """Return record files that are damaged, and files that do not belong in the ledger.

        Raises: DamageError for a file that the operating system does not let us read: it may be sound.
        """
        bad: list[Path] = []
        folder = self.folder / "commits"
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path.name.endswith(TEMPORARY):
                continue  # of a writer at work, or one that was killed
            try:
                record = self._read_record(path)
                if path != self.record_path(record.shard):
                    bad.append(path)
            except FileNotFoundError:
                continue  # moved into the compact file, or taken back
            except DamageError as error:
                _refuse_denied(error)
                bad.append(path)
        try:
            self._compacted()
        except DamageError as error:
            _refuse_denied(error)
            bad.append(self.compact_path)
        return bad

    def leftovers(self) -> list[Path]:
        """Return temporary files of killed writers; an empty list while a process works on the stage."""
        found = sorted(path for path in self.folder.rglob(f"*{TEMPORARY}") if path.is_file())
        return [] if self.live_claims() else found  # checked last: a process that starts now writes new files

    def salvage(self) -> None:
        """Rewrite the compact file without its damaged lines."""
        self._write_compact(self._sound_lines())

    def _sound_lines(self) -> dict[int, CommitRecord]:
        found: dict[int, CommitRecord] = {}
        try:
            lines = list(self._lines())
        except DamageError as error:
            _refuse_denied(error)
            return {}  # a folder, a pipe or a device
        for _, line in lines:
            with contextlib.suppress(DamageError):
                record = self._parse_record(line, self.compact_path)
                found[record.shard] = record
        return found

    def _write_compact(self, commits: Mapping[int, CommitRecord]) -> None:
        lines = b"".join(_record_bytes(commits[shard]) + b"\n" for shard in sorted(commits))
        write_atomic(self.compact_path, lines)

    def _compacted(self) -> dict[int, CommitRecord]:
        records = (self._parse_record(line, f"{self.compact_path}, line {number}") for number, line in self._lines())
        return {record.shard: record for record in records}

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        """Yield the number and content of each line of the compact file; nothing if the file is missing."""
        try:
            text = read_bytes(
                self.compact_path, limit=self.shards * _RECORD_BYTES, error=DamageError, hint=self._repair()
            )
        except FileNotFoundError:
            return
        yield from enumerate(text.splitlines(), 1)

    def _read_record(self, path: Path) -> CommitRecord:
        """Read a shard's own record. Raises FileNotFoundError, DamageError."""
        data = read_bytes(path, limit=_RECORD_BYTES, error=DamageError, hint=self._repair())
        return self._parse_record(data, path)

    def _parse_record(self, text: bytes, where: Path | str) -> CommitRecord:
        """Return the record if it is whole and fits the plan. Raises: DamageError."""
        data: dict[str, Any] = {
            **parse_json(text, _StoredRecord, source=where, error=DamageError, hint=self._repair())
        }
        checksum = data.pop("checksum")
        try:
            if checksum != json_sha256(data):
                raise ValueError("checksum differs")
            record = CommitRecord(**data)
            start = record.shard * self.shard_size
            if record.shard >= self.shards or record.samples != min(self.shard_size, self.samples - start):
                raise ValueError(f"the plan has no shard {record.shard} of {record.samples} samples")
            if record.kept_count + sum(record.dropped.values()) > record.samples:
                raise ValueError("it keeps and drops more samples than the shard has")
        except ValueError as error:
            raise DamageError(f"{where}: cannot be used: {error}", hint=self._repair()) from None
        return record

    def _repair(self) -> str:
        return command("magicseg", "repair", self.folder.parents[1])

    def _listed(self, kind: str) -> Iterator[tuple[int, Path]]:
        folder = self.folder / kind
        try:
            names = sorted(os.listdir(folder))
        except FileNotFoundError:
            return
        for name in names:
            stem, suffix = os.path.splitext(name)
            if suffix == ".json" and stem.isascii() and stem.isdigit():
                yield int(stem), folder / name


def _refuse_denied(error: DamageError) -> None:
    """Raise the error again if the operating system refused to read the file, because `repair` cannot fix that."""
    if isinstance(error.__cause__, OSError):
        raise error
