"""Names of weights that pin their content, and the choice of the files that belong to them."""

import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase
from glob import has_magic
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import Field, model_validator

from magicseg.core.paths import absolute
from magicseg.core.settings import Settings

# What model libraries read of a folder; other files (README, .cache) may change without notice.
READ = tuple(f"*.{suffix}" for suffix in ("json", "safetensors", "model", "txt", "jinja", "tiktoken"))
# Read only where there are no safetensors.
ELSE_READ = tuple(f"*.{suffix}" for suffix in ("bin", "pth", "pt", "gguf"))

SHIPPED = "shipped:"
"""The prefix of the names of weights inside the package: ``shipped:clip``."""

_NAME = re.compile(r"\w[\w.-]*(?:/\w[\w.-]*)?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
# model.fp16.safetensors, model.fp16-00001-of-00002.safetensors
_INFIX = re.compile(r"[^.]+?(?:\.(\w+))?(?:-\d+-of-\d+)?\.safetensors")


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Pretrained weights that a back end needs.

    ``setting``: the option that names them, such as ``model`` or ``detector.options.model``; ``revision`` is beside
    it. The fingerprint has the identity of the weights instead of both, because weights may move.
    ``model``: a name on the hub, the absolute path of a folder or of one file, or `SHIPPED` and a name.
    ``revision``: for a name on the hub: the commit, 40 hexadecimal digits.
    ``files``: names or glob patterns of the files that are read. ``*`` stops at a slash; named files are required.
    If empty, the files that model libraries read from a folder.
    ``variant``: an infix of safetensors (``model.fp16.safetensors``). Files with it are read if a folder has some.
    Without a variant, files without an infix are read.
    """

    setting: str
    model: str
    revision: str | None = None
    files: tuple[str, ...] = ()
    variant: str | None = None

    @property
    def by_name(self) -> bool:
        """Whether they are named on the hub, not by a path."""
        return self.revision is not None

    @property
    def path(self) -> Path:
        """The folder or file of weights that are not `by_name`."""
        return place_of(self.model)

    @property
    def name(self) -> str:
        """``NAME@COMMIT``, the path, or the shipped name."""
        return f"{self.model}@{self.revision}" if self.by_name else self.model

    @property
    def depth(self) -> int:
        """The greatest depth of the files in folders; 1 is the folder itself."""
        return max((pattern.count("/") + 1 for pattern in self.files), default=1)

    def chosen(self, names: Collection[str]) -> list[str]:
        """Return the files that are read, sorted. Args: names: relative paths of all files in the folder."""
        if self.files:
            found = _matching(names, self.files)
        else:
            found = _matching(names, READ)
            if not any(name.endswith(".safetensors") for name in found):
                found |= _matching(names, ELSE_READ)
        return sorted(found - self._of_other_variants(found))

    def lacking(self, names: Collection[str]) -> list[str]:
        """Return required files that are missing from ``names``."""
        return [file for file in self.files if not has_magic(file) and file not in names]

    def _of_other_variants(self, names: set[str]) -> set[str]:
        others: set[str] = set()
        by_folder: dict[PurePosixPath, dict[str, str | None]] = {}
        for name in names - set(self.files):
            path = PurePosixPath(name)
            if path.suffix == ".safetensors":
                match = _INFIX.fullmatch(path.name)
                by_folder.setdefault(path.parent, {})[name] = match[1] if match else None
        for infixes in by_folder.values():
            for wanted in (self.variant, None):
                if wanted in infixes.values():
                    others |= {name for name, infix in infixes.items() if infix != wanted}
                    break
        return others


class PinnedSettings(Settings):
    """Options of a back end that loads weights."""

    model: str = Field(description="a name on the hub, the path of a folder or a file, or shipped:NAME")
    revision: str | None = Field(None, description="of a name: the commit, 40 hexadecimal digits")

    @model_validator(mode="before")
    @classmethod
    def _pinned(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("model"), str):
            return values | {"model": pinned(values["model"], values.get("revision"))}
        return values


def pinned(model: str, revision: object) -> str:
    """Check the name of weights in settings: a path, a name on the hub with a commit, or a shipped name.

    Returns: the name, or the absolute path (jobs start elsewhere).
    Raises: ValueError.
    """
    if model.startswith(SHIPPED):
        if revision is not None:
            raise ValueError(f"revision goes with a name on the hub, but model is {model!r}")
        if model.removeprefix(SHIPPED) not in shipped_names():
            known = ", ".join(map(_shipped, shipped_names())) or "none are"
            raise ValueError(f"no weights called {model!r} are shipped: {known}")
        return model
    is_commit = isinstance(revision, str) and _COMMIT.fullmatch(revision) is not None
    if is_commit and _NAME.fullmatch(model):  # also where a folder happens to be called the same
        return model
    if model.startswith(("/", "./", "../", "~")) or os.path.exists(model):
        if revision is not None:
            raise ValueError(f"revision goes with a name on the hub, but model is a path: {model!r}")
        return absolute(model)
    if not _NAME.fullmatch(model):
        raise ValueError(f"model is neither a path nor a name on the hub: {model!r}")
    raise ValueError(
        f"model {model!r} needs a revision: the commit, 40 hexadecimal digits, from the history of its files on the "
        f"hub, so that the weights cannot change; got {revision!r}"
    )


def shipped_names() -> list[str]:
    """Return the names of the weights inside the package."""
    folder = _shipped_folder()
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []


def place_of(model: str) -> Path:
    """Return the folder or file of weights that are named by a path or a shipped name."""
    return _shipped_folder() / model.removeprefix(SHIPPED) if model.startswith(SHIPPED) else Path(model)


def only_variant(names: Collection[str]) -> str | None:
    """Return the variant infix of a folder's safetensors, if some folder has only files with an infix."""
    infixes: dict[PurePosixPath, set[str | None]] = {}
    for name in map(PurePosixPath, names):
        if name.suffix == ".safetensors":
            match = _INFIX.fullmatch(name.name)
            infixes.setdefault(name.parent, set()).add(match[1] if match else None)
    found = sorted(str(each) for given in infixes.values() if None not in given for each in given)
    return found[0] if found else None


def _shipped_folder() -> Path:
    return Path(str(files("magicseg.miniature").joinpath("weights")))


def _shipped(name: str) -> str:
    return SHIPPED + name


def _matching(names: Collection[str], patterns: Collection[str]) -> set[str]:
    return {name for name in names if any(_matches(name.split("/"), pattern.split("/")) for pattern in patterns)}


def _matches(parts: list[str], patterns: list[str]) -> bool:
    return len(parts) == len(patterns) and all(map(fnmatchcase, parts, patterns))
