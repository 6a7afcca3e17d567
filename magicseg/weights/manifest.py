"""A run's record of its weights, RUN/weights.json: which files were fetched, and their digests.

    {"names": {"NAME@COMMIT": {"files": {"FILE": {"sha256": "...", "size": 1}}, "others": ["..."]}},
     "paths": {"/PATH": "sha256:..."}}

``others`` are names of the repository's files that were not fetched. What has a path is there for the record only.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, Field

from magicseg.core.documents import read_json
from magicseg.core.errors import BackendError, RunError
from magicseg.core.files import storage_errors, write_atomic
from magicseg.core.text import command
from magicseg.weights.cache import seen_cache, snapshot
from magicseg.weights.hashing import files_digest
from magicseg.weights.pinned import Weights

MANIFEST = "weights.json"


def _is_inside(name: str) -> str:
    if not name or "\0" in name or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise ValueError("is not the name of a file in a repository")
    return name


_Name = Annotated[str, AfterValidator(_is_inside)]


class _File(BaseModel):
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=0, lt=1 << 63)


class _Entry(BaseModel):
    files: dict[_Name, _File]
    others: list[_Name]


class _ManifestFile(BaseModel):
    """The content of weights.json."""

    names: dict[str, _Entry]
    paths: dict[str, str]


@dataclass(frozen=True)
class FetchedFile:
    """A file's SHA-256, and its size in bytes."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Fetched:
    """What was fetched of a repository at a commit, and the names of its other files."""

    files: Mapping[str, FetchedFile]
    others: tuple[str, ...] = ()

    def files_of(self, weights: Weights) -> dict[str, FetchedFile] | None:
        """Return the files of these weights; None if some were not fetched."""
        chosen = weights.chosen([*self.files, *self.others])
        if not chosen or not set(chosen) <= self.files.keys() or weights.lacking(chosen):
            return None
        return {name: self.files[name] for name in chosen}


@dataclass(frozen=True)
class Manifest:
    """The weights that a run fetched, by ``NAME@COMMIT``, and digests of those that have a path."""

    names: Mapping[str, Fetched] = field(default_factory=dict)
    paths: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, run: Path) -> "Manifest":
        """Read a run's manifest. It is empty if nothing was fetched. Raises RunError if it is damaged."""
        path = run / MANIFEST
        again = f"{command('rm', '-r', path)} && {command('magicseg', 'fetch', run)}"
        hint = f"{again}   # the same weights give the same file"
        try:
            return cls.from_stored(read_json(path, _ManifestFile, error=RunError, hint=hint))
        except FileNotFoundError:
            return cls()

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Manifest":
        """Read the output of `to_dict`. Raises: ValueError for anything else."""
        return cls.from_stored(_ManifestFile.model_validate(data))

    @classmethod
    def from_stored(cls, stored: "_ManifestFile") -> "Manifest":
        """Return the manifest from validated content."""
        names = {
            name: Fetched(
                {file: FetchedFile(one.sha256, one.size) for file, one in entry.files.items()}, tuple(entry.others)
            )
            for name, entry in stored.names.items()
        }
        return cls(names, dict(stored.paths))

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, as in the file."""
        names = {
            name: {
                "files": {
                    file: {"sha256": one.sha256, "size": one.size} for file, one in sorted(entry.files.items())
                },
                "others": list(entry.others),
            }
            for name, entry in sorted(self.names.items())
        }
        return {"names": names, "paths": dict(sorted(self.paths.items()))}

    def write(self, run: Path) -> None:
        """Write the file atomically. Raises StoreError."""
        with storage_errors(run / MANIFEST, command("magicseg", "fetch", run)):
            write_atomic(run / MANIFEST, json.dumps(self.to_dict(), indent=1, ensure_ascii=False).encode())

    def files_of(self, weights: Weights) -> dict[str, FetchedFile] | None:
        """Return the files of weights named on the hub; None if some were not fetched."""
        entry = self.names.get(weights.name)
        return entry.files_of(weights) if entry else None

    def digest_of(self, weights: Weights) -> str | None:
        """Return the SHA-256 over names and digests of the files of weights on the hub; None if not fetched."""
        files = self.files_of(weights)
        return None if files is None else files_digest({name: file.sha256 for name, file in files.items()})

    def refuse_unfetched(self, weights: Weights, where: str, run: Path) -> None:
        """Check that weights on the hub were fetched, and that their files in the cache have the right sizes.

        Args: where: the setting, for messages. Raises: BackendError.
        """
        if not weights.by_name:
            return
        files = self.files_of(weights)
        what = f"{where}: {weights.model} at {weights.revision}"
        if files is None:
            raise BackendError(f"{what} is not fetched", hint=command("magicseg", "fetch", run))
        lacking = not_in_cache(weights, files)
        if lacking:
            raise BackendError(
                f"{what}: {some(lacking)} not whole in this machine's cache ({seen_cache()})",
                hint="set HF_HOME to the cache that has them, or fetch them here: "
                + command("magicseg", "fetch", run),
            )


def not_in_cache(weights: Weights, files: Mapping[str, FetchedFile]) -> list[str]:
    """Return the files that this machine's cache lacks, or holds with another size."""
    folder = snapshot(weights)
    return [name for name, file in files.items() if not _has_size(folder / name, file.size)]


def some(names: list[str]) -> str:
    """Return the first of some files and the number of further files, with the verb."""
    return f"{names[0]} is" if len(names) == 1 else f"{names[0]} and {len(names) - 1} more are"


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False
