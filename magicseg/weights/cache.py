"""The location of weights on this machine: their path, or the hub's cache."""

import os
from pathlib import Path

from magicseg.core.errors import BackendError
from magicseg.weights.foreign import refuse_foreign_weights
from magicseg.weights.pinned import Weights


def location(weights: Weights) -> Path:
    """Return the folder (or file) to load weights from, its configurations checked.

    Raises: BackendError if weights by name are not there, or if what lies beside them would run code (see
    `magicseg.weights.foreign`).
    """
    if not weights.by_name:
        refuse_foreign_weights(weights, weights.path)
        return weights.path
    folder = snapshot(weights)
    if not folder.is_dir():
        raise BackendError(
            f"{weights.model} at {weights.revision} is not in this machine's cache ({seen_cache()})",
            hint="magicseg fetch RUN   # where there is a network, with the same HF_HOME",
        )
    refuse_foreign_weights(weights, folder)
    return folder


def snapshot(weights: Weights) -> Path:
    """Return the folder of weights in the hub's cache, which may not exist yet."""
    return hub_cache() / f"models--{weights.model.replace('/', '--')}" / "snapshots" / str(weights.revision)


def hub_cache() -> Path:
    """Return the hub's cache, as huggingface_hub sees it: HF_HUB_CACHE, or a folder of HF_HOME."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser()


def seen_cache() -> str:
    """Return the hub's cache and the variable that sets it, for messages."""
    told = next((name for name in ("HF_HUB_CACHE", "HF_HOME") if os.environ.get(name)), None)
    return f"{told} is {os.environ[told]}" if told else f"HF_HOME is not set: it is {hub_cache()}"
