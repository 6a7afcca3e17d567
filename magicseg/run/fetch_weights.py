"""``magicseg fetch``: get the weights of a run, verify them, write down what they are."""

import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path

from magicseg.core.digests import file_sha256_and_git_sha1
from magicseg.core.errors import BackendError, DamageError, IncompleteError, StoreError
from magicseg.core.text import command, size_text
from magicseg.run.directory import Run
from magicseg.run.fingerprint import WEIGHTED, stage_weights
from magicseg.weights.cache import hub_cache, seen_cache, snapshot
from magicseg.weights.hashing import path_identity
from magicseg.weights.hub import HubFile, cached_listing, download, hub_errors, is_offline, listing
from magicseg.weights.manifest import MANIFEST, Fetched, FetchedFile, Manifest, not_in_cache, some
from magicseg.weights.pinned import Weights


def fetch(run: Run, *, verify: bool = False, report: Callable[[str], None] = lambda line: None) -> Manifest:
    """Get all weights that the run's stages name on the hub, and write RUN/weights.json.

    Args: verify: also hash again what was fetched before. report: gets lines about what happens.
    Returns: the manifest.
    Raises: DamageError for contents that are not what the hub or the manifest says; BackendError for names and
    rights that are wrong; IncompleteError without network; StoreError if the disk refuses.
    """
    manifest = Manifest.read(run.path)
    needed = {weights.setting: weights for stage in WEIGHTED for weights in stage_weights(run.config, stage)}
    if not needed:
        report("this run needs no weights")
    for where, weights in needed.items():
        if weights.by_name:
            fetched = _fetched(weights, where, run.path, manifest, verify=verify, report=report)
            manifest = replace(manifest, names={**manifest.names, weights.name: fetched})
        else:
            identity = path_identity(weights, where)
            manifest = replace(manifest, paths={**manifest.paths, weights.model: identity})
            report(f"{where}: {weights.model} is {identity}")
        manifest.write(run.path)
    return manifest


def _fetched(
    weights: Weights, where: str, run: Path, manifest: Manifest, *, verify: bool, report: Callable[[str], None]
) -> Fetched:
    """What the manifest is to hold of weights by name, once they are in the cache and verified."""
    title = f"{where}: {weights.model} at {str(weights.revision)[:12]}"
    before = manifest.names.get(weights.name, Fetched({}))
    known = before.files_of(weights)
    is_whole = known is not None and not not_in_cache(weights, known)
    if known and is_whole and not verify:
        report(f"{title}: nothing to do, {_amount(known.values())} are there")
        return before
    by_cache = is_whole or is_offline()
    if by_cache:
        files, complete = cached_listing(weights)
    else:
        report(f"{title}: asking the hub")
        with hub_errors(weights, where, run):
            files, complete = listing(weights), True
    chosen = _chosen(weights, where, files)
    if by_cache:
        _refuse_lacking(weights, where, run, chosen)
    else:
        _refuse_full_disk(weights, where, run, {name: files[name] for name in chosen})
        report(f"{title}: {len(chosen)} files, {size_text(sum(files[name].size or 0 for name in chosen))}")
        with hub_errors(weights, where, run):
            download(weights, chosen)
    found = _verified(weights, where, run, {name: files[name] for name in chosen})
    _refuse_other_content(weights, where, run, before.files, found)
    report(f"{title}: {_amount(found.values())} are there and verified")
    unknown = [name for name in chosen if files[name].digest is None]
    if unknown:
        report(f"{title}: of {some(unknown)} no digest known here to compare with")
    if not complete:
        report(f"{title}: whether more files belong to it is not known without the network")
    others = set(files) | set(before.others) | set(before.files)
    together = {**before.files, **found}
    return Fetched(together, tuple(sorted(others - together.keys())))


def _chosen(weights: Weights, where: str, names: Collection[str]) -> list[str]:
    chosen = weights.chosen(names)
    lacking = weights.lacking(names)
    if lacking or not chosen:
        told = f"has no file {lacking[0]!r}" if lacking else "has no files of weights"
        if is_offline():
            raise IncompleteError(
                f"{where}: {weights.model} at {weights.revision} {told} in this machine's cache ({seen_cache()}), "
                "and HF_HUB_OFFLINE is set",
                hint="unset HF_HUB_OFFLINE where there is a network, or set HF_HOME to the cache that has them",
            )
        raise BackendError(
            f"{where}: {weights.model} at {weights.revision} {told}",
            hint=f"it has: {', '.join(sorted(names)[:20]) or 'no files'}",
        )
    return chosen


def _refuse_lacking(weights: Weights, where: str, run: Path, names: Collection[str]) -> None:
    folder = snapshot(weights)
    lacking = [name for name in names if not (folder / name).is_file()]
    if lacking:
        raise IncompleteError(
            f"{where}: {weights.model} at {weights.revision}: {some(lacking)} not in this machine's cache "
            f"({seen_cache()}), and HF_HUB_OFFLINE is set",
            hint=f"where there is a network, without HF_HUB_OFFLINE: {command('magicseg', 'fetch', run)}",
        )


def _refuse_full_disk(weights: Weights, where: str, run: Path, files: Mapping[str, HubFile]) -> None:
    """Raises: StoreError before a download that cannot end well."""
    folder = snapshot(weights)
    needed = sum(file.size or 0 for name, file in files.items() if not (folder / name).is_file())
    place = hub_cache()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if needed > free:
        raise StoreError(
            f"{where}: {weights.model} at {weights.revision} takes {size_text(needed)} more, and {hub_cache()} has "
            f"{size_text(free)} free",
            hint="free some space, or set HF_HOME to a larger place, here and in jobs; then: "
            + command("magicseg", "fetch", run),
        )


def _verified(weights: Weights, where: str, run: Path, files: Mapping[str, HubFile]) -> dict[str, FetchedFile]:
    """Hash files in the cache. Raises: DamageError if one is not what the hub says."""
    folder = snapshot(weights)
    found: dict[str, FetchedFile] = {}
    damaged: list[Path] = []
    try:
        for name, file in files.items():
            path = folder / name
            sha256, git_sha1 = file_sha256_and_git_sha1(path)
            if file.digest not in {None, sha256, git_sha1}:
                damaged.append(path.resolve())
            found[name] = FetchedFile(sha256, path.stat().st_size)
    except OSError as error:
        raise DamageError(
            f"{where}: {error.filename}: cannot be read: {error.strerror}", hint=command("magicseg", "fetch", run)
        ) from error
    if damaged:
        raise DamageError(
            f"{where}: {weights.model} at {weights.revision}: {some([str(path) for path in damaged])} not what the "
            "hub has: their digests differ",
            hint=f"{command('rm', '-f', *damaged)} && {command('magicseg', 'fetch', run)}",
        )
    return found


def _refuse_other_content(
    weights: Weights, where: str, run: Path, before: Mapping[str, FetchedFile], found: Mapping[str, FetchedFile]
) -> None:
    differing = [name for name, file in found.items() if before.get(name, file) != file]
    if differing:
        raise DamageError(
            f"{where}: {weights.model} at {weights.revision}: {some(differing)} not what was fetched for this run "
            f"before, says {run / MANIFEST}",
            hint=f"if that file is wrong: {command('rm', run / MANIFEST)} && {command('magicseg', 'fetch', run)}",
        )


def _amount(files: Collection[FetchedFile]) -> str:
    return f"{len(files)} files, {size_text(sum(file.size for file in files))},"
