"""What weights on this machine are: one digest, whether they have a path or a name on the hub."""

from dataclasses import replace

from magicseg.weights.cache import location
from magicseg.weights.hashing import path_identity
from magicseg.weights.pinned import Weights


def content_identity(weights: Weights, where: str) -> str:
    """``sha256:...`` of the files that are read, as `path_identity` has it: the same wherever they lie.

    Args: where: the setting, for messages. Raises: BackendError if they are not there.
    """
    return path_identity(replace(weights, model=str(location(weights)), revision=None), where)
