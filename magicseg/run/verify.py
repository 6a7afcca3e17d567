"""Check a run's files against its ledger, and invalidate commits of damaged files."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from magicseg.config.stage_declarations import DECLARATIONS, STAGES
from magicseg.core.digests import stream_sha256
from magicseg.core.documents import open_regular, read_json
from magicseg.core.errors import DamageError, RunError
from magicseg.core.files import TEMPORARY, storage_errors, write_atomic
from magicseg.core.text import command
from magicseg.labels import load_vocabulary
from magicseg.run.claims import holder, is_live, try_claim
from magicseg.run.directory import Run
from magicseg.run.ledger import CommitRecord, Ledger
from magicseg.store.plan import plan_damage, write_plan
from magicseg.store.zarr_store import metadata_files

QUARANTINE = "quarantine"
_METADATA_BYTES = 1 << 20


@dataclass
class Findings:
    """The findings of `inspect`. ``shards``: damaged shards by stage. ``damage``: sentences that name the files."""

    damage: list[str] = field(default_factory=list)
    shards: dict[str, set[int]] = field(default_factory=dict)
    metadata: list[str] = field(default_factory=list)
    foreign: list[Path] = field(default_factory=list)
    records: list[Path] = field(default_factory=list)
    leftovers: list[Path] = field(default_factory=list)
    checked_files: int = 0
    checked_bytes: int = 0

    @property
    def sound(self) -> bool:
        """Whether nothing is damaged. Leftovers of killed workers do not count."""
        return not self.damage


def inspect(run: Run, progress: Callable[[int], None] = lambda count: None) -> Findings:
    """Check every file of the run's plan, ledger and store.

    Found: flipped bytes, wrong sizes, missing files (by the commit records' SHA-256), damaged records and metadata,
    files that belong to nothing. ``progress`` is told the number of files checked.
    """
    findings = Findings(damage=plan_damage(run.path / "plan"))
    if findings.damage:
        return findings
    _check_metadata(run, findings)
    commits: dict[str, dict[int, CommitRecord]] = {}
    for stage in STAGES:
        ledger = run.ledger(stage)
        findings.records += ledger.unreadable()
        findings.leftovers += ledger.leftovers()
        commits[stage] = ledger.commits_except(findings.records)
    findings.damage += [f"{path}: is not a sound commit record" for path in findings.records]
    for stage in STAGES:
        for shard, record in sorted(commits[stage].items()):
            for name, (digest, size) in record.files.items():
                fault = _file_fault(run.store.path / name, digest, size)
                findings.checked_files += 1
                findings.checked_bytes += size
                progress(findings.checked_files)
                if fault:
                    findings.damage.append(f"{run.store.path / name}: {fault} (shard {shard} of {stage})")
                    findings.shards.setdefault(stage, set()).add(shard)
    _find_foreign(run, commits, findings)
    return findings


def repair(run: Run, findings: Findings) -> list[str]:
    """Invalidate damaged commits, so that the next run redoes them. Returns: one sentence per action.

    Whatever belongs to a shard is touched only under the shard's claim, and after another look at its commit: work
    that others commit meanwhile stays. Raises: RunError if somebody is at work on the run; StoreError.
    """
    done: list[str] = []
    then = command("magicseg", "repair", run.path)
    with storage_errors(run.path, then):
        if plan_damage(run.path / "plan"):
            write_plan(run.path / "plan", run.config, load_vocabulary(run.config.labels.vocabulary))
            return ["plan: drawn again from the configuration; run verify again"]
        run.refuse_live_claims(STAGES, then)
        compact = {run.ledger(stage).compact_path: run.ledger(stage) for stage in STAGES}
        for path in findings.records:
            if path in compact:
                compact[path].salvage()
                done.append(f"{path}: damaged records removed")
            elif path.exists():
                done.append(f"{path}: moved to {_set_aside(run, path)}")
        expected = metadata_files(run.plan, run.config) if findings.metadata else {}
        for name in findings.metadata:
            (run.store.path / name).parent.mkdir(parents=True, exist_ok=True)
            write_atomic(run.store.path / name, expected[name])
            done.append(f"{name}: metadata written again")
        for stage, shards in findings.shards.items():
            ledger = run.ledger(stage)
            for shard in sorted(shards):
                with _claimed(ledger, shard) as record:
                    if record is not None and _record_faults(run, record):
                        ledger.take_back({shard})
                        done.append(f"shard {shard} of {stage}: commit invalidated")
        removed = 0
        for path in findings.leftovers:
            owner = _owner(run, path)
            if owner is None:  # of the ledger
                path.unlink(missing_ok=True)
                removed += 1
                continue
            with _claimed(*owner) as record:
                name = str(path.relative_to(run.store.path))
                if record is None or name not in record.files:
                    path.unlink(missing_ok=True)
                    removed += 1
        if removed:
            done.append(f"{removed} leftovers of interrupted work removed")
        left = [path for path in findings.foreign if os.path.lexists(path)]
        done += [f"{path}: moved to {_set_aside(run, path)}" for path in left]
    return done


@contextlib.contextmanager
def _claimed(ledger: Ledger, shard: int) -> Iterator[CommitRecord | None]:
    """Hold a shard's claim. Yields: its commit record, read under the claim. Raises: RunError if others hold it."""
    ledger.create()
    claim = try_claim(ledger.claim_path(shard))
    if claim is None:
        raise RunError(
            f"{ledger.folder}: shard {shard} is being worked on: {holder(ledger.claim_path(shard))}",
            hint="wait for it, then repair again",
        )
    with claim:
        yield ledger.committed(shard)


def _owner(run: Run, path: Path) -> tuple[Ledger, int] | None:
    """Return the ledger and shard that a file of the store belongs to, or None."""
    if not path.is_relative_to(run.store.path):
        return None
    stage, _, name = path.relative_to(run.store.path).parts
    return run.ledger(stage), int(name.partition(".")[0])


def _record_faults(run: Run, record: CommitRecord) -> list[str]:
    """Return the faults of a shard's files, by file."""
    faults = ((name, _file_fault(run.store.path / name, *record.files[name])) for name in record.files)
    return [f"{name}: {fault}" for name, fault in faults if fault]


def _set_aside(run: Run, path: Path) -> Path:
    """Move a file out of the way, to where people can look at it."""
    target = run.path / QUARANTINE / path.relative_to(run.path)
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        target = target.with_name(f"{target.name}.{os.urandom(4).hex()}")
    return path.rename(target)


def _file_fault(path: Path, digest: str, size: int) -> str | None:
    """Return the fault of a file, or None. Raises: DamageError if the operating system refuses to read it."""
    try:
        with open_regular(path, error=DamageError) as file:
            actual = os.fstat(file.fileno()).st_size
            if actual != size:
                return f"has {actual} bytes, not {size}"
            if stream_sha256(file) != digest:
                return "checksum differs"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    except DamageError as error:
        if isinstance(error.__cause__, PermissionError):
            raise
        return error.message.removeprefix(f"{path}: ")
    return None


def _check_metadata(run: Run, findings: Findings) -> None:
    for name, content in metadata_files(run.plan, run.config).items():
        path = run.store.path / name
        try:
            found = read_json(path, dict[str, Any], limit=_METADATA_BYTES, error=DamageError)
            fault = None if found == json.loads(content) else "is not this run's metadata"
        except FileNotFoundError:
            fault = "is missing"
        except DamageError as error:
            if isinstance(error.__cause__, PermissionError):
                raise
            fault = error.message.removeprefix(f"{path}: ")
        if fault:
            findings.damage.append(f"{path}: {fault}")
            findings.metadata.append(name)


def _find_foreign(run: Run, commits: dict[str, dict[int, CommitRecord]], findings: Findings) -> None:
    known = set(metadata_files(run.plan, run.config))
    open_shards: dict[str, set[int]] = {}
    for stage in STAGES:
        known.update(name for record in commits[stage].values() for name in record.files)
        for name in DECLARATIONS[stage].store_arrays:
            open_shards[name] = set(range(run.plan.shards)) - commits[stage].keys()
    for path in sorted(run.store.path.rglob("*")):
        relative = str(path.relative_to(run.store.path))
        if path.is_dir() and not path.is_symlink():
            continue
        if relative in known:
            continue
        array, _, name = relative.rpartition("/")
        shard = name.partition(".")[0]
        stage = array.partition("/")[0]
        is_shard = shard.isascii() and shard.isdigit() and array in open_shards and int(shard) < run.plan.shards
        if is_shard and int(shard) in open_shards[array]:
            if is_live(run.ledger(stage).claim_path(int(shard))):
                continue  # somebody is writing it now
            findings.leftovers.append(path)
        elif is_shard and path.name.endswith(TEMPORARY):
            findings.leftovers.append(path)
        else:
            findings.damage.append(f"{path}: does not belong to the store")
            findings.foreign.append(path)


def refuse_damage(run: Run, findings: Findings) -> None:
    """Raise DamageError, listing the damage, if there is any."""
    if findings.sound:
        return
    shown = findings.damage[:10]
    more = [f"... and {len(findings.damage) - 10} more"] if len(findings.damage) > 10 else []
    raise DamageError(
        "\n  ".join([f"{run.path}: {len(findings.damage)} faults", *shown, *more]),
        hint=command("magicseg", "repair", run.path),
    )
