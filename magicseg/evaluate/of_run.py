"""Evaluating a run's own model, with provenance back to its configuration and data."""

import hashlib
import json
from pathlib import Path
from typing import Any

from magicseg.errors import BackendError, DataError, IncompleteError
from magicseg.evaluate.counts import CONVENTIONS, RECIPE
from magicseg.run.directory import Run
from magicseg.run.files import storage_errors, to_json, write_atomic
from magicseg.run.fingerprint import STAGES
from magicseg.run.versions import library_versions

BENCHMARK = "miniature"


def evaluate_run(run: Run) -> dict[str, Any]:
    """Score the trained model on the held-out scenes and write ``results/miniature.json``.

    Results of the very same model under the very same settings are not computed again.
    Returns: the content of the file: scores as `evaluate_heldout` gives them, ``benchmark``, ``images``,
    ``classes`` (rows of the matrix) and ``provenance``.
    Raises: IncompleteError if there is no finished model.
    """
    folder = run.path / "model"
    if not (folder / "model.json").exists():
        raise IncompleteError(f"{run.path}: there is no trained model yet", hint=f"magicseg train {run.path}")
    try:
        from magicseg.evaluate.heldout import evaluate_heldout
        from magicseg.model.segmenter import load_segmenter, read_card
    except ImportError as error:
        raise BackendError(
            f"evaluation needs torch: {error}", hint="install the model libraries: pip install 'magicseg[models]'"
        ) from error
    card = read_card(folder)
    training = card["provenance"].get("training", {})
    if training.get("data") != run.fingerprints["mask"].digest:
        raise DataError(
            f"{folder}: was trained on other data than this run's", hint=f"magicseg reset train {run.path}"
        )
    provenance = {
        "config": hashlib.sha256(to_json(run.config.model_dump(mode="json"))).hexdigest(),
        "fingerprints": {stage: run.fingerprints[stage].digest for stage in STAGES},
        "plan": run.plan.fingerprint,
        "samples": card["provenance"].get("samples"),
        "train": training.get("train"),
        "evaluate": run.config.evaluate.model_dump(mode="json"),
        "recipe": RECIPE,
        "seed": run.config.seed,
        "weights_digest": card["weights_digest"],
        "versions": library_versions(),
    }
    path = run.path / "results" / f"{BENCHMARK}.json"
    known = _read(path)
    if known is not None and known.get("provenance") == provenance:
        return known
    scores = evaluate_heldout(
        load_segmenter(folder),
        run.vocabulary,
        run.config.evaluate,
        image_size=run.config.generate.size,
        seed=run.config.seed,
        model_seed=run.config.seed,
    )
    results = {
        "benchmark": BENCHMARK,
        "images": run.config.evaluate.scenes,
        "classes": ["background", *run.vocabulary.names],
        **scores,
        "conventions": CONVENTIONS,
        "provenance": json.loads(to_json(provenance)),
    }
    with storage_errors(path, f"free some space, then: magicseg evaluate {run.path}"):
        path.parent.mkdir(exist_ok=True)
        write_atomic(path, json.dumps(results, indent=1, ensure_ascii=False).encode())
    return results


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return content if isinstance(content, dict) else None
