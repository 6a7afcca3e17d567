"""What is evaluated: a run's model, or a model's folder by itself. No torch in here."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from magicseg.config.stage_declarations import STAGES
from magicseg.config.training_data import SELF
from magicseg.core.digests import json_sha256
from magicseg.core.errors import DataError, IncompleteError
from magicseg.core.text import command
from magicseg.model.card import read_card
from magicseg.run.directory import Run
from magicseg.run.versions import library_versions


@dataclass(frozen=True, kw_only=True)
class Target:
    """``folder``: the model's. ``results``: where results go. ``run``: the run that it was trained in, if known.
    ``provenance``: from the results back to the weights, settings and data, as JSON values.
    """

    path: Path
    folder: Path
    results: Path
    weights_digest: str
    provenance: Mapping[str, Any]
    run: Run | None = None

    @classmethod
    def of(cls, path: Path, *, out: Path | None = None) -> "Target":
        """A run's directory, or a model's folder. Args: out: for results, instead of PATH/results.

        Raises: IncompleteError if the run has no finished model; DataError if it is of other data, or there is none.
        """
        results = out or path / "results"
        if (path / "magicseg.yaml").exists():
            return cls._of_run(Run.open(path), results)
        card = read_card(path)
        provenance = {
            "weights_digest": card["weights_digest"],
            "training": card.get("provenance", {}),
            "versions": library_versions(),
        }
        return cls(
            path=path,
            folder=path,
            results=results,
            weights_digest=card["weights_digest"],
            provenance=provenance,
        )

    @classmethod
    def _of_run(cls, run: Run, results: Path) -> "Target":
        folder = run.path / "model"
        if not (folder / "model.json").exists():
            raise IncompleteError(
                f"{run.path}: there is no trained model yet", hint=command("magicseg", "train", run.path)
            )
        card = read_card(folder)
        training = card["provenance"].get("training", {})
        if _is_of_other_data(card, run):
            raise DataError(
                f"{folder}: was trained on other data than this run's",
                hint=command("magicseg", "reset", "train", run.path),
            )
        provenance = {
            "config": json_sha256(run.config.model_dump(mode="json")),
            "settings": run.config.model_dump(mode="json", exclude={"evaluate", "slurm"}),
            "fingerprints": {stage: run.fingerprints[stage].digest for stage in STAGES},
            "plan": run.plan.fingerprint,
            "samples": card["provenance"].get("samples"),
            "sources": card["provenance"].get("sources"),
            "train": training.get("train"),
            "seed": run.config.seed,
            "weights_digest": card["weights_digest"],
            "versions": library_versions(),
        }
        return cls(
            path=run.path,
            folder=folder,
            results=results,
            weights_digest=card["weights_digest"],
            provenance=provenance,
            run=run,
        )


def _is_of_other_data(card: Mapping[str, Any], run: Run) -> bool:
    """Whether a model was trained on other samples than the run has now. Its other sources are not looked at."""
    own = run.fingerprints["mask"].digest
    if not run.config.train.sources:
        return bool(card["provenance"].get("training", {}).get("data") != own)
    has_own = any(source.run == SELF for source in run.config.train.sources)
    return has_own and own not in {source.get("masks") for source in card["provenance"].get("sources") or ()}
