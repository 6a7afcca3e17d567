"""Load objects of transformers from a local folder, without running code from that folder or the hub."""

from pathlib import Path
from typing import Any

from magicseg.core.errors import BackendError
from magicseg.weights.foreign import forbidden


def from_pretrained(auto: Any, folder: Path, **settings: Any) -> Any:
    """Return a configuration, tokenizer, processor or model, loaded by one of transformers' classes.

    Custom code is never executed (and the user is not prompted), and the hub is never contacted. A model's attention
    is the one in its configuration if that is ``eager`` or ``sdpa``, else the library's default.

    Args: settings: additional arguments of the class's ``from_pretrained``.
    Raises: BackendError if the configuration enables code or declares too many layers; exceptions of the library.
    """
    if "Model" in auto.__name__:
        settings["attn_implementation"] = _attention(folder, settings)
    return auto.from_pretrained(folder, trust_remote_code=False, local_files_only=True, **settings)


def _attention(folder: Path, settings: dict[str, Any]) -> str | None:
    """Return the attention implementation to pass, so that a configuration cannot select a kernel on the hub."""
    from transformers import AutoConfig

    file = {"gguf_file": settings["gguf_file"]} if "gguf_file" in settings else {}
    config = from_pretrained(AutoConfig, folder, **file)
    reason = forbidden(config.to_dict())  # a GGUF file has no JSON file to check in advance
    if reason:
        raise BackendError(f"{folder}: {reason}", hint="use another model")
    named = getattr(config, "_attn_implementation", None)
    return named if named in {"eager", "sdpa"} else None
