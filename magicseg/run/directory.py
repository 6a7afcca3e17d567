"""The run directory: making it, opening it, refusing what does not fit.

RUN/magicseg.yaml   the configuration with every default written out
RUN/weights.json    the pretrained weights that were fetched
RUN/image.json      the image that jobs run in
RUN/plan/           samples and labels, frozen
RUN/dataset.zarr/   the store
RUN/ledger/STAGE/   commit records
RUN/checkpoints/  RUN/model/  RUN/train.jsonl   training: where it is, what came of it, its log
RUN/results/BENCHMARK.json  RUN/report.html
RUN/estimate.json   what the pilots of `magicseg estimate` have measured
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from magicseg.config.evaluation import is_protocol_file
from magicseg.config.loading import read_config
from magicseg.config.run import Config
from magicseg.config.stage_declarations import STAGES, stage_above
from magicseg.core.dotted_keys import flattened
from magicseg.core.errors import PlanMismatch, RunError
from magicseg.core.files import TEMPORARY, storage_errors, write_atomic
from magicseg.core.paths import absolute
from magicseg.core.text import command
from magicseg.labels import Vocabulary, is_label_file, load_vocabulary
from magicseg.run.claims import holder
from magicseg.run.container_image import IMAGE_NAME
from magicseg.run.fingerprint import (
    Fingerprint,
    changed_keys,
    resolve_backends,
    stage_fingerprints,
    stage_weights,
)
from magicseg.run.ledger import CommitRecord, Ledger
from magicseg.store.plan import Plan, plan_inputs, read_plan, write_plan
from magicseg.weights.manifest import MANIFEST, Manifest

if TYPE_CHECKING:
    from magicseg.store.zarr_store import Dataset

CONFIG_NAME = "magicseg.yaml"
ESTIMATE_NAME = "estimate.json"
_TRAINED = ("checkpoints", "model", "train.jsonl")
_OWN_NAMES = {
    CONFIG_NAME,
    ESTIMATE_NAME,
    IMAGE_NAME,
    MANIFEST,
    "plan",
    "dataset.zarr",
    "ledger",
    "jobs",
    *_TRAINED,
    "results",
    "report.html",
}


@dataclass(frozen=True)
class Run:
    """An opened run. Cheap: nothing but the configuration is read until it is asked for."""

    path: Path
    config: Config

    @classmethod
    def open(cls, path: Path) -> "Run":
        """Open an existing run. Raises: RunError if ``path`` is not one."""
        if not (path / CONFIG_NAME).is_file():
            raise RunError(
                f"{path}: is not a run (no {CONFIG_NAME})",
                hint=command("magicseg", "init", path, "--preset", "miniature"),
            )
        return cls(path.resolve(), read_config(path / CONFIG_NAME))

    @classmethod
    def create(cls, path: Path, config: Config, vocabulary: Vocabulary | None = None) -> "Run":
        """Make a run, or open it if it exists with the same configuration.

        Args: vocabulary: the labels, if they are at hand already.

        Raises: PlanMismatch if it exists with another one, RunError if ``path`` holds something else.
        """
        config = _with_absolute_paths(resolve_backends(config))
        if (path / CONFIG_NAME).exists():
            run = cls.open(path)
            differing = changed_keys(*(flattened(each.model_dump(mode="json")) for each in (run.config, config)))
            if differing:
                raise PlanMismatch(
                    f"{path}: exists with other settings: {'; '.join(differing[:5])}",
                    hint=f"choose another directory, or edit {path / CONFIG_NAME}",
                )
            return run
        if path.exists() and not path.is_dir():
            raise RunError(f"{path}: is a file", hint="choose another directory")
        names = sorted(entry.name for entry in path.iterdir()) if path.exists() else []
        # A killed init leaves our own names, and perhaps a temporary file.
        foreign = [name for name in names if name not in _OWN_NAMES and not name.endswith(TEMPORARY)]
        if foreign:
            raise RunError(
                f"{path}: is not empty and not a run (it holds {foreign[0]!r})",
                hint="choose another directory",
            )
        vocabulary = vocabulary or load_vocabulary(config.labels.vocabulary)
        with storage_errors(path, command("magicseg", "init", path)):
            path.mkdir(parents=True, exist_ok=True)
            run = cls(path.resolve(), config)
            run.lay_out(vocabulary)
            # Last, since this file is what makes the directory a run.
            write_atomic(path / CONFIG_NAME, config.to_yaml().encode())
        return run

    def lay_out(self, vocabulary: Vocabulary) -> None:
        """Freeze the plan and create the empty store and ledgers."""
        from magicseg.store.zarr_store import Dataset

        write_plan(self.path / "plan", self.config, vocabulary)
        plan = read_plan(self.path / "plan")
        Dataset(self.path / "dataset.zarr", plan.shard_size, self.config.generate.size).create(plan, self.config)
        for stage in STAGES:
            Ledger(self.path / "ledger" / stage, plan.samples, plan.shard_size).create()

    @cached_property
    def plan(self) -> Plan:
        """The frozen plan. Raises: PlanMismatch if the configuration no longer fits it."""
        plan = read_plan(self.path / "plan")
        inputs = plan_inputs(self.config, plan.vocabulary)
        differing = changed_keys(plan.inputs, inputs)
        if differing:
            raise PlanMismatch(
                f"{self.path}: the plan is frozen, but {'; '.join(differing)}",
                hint=f"set it back in {self.path / CONFIG_NAME}, or drop all data: "
                + command("magicseg", "reset", "plan", self.path),
            )
        return plan

    @property
    def vocabulary(self) -> Vocabulary:
        """The labels that were planned."""
        return self.plan.vocabulary

    @cached_property
    def fingerprints(self) -> dict[str, Fingerprint]:
        """Every stage's fingerprint under the present configuration."""
        return stage_fingerprints(self.config, self.plan.fingerprint, self.manifest)

    @cached_property
    def manifest(self) -> Manifest:
        """The weights that were fetched. Raises: RunError if the file is damaged."""
        return Manifest.read(self.path)

    def refuse_unfetched(self, stage: str) -> None:
        """Raise BackendError if the stage needs weights that were not fetched, or are not in this machine's cache."""
        for weights in stage_weights(self.config, stage):
            self.manifest.refuse_unfetched(weights, weights.setting, self.path)

    @cached_property
    def store(self) -> "Dataset":
        """The data set's arrays."""
        from magicseg.store.zarr_store import Dataset

        return Dataset(self.path / "dataset.zarr", self.plan.shard_size, self.config.generate.size)

    def ledger(self, stage: str) -> Ledger:
        """A stage's ledger."""
        return Ledger(self.path / "ledger" / stage, self.plan.samples, self.plan.shard_size)

    def refuse_live_claims(self, stages: Sequence[str], then: str) -> None:
        """Raise RunError if a process works on one of the stages. Args: then: the command to type afterwards."""
        for stage in stages:
            ledger = self.ledger(stage)
            for shard in ledger.live_claims():
                raise RunError(
                    f"{self.path}: shard {shard} of {stage} is being worked on: {holder(ledger.claim_path(shard))}",
                    hint=f"wait for it, or stop it; then: {then}",
                )

    def checked_commits(self, stage: str) -> dict[int, CommitRecord]:
        """A stage's commits. Raises: PlanMismatch if some were made with other settings."""
        ledger = self.ledger(stage)
        commits = ledger.commits()
        self.refuse_stale(stage, commits)
        return commits

    def refuse_stale(self, stage: str, commits: Mapping[int, CommitRecord]) -> None:
        """Raise PlanMismatch, naming the keys, if ``commits`` were made with other settings."""
        present = self.fingerprints[stage]
        stale = [record for record in commits.values() if record.fingerprint != present.digest]
        if not stale:
            return
        before = self.ledger(stage).fingerprints(commits).get(stale[0].fingerprint, {})
        differing = [phrase for phrase in changed_keys(before, present.inputs) if not phrase.startswith("upstream ")]
        if not differing:  # only what it rests on has changed: say what, one stage up
            above = stage_above(stage)
            if above is not None:
                self.refuse_stale(above, self.ledger(above).commits())
            differing = ["the stage before it was done again"]
        lost = [key for key in before if key.startswith(f"{stage}.weights.") and key not in present.inputs]
        way_back = command("magicseg", "fetch", self.path) if lost else f"set it back in {self.path / CONFIG_NAME}"
        raise PlanMismatch(
            f"{self.path}: {len(stale)} of {self.plan.shards} shards of {stage} were made with other settings: "
            f"{'; '.join(differing)}",
            hint=f"{way_back}, or: {command('magicseg', 'reset', stage, self.path)}",
        )

    def reset(self, stage: str) -> list[str]:
        """Drop a stage's data and commits, and those of all stages after it; ``plan`` drops everything and replans.

        Returns: what was dropped.
        """
        with storage_errors(self.path, command("magicseg", "reset", stage, self.path)):
            if stage == "plan":
                vocabulary = load_vocabulary(self.config.labels.vocabulary)
                for name in ("ledger", "dataset.zarr", "plan"):
                    remove(self.path / name)
                self.lay_out(vocabulary)
                dropped = ["plan", *STAGES]
            else:
                dropped = list(STAGES[STAGES.index(stage) :]) if stage in STAGES else []
                self.refuse_live_claims(dropped, command("magicseg", "reset", stage, self.path))
                above = stage_above(stage) if dropped else None
                if above is not None:  # the stage cannot be done again on stale data
                    self.refuse_stale(above, self.ledger(above).commits())
                for name in reversed(dropped):
                    remove(self.path / "ledger" / name)
                    self.ledger(name).create()
                    self.store.recreate(name, self.plan, self.config)
            if stage != "evaluate":
                for name in _TRAINED:
                    remove(self.path / name)
                dropped.append("train")
            remove(self.path / "results")
            dropped.append("evaluate")
        return dropped


def _with_absolute_paths(config: Config) -> Config:
    """A user's own files and folders by absolute paths, so that a later command finds them from anywhere."""
    reference, profile = config.labels.vocabulary, config.slurm.profile
    changes: dict[str, object] = {}
    if is_label_file(reference):
        changes["labels"] = config.labels.model_copy(update={"vocabulary": absolute(reference)})
    if profile is not None and ("/" in profile or profile.endswith(".yaml")):
        changes["slurm"] = config.slurm.model_copy(update={"profile": absolute(profile)})
    benchmarks = tuple(absolute(name) if is_protocol_file(name) else name for name in config.evaluate.benchmarks)
    if benchmarks != config.evaluate.benchmarks:
        changes["evaluate"] = config.evaluate.model_copy(update={"benchmarks": benchmarks})
    if config.train.sources:
        sources = tuple(source.absolute() for source in config.train.sources)
        changes["train"] = config.train.model_copy(update={"sources": sources})
    return config.model_copy(update=changes)


def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
