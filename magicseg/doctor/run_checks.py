"""Check a run: settings, committed shards, back ends, weights, profile, disk space for the missing shards."""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import packages_distributions
from importlib.util import find_spec

from magicseg.config.stage_declarations import DECLARATIONS, STAGES
from magicseg.core.checks import Check, Status, ask, attempt
from magicseg.core.text import size_text
from magicseg.data.shared_memory import check_shared_memory, needed_bytes
from magicseg.doctor.worker_checks import worker_checks
from magicseg.installed_backends import with_nested
from magicseg.launch.profile_files import load_profile
from magicseg.run.directory import Run
from magicseg.run.fingerprint import stage_weights
from magicseg.run.ledger import CommitRecord

_IMPORT_SECONDS = 180.0
_ORIGINAL = frozenset({"groundingdino", "segment_anything"})  # modules of the extra of that name


def run_checks(run: Run) -> Iterator[Check]:
    """Run all checks of a run. If its plan is damaged, run only the checks that do not need it."""
    settings = attempt("settings", lambda: _settings(run))
    yield settings
    yield attempt("profile", lambda: profile(run))
    for stage in STAGES:
        yield attempt(f"{stage}: back end", lambda stage=stage: backend(run, stage))  # type: ignore[misc]
        if settings.status is Status.FAILED:
            continue
        work = attempt(f"{stage}: work", lambda stage=stage: committed(run, stage))  # type: ignore[misc]
        yield work
        yield from weights(run, stage, needed=work.status is not Status.OK)
    if settings.status is not Status.FAILED:
        yield from weights(run, "train", needed=False)
        yield attempt("train: shared memory", lambda: shared_memory_of(run))
    yield from worker_checks(run)
    if settings.status is not Status.FAILED:
        yield attempt("room for the rest", lambda: room(run))


def _settings(run: Run) -> Check:
    return Check(
        "settings", Status.OK, f"{run.plan.samples} samples of {len(run.vocabulary)} labels, {run.plan.shards} shards"
    )


def profile(run: Run) -> Check:
    """Check the site profile that the run is submitted with."""
    reference = run.config.slurm.profile or os.environ.get("MAGICSEG_PROFILE")
    if not reference:
        return Check(
            "profile", Status.NOTE, "neither slurm.profile nor MAGICSEG_PROFILE is set: submit needs --profile"
        )
    found = load_profile(reference)
    image = found.container.image if found.container else None
    return Check("profile", Status.OK, f"{reference}{f', image {image}' if image else ''}")


def shared_memory_of(run: Run) -> Check:
    """Check that the batches of one training process of the run fit in shared memory."""
    train = run.config.train
    side = train.crop or (None if train.sources else run.config.generate.size)
    needed = needed_bytes(batch_size=train.batch_size, side=side, readers=train.loader_workers)
    return replace(check_shared_memory(needed), name="train: shared memory")


def backend(run: Run, stage: str) -> Check:
    """Check that a stage's back end is installed and accepts its options, and that its libraries can be imported."""
    name = f"{stage}: back end"
    chosen = DECLARATIONS[stage].settings(run.config).backend
    libraries = libraries_of(run, stage)
    lacking = [library for library in libraries if not _is_installed(library)]
    if lacking:
        return Check(
            name,
            Status.WARNING,
            f"{chosen}; not installed here: {', '.join(lacking)}",
            f"where the stage runs (or in the image): {_install(lacking)}",
        )
    if libraries:
        code, output = ask([sys.executable, "-c", f"import {', '.join(libraries)}"], _IMPORT_SECONDS)
        if code:
            return Check(
                name,
                Status.FAILED,
                f"{chosen}; {', '.join(libraries)} cannot be imported: {output[-300:]}",
                _reinstall(libraries),
            )
    return Check(name, Status.OK, f"{chosen}{'; imports ' + ', '.join(libraries) if libraries else ''}")


def libraries_of(run: Run, stage: str) -> tuple[str, ...]:
    """Return the modules that a stage's back end, and those inside its options, import when they start."""
    backends = with_nested(*DECLARATIONS[stage].backend(run.config))
    return tuple(dict.fromkeys(name for each in backends for name in each.libraries()))


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):  # the parent package is missing, or is not a package
        return False


def _install(modules: Sequence[str]) -> str:
    extras = "models,original" if _ORIGINAL.intersection(modules) else "models"
    return f"pip install 'magicseg[{extras}]'"


def _reinstall(modules: Sequence[str]) -> str:
    """Return the pip command for modules. Distributions are looked up: their names may differ from module names."""
    known = packages_distributions()
    names = [known.get(module.partition(".")[0], ()) for module in modules]
    if not all(names):
        return _install(modules)
    return f"pip install --force-reinstall {' '.join(dict.fromkeys(each for some in names for each in some))}"


def committed(run: Run, stage: str) -> Check:
    """Check that committed shards match the settings. The status is OK only if all shards are committed."""
    commits = run.checked_commits(stage)
    seen = f"{len(commits)} of {run.plan.shards} shards are committed"
    status = Status.OK if len(commits) == run.plan.shards else Status.NOTE
    return Check(f"{stage}: work", status, seen)


def weights(run: Run, stage: str, *, needed: bool) -> Iterator[Check]:
    """Check that pretrained weights are present and match the manifest. Args: needed: the stage is unfinished."""
    name = f"{stage}: weights"

    def look() -> Check:
        run.refuse_unfetched(stage)
        return Check(name, Status.OK, "; ".join(each.name for each in stage_weights(run.config, stage)))

    found = attempt(name, look, Status.FAILED if needed else Status.NOTE)
    if found.seen:
        yield found


def room(run: Run) -> Check:
    """Check that the disk has space for the missing shards, extrapolated from the committed shards."""
    name = "room for the rest"
    state = os.statvfs(run.path)
    free = state.f_bavail * state.f_frsize
    size, files, unknown = 0.0, 0.0, []
    for stage in STAGES:
        commits = run.ledger(stage).commits()
        left = run.plan.shards - len(commits)
        if left and not commits:
            unknown.append(stage)
        elif left:
            size += left * _mean_bytes(commits)
            files += left * sum(len(record.files) + 1 for record in commits.values()) / len(commits)
    seen = f"{size_text(size)} and {files:.0f} files to come, {size_text(free)} free"
    if unknown:
        seen += f"; unknown before the first shard: {', '.join(unknown)}"
    if size > free or (state.f_files and files > state.f_favail):
        return Check(name, Status.FAILED, seen, "free some space, or move the run to a larger disk")
    return Check(name, Status.NOTE if unknown else Status.OK, seen)


def _mean_bytes(commits: Mapping[int, CommitRecord]) -> float:
    return sum(size for record in commits.values() for _, size in record.files.values()) / len(commits)
