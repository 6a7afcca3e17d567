"""The heads to score: the model, and the baselines beside it, on one device.

Only baselines that read a CLIP import open_clip, because the import takes longer than a small evaluation.
"""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from magicseg.config.evaluation import Baseline, EvaluateSettings
from magicseg.core.digests import json_sha256
from magicseg.core.documents import open_regular
from magicseg.core.errors import ConfigError, DataError
from magicseg.core.files import write_atomic
from magicseg.data.kept_samples import KeptSamples
from magicseg.evaluate.heads.head import Head
from magicseg.evaluate.heads.memory_bank import RECIPE, MemoryBank, MemoryBankHead, build_bank
from magicseg.evaluate.heads.segmenter_head import SegmenterHead
from magicseg.evaluate.model_under_test import Target
from magicseg.model.saved_model import load_segmenter
from magicseg.model.segmenter import Segmenter
from magicseg.run.directory import Run


def heads_of(target: Target, settings: EvaluateSettings, *, device: str) -> tuple[Segmenter, list[Head]]:
    """Return the model, and the heads: the model first, then the baselines in the order of the settings.

    Raises ConfigError if this model cannot have a baseline, DataError if the model is damaged.
    """
    model = load_segmenter(target.folder).to(device)
    heads: list[Head] = [SegmenterHead(model, target.weights_digest)]
    heads += [_baseline(name, model, target, settings) for name in dict.fromkeys(settings.baselines)]
    return model, heads


def _baseline(name: Baseline, model: Segmenter, target: Target, settings: EvaluateSettings) -> Head:
    if name != "memory-bank":
        from magicseg.evaluate.heads.dense_clip import DenseClipHead

        return DenseClipHead(model, target.weights_digest, name)
    if target.run is None:
        raise ConfigError(
            "the baseline memory-bank is made of a run's generated images, and this is a model by itself",
            hint="evaluate the run, or leave it out",
        )
    return _memory_bank(model, target, target.run, settings)


def _memory_bank(model: Segmenter, target: Target, run: Run, settings: EvaluateSettings) -> MemoryBankHead:
    """Return the memory bank. RUN/results/memory-bank.safetensors is reused if samples, weights, settings match."""
    from magicseg.evaluate.heads.dense_clip import bank_features

    features, how = bank_features(model)
    identity = {
        **how,
        "weights": target.weights_digest,
        "data": run.fingerprints["mask"].digest,
        "limit": settings.bank_samples,
        "prototypes_of_each": settings.bank_prototypes,
    }
    digest = json_sha256({**identity, "recipe": RECIPE})
    path = target.results / "memory-bank.safetensors"
    bank = _read(path, run, digest)
    if bank is None:
        bank = build_bank(
            KeptSamples.of(run),
            run.vocabulary,
            features,
            stride=model.stride,
            limit=settings.bank_samples,
            prototypes=settings.bank_prototypes,
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {"prototypes": bank.prototypes.contiguous(), "classes": bank.classes}
        header = {"magicseg": json.dumps({"digest": digest, "samples": bank.samples})}
        write_atomic(path, save(tensors, metadata=header))
    return MemoryBankHead(bank, features, stride=model.stride, identity=identity)


def _read(path: Path, run: Run, digest: str) -> MemoryBank | None:
    try:
        open_regular(path).close()  # a pipe would block safetensors
        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()["magicseg"])
            if header["digest"] != digest:
                return None
            return MemoryBank(
                vocabulary=run.vocabulary,
                prototypes=file.get_tensor("prototypes"),
                classes=file.get_tensor("classes"),
                samples=int(header["samples"]),
            )
    except (DataError, OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None  # missing or damaged: the bank is rebuilt
