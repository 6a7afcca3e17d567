"""Requests to the hub: list a repository's files at a commit, with digests, and download them."""

import contextlib
import errno
import glob
import itertools
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from magicseg.core.errors import BackendError, IncompleteError, MagicsegError, StoreError
from magicseg.core.text import command, first_control_character, printable
from magicseg.weights.cache import hub_cache, seen_cache, snapshot
from magicseg.weights.pinned import Weights

if TYPE_CHECKING:
    from huggingface_hub import RepoFile


_MOST_FILES = 100_000  # in a repository


@dataclass(frozen=True)
class HubFile:
    """A file as the hub knows it. ``digest``: SHA-256 (64 digits) or git's SHA-1 (40 digits); None if not known."""

    size: int | None
    digest: str | None


def is_offline() -> bool:
    """Return whether HF_HUB_OFFLINE forbids requests to the hub."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def listing(weights: Weights) -> dict[str, HubFile]:
    """Return a repository's files by name. Raises errors that `hub_errors` explains."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    _quieten()
    tree = HfApi().list_repo_tree(weights.model, revision=weights.revision, recursive=True)
    entries = list(itertools.islice(tree, _MOST_FILES + 1))
    if len(entries) > _MOST_FILES:
        raise BackendError(
            f"{weights.model} at {weights.revision}: the hub lists more than {_MOST_FILES} files",
            hint="check the model's name",
        )
    return _plainly_named(weights, {entry.path: _hub_file(entry) for entry in entries if isinstance(entry, RepoFile)})


def _plainly_named(weights: Weights, files: dict[str, HubFile]) -> dict[str, HubFile]:
    """Raise BackendError for a name outside the repository's folder, or with control characters."""
    for name in files:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or first_control_character(name):
            raise BackendError(
                f"{weights.model} at {weights.revision}: the hub lists a file called {printable(name, 200)!r}",
                hint="choose another model",
            )
    return files


def cached_listing(weights: Weights) -> tuple[dict[str, HubFile], bool]:
    """Return a repository's files from the cache: the listing of a former download, or else the existing files.

    Returns: the files, and whether these are all that the repository has.
    """
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        tree = get_cached_repo_tree(weights.model, revision=weights.revision)
    except (
        CachedRepoTreeNotFoundError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
    ):  # there is none, or damaged
        folder = snapshot(weights)
        found = sorted(path for path in folder.rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): HubFile(None, _link_digest(path)) for path in found}, False
    return _plainly_named(weights, {entry.path: _hub_file(entry) for entry in tree}), True


def download(weights: Weights, names: Sequence[str]) -> None:
    """Download missing files into the hub's cache. Raises errors that `hub_errors` explains."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    _quieten()
    if not sys.stderr.isatty():
        disable_progress_bars()
    snapshot_download(weights.model, revision=weights.revision, allow_patterns=[glob.escape(name) for name in names])


@contextlib.contextmanager
def hub_errors(weights: Weights, where: str, run: Path) -> Iterator[None]:
    """Convert errors of huggingface_hub into a `MagicsegError` with a remedy.

    No text of the library is quoted, since it may hold a signed address. Args: where: the setting, for messages.
    """
    try:
        yield
    except MagicsegError:
        raise
    except Exception as error:  # of the network, the hub, the disk: many classes
        raise _explained(
            error, f"{where}: {weights.model} at {weights.revision}", command("magicseg", "fetch", run)
        ) from error


def _quieten() -> None:
    """Silence the library's warnings, because they quote addresses that may be signed."""
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


def _hub_file(entry: "RepoFile") -> HubFile:
    return HubFile(entry.size, entry.lfs.sha256 if entry.lfs else entry.blob_id)


def _link_digest(path: Path) -> str | None:
    """Return the digest of a cached file. The cache stores contents by digest, and files as links to them."""
    name = Path(os.readlink(path)).name if path.is_symlink() else ""
    return name if len(name) in {40, 64} and set(name) <= set("0123456789abcdef") else None


def _explained(error: Exception, what: str, again: str) -> MagicsegError:
    import httpx2
    from huggingface_hub import errors

    for one in _with_causes(error):
        match one:
            case errors.GatedRepoError():
                return BackendError(
                    f"{what} is gated: the hub gives it to those only who accepted its licence",
                    hint=f"accept the licence on the model's page, set HF_TOKEN to a token of that account, "
                    f"then: {again}",
                )
            case errors.RevisionNotFoundError():
                return BackendError(
                    f"{what}: the hub knows the model, but no such commit",
                    hint="take the commit, all 40 digits, from the history of its files on the hub",
                )
            case errors.RepositoryNotFoundError():
                return BackendError(
                    f"{what}: the hub knows no such model, or does not show it to everybody",
                    hint=f"check the name; if it is private, set HF_TOKEN to a token that may read it, then: {again}",
                )
            case errors.HfHubHTTPError() if one.response.status_code in {401, 403}:
                return BackendError(
                    f"{what}: the hub refuses (HTTP {one.response.status_code})",
                    hint=f"set HF_TOKEN to a valid token, accept the licence if the model has one, then: {again}",
                )
            case errors.HfHubHTTPError():
                return IncompleteError(
                    f"{what}: the hub answers with HTTP {one.response.status_code}", hint=f"later again: {again}"
                )
            case errors.HFValidationError():
                return BackendError(f"{what}: is no name that the hub could have", hint="check its spelling")
            case httpx2.TransportError() | errors.OfflineModeIsEnabled():
                return IncompleteError(
                    f"{what}: the hub cannot be reached ({type(one).__name__})",
                    hint=f"on a machine with a network (and HTTPS_PROXY, if it needs one): {again}",
                )
            case OSError() if one.errno in {errno.ENOSPC, errno.EDQUOT}:
                return StoreError(
                    f"{what}: {hub_cache()} is full, or your quota is",
                    hint=f"free some space, or set HF_HOME to a larger place, here and in jobs; then: {again}",
                )
            case OSError() if one.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
                return StoreError(
                    f"{what}: {one.filename or hub_cache()} cannot be written: {one.strerror}",
                    hint=f"set HF_HOME to a place of your own ({seen_cache()}), then: {again}",
                )
            case _:
                continue
    return IncompleteError(f"{what} cannot be fetched: {type(error).__name__}", hint=f"once more: {again}")


def _with_causes(error: BaseException) -> Iterator[BaseException]:
    one: BaseException | None = error
    while one is not None:
        yield one
        one = one.__cause__ or one.__context__
