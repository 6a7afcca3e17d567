"""One digest for the content of weights on this machine, given by path or by name on the hub."""

from dataclasses import replace

from magicseg.weights.cache import location
from magicseg.weights.hashing import path_identity
from magicseg.weights.pinned import Weights


def content_identity(weights: Weights, where: str) -> str:
    """Return ``sha256:...`` of the files that are read, as `path_identity` does. It does not depend on the location.

    Args: where: the setting, for messages. Raises: BackendError if they are not there.
    """
    return path_identity(replace(weights, model=str(location(weights)), revision=None), where)
