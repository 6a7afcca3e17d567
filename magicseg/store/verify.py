"""Checking a run's files against its ledger, and taking back what is damaged."""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from magicseg.core.text import command
from magicseg.errors import DamageError
from magicseg.labels import load_vocabulary
from magicseg.run.claims import is_live
from magicseg.run.directory import Run
from magicseg.run.files import TEMPORARY, storage_errors, write_atomic
from magicseg.run.fingerprint import STAGES
from magicseg.run.ledger import CommitRecord
from magicseg.run.plan import plan_damage, write_plan
from magicseg.store.dataset import ARRAYS, metadata_files

QUARANTINE = "quarantine"


@dataclass
class Findings:
    """What `inspect` found. ``shards`` are damaged ones by stage; the sentences in ``damage`` name the files."""

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
        """Whether nothing is damaged. Leftovers of killed workers are no damage."""
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
    """Undo what is damaged, so that the next run redoes it. Returns: what was done, a sentence each."""
    done: list[str] = []
    with storage_errors(run.path, command("magicseg", "repair", run.path)):
        if plan_damage(run.path / "plan"):
            write_plan(run.path / "plan", run.config, load_vocabulary(run.config.labels.vocabulary))
            return ["plan: drawn again from the configuration; run verify again"]
        compact = {run.ledger(stage).compact_path: run.ledger(stage) for stage in STAGES}
        for path in findings.records:
            if path in compact:
                compact[path].salvage()
                done.append(f"{path}: damaged records removed")
            else:
                done.append(f"{path}: moved to {_set_aside(run, path)}")
        expected = metadata_files(run.plan, run.config) if findings.metadata else {}
        for name in findings.metadata:
            (run.store.path / name).parent.mkdir(parents=True, exist_ok=True)
            write_atomic(run.store.path / name, expected[name])
            done.append(f"{name}: metadata written again")
        for stage, shards in findings.shards.items():
            run.ledger(stage).take_back(shards)
            done += [f"shard {shard} of {stage}: commit taken back" for shard in sorted(shards)]
        for path in findings.leftovers:
            path.unlink(missing_ok=True)
        if findings.leftovers:
            done.append(f"{len(findings.leftovers)} leftovers of interrupted work removed")
        for path in findings.foreign:
            done.append(f"{path}: moved to {_set_aside(run, path)}")
    return done


def _set_aside(run: Run, path: Path) -> Path:
    """Move a file out of the way, to where people can look at it."""
    target = run.path / QUARANTINE / path.relative_to(run.path)
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        target = target.with_name(f"{target.name}.{os.urandom(4).hex()}")
    return path.rename(target)


def _file_fault(path: Path, digest: str, size: int) -> str | None:
    try:
        actual = path.stat().st_size
        if actual != size:
            return f"has {actual} bytes, not {size}"
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                return "checksum differs"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return None


def _check_metadata(run: Run, findings: Findings) -> None:
    for name, content in metadata_files(run.plan, run.config).items():
        path = run.store.path / name
        try:
            fault = None if json.loads(path.read_bytes()) == json.loads(content) else "is not this run's metadata"
        except FileNotFoundError:
            fault = "is missing"
        except (OSError, ValueError) as error:
            fault = f"cannot be read: {error}"
        if fault:
            findings.damage.append(f"{path}: {fault}")
            findings.metadata.append(name)


def _find_foreign(run: Run, commits: dict[str, dict[int, CommitRecord]], findings: Findings) -> None:
    known = set(metadata_files(run.plan, run.config))
    open_shards: dict[str, set[int]] = {}
    for stage in STAGES:
        known.update(name for record in commits[stage].values() for name in record.files)
        for name in ARRAYS[stage]:
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
        if array in open_shards and shard.isdigit() and int(shard) in open_shards[array]:
            if is_live(run.ledger(stage).claim_path(int(shard))):
                continue  # somebody is writing it now
            findings.leftovers.append(path)
        elif array in open_shards and shard.isdigit() and path.name.endswith(TEMPORARY):
            findings.leftovers.append(path)
        else:
            findings.damage.append(f"{path}: does not belong to the store")
            findings.foreign.append(path)


def refuse_damage(run: Run, findings: Findings) -> None:
    """Raises: DamageError that lists the damage, if there is any."""
    if findings.sound:
        return
    shown = findings.damage[:10]
    more = [f"... and {len(findings.damage) - 10} more"] if len(findings.damage) > 10 else []
    raise DamageError(
        "\n  ".join([f"{run.path}: {len(findings.damage)} faults", *shown, *more]),
        hint=command("magicseg", "repair", run.path),
    )
