"""Save a segmenter as safetensors beside a JSON file, and load it.

    digest = save_segmenter(model, folder)
    model = load_segmenter(folder)

The folder holds ``model.json`` (format version, settings, the encoder's own configuration, digest of the weights,
the caller's provenance), ``model.safetensors`` with all weights including a frozen encoder's, ``README.md``, and
``tokenizer/`` if the encoder needs one. Nothing else is needed to load it, and nothing is ever pickled.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import safetensors
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from magicseg.config.model import ModelSettings, OpenClipSettings
from magicseg.core.digests import file_sha256
from magicseg.core.documents import open_regular
from magicseg.core.errors import DataError
from magicseg.core.files import write_atomic
from magicseg.model.card import FORMAT, model_card, read_card
from magicseg.model.encoder import MiniatureEncoder, open_clip_encoders
from magicseg.model.finite_check import refuse_weights_not_finite
from magicseg.model.segmenter import Segmenter
from magicseg.weights.foreign import refuse_foreign_code


def weights_digest(model: nn.Module) -> str:
    """Return ``sha256:...`` of the names, shapes, types and bytes of all parameters and buffers."""
    return _digest(save(_tensors(model)))


def save_segmenter(
    model: Segmenter,
    folder: Path,
    *,
    provenance: Mapping[str, Any] | None = None,
    figures: Mapping[str, float] | None = None,
) -> str:
    """Write the weights, the tokenizer if the encoder needs one, ``README.md`` and ``model.json``, each atomically.

    ``model.json`` comes last and holds the weights' digest.

    Args: provenance: the origin of the weights, plain JSON. figures: scores by name, for ``README.md``.
    Returns: the weights' digest, see `weights_digest`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = save(_tensors(model))
    card: dict[str, Any] = {
        "format": FORMAT,
        "settings": model.settings.model_dump(mode="json"),
        "weights": "model.safetensors",
        "weights_digest": _digest(weights),
        "provenance": dict(provenance or {}),
    }
    if not isinstance(model.encoder, MiniatureEncoder):
        encoder = cast("Any", model.encoder)
        card["encoder"] = encoder.blueprint.to_dict()
        card["tokenizer"] = "tokenizer" if encoder.save_tokenizer(folder / "tokenizer") else None
    write_atomic(folder / "model.safetensors", weights)
    write_atomic(folder / "README.md", model_card(card, figures=figures or {}).encode())
    write_atomic(folder / "model.json", (json.dumps(card, indent=2) + "\n").encode())
    return str(card["weights_digest"])


def load_segmenter(folder: str | Path) -> Segmenter:
    """Load a folder that `save_segmenter` wrote, now or in format 1. The model is on the CPU, in inference mode.

    Raises: DataError if a file is missing or has another format, or if the weights are not finite or do not match the
    digest; BackendError if open_clip is missing or the tokenizer cannot be loaded.
    """
    folder = Path(folder)
    card = read_card(folder)
    path = folder / str(card["weights"])
    try:
        open_regular(path).close()  # safetensors would wait for the writer of a pipe
        settings = ModelSettings.model_validate(card["settings"])
        _refuse_misfit(settings, card, path)
        model = Segmenter(settings, encoder=_saved_encoder(settings, card, folder))
        model.load_state_dict(load_file(path))
        digest = f"sha256:{file_sha256(path)}"
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, safetensors.SafetensorError) as error:
        raise DataError(f"{path}: cannot be loaded: {error}") from error
    if digest != card["weights_digest"]:
        raise DataError(
            f"{path}: the digest of the weights is not the one in model.json",
            hint="train again, or restore both files from the same save",
        )
    refuse_weights_not_finite(model, str(path))
    return model.eval()


def _refuse_misfit(settings: ModelSettings, card: Mapping[str, Any], path: Path) -> None:
    """Raise DataError unless the model of these settings has exactly the tensors in the file's header.

    The model is built without memory for its weights, so that settings cannot claim more than the file holds.
    """
    with safetensors.safe_open(path, framework="pt") as file:
        stored = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    layers = max(settings.decoder_layers, getattr(settings.encoder, "layers", 0))
    if layers > len(stored):
        raise DataError(f"{path}: model.json has {layers} layers, and the file has {len(stored)} tensors")
    with torch.device("meta"):
        model = Segmenter(settings, encoder=_saved_encoder(settings, card, None))
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    other = sorted(name for name in wanted.keys() | stored.keys() if wanted.get(name) != stored.get(name))
    if other:
        raise DataError(
            f"{path}: {len(other)} tensors differ from the model that model.json describes, such as {other[0]}: "
            f"{stored.get(other[0], 'missing')}, not {wanted.get(other[0], 'known')}",
            hint="restore both files from the same save",
        )


def _saved_encoder(settings: ModelSettings, card: Mapping[str, Any], folder: Path | None) -> nn.Module | None:
    """Return the encoder of a saved model, without its weights; None if its settings describe it completely.

    Args: folder: of the saved model, to load the tokenizer from. None: the encoder gets no tokenizer.
    """
    if not isinstance(settings.encoder, OpenClipSettings):
        return None
    tokenizer = folder / str(card["tokenizer"]) if folder is not None and card.get("tokenizer") else None
    if tokenizer is not None:
        refuse_foreign_code(tokenizer, "the saved model's tokenizer")
    encoder = open_clip_encoders().empty_encoder(settings.encoder, card["encoder"], tokenizer)
    if folder is not None:
        _ = encoder.tokenize
    return cast("nn.Module", encoder)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}


def _digest(weights: bytes) -> str:
    return "sha256:" + hashlib.sha256(weights).hexdigest()
