"""Load what transformers' classes load from a local folder, without any code of that folder or of the hub."""

from pathlib import Path
from typing import Any

from magicseg.errors import BackendError
from magicseg.weights.foreign import forbidden


def from_pretrained(auto: Any, folder: Path, **settings: Any) -> Any:
    """Return a configuration, tokenizer, processor or model by one of transformers' classes.

    Code is never run and nobody is asked about it, the hub is never called, and the attention of a model is torch's:
    the one that its configuration names if that is ``eager`` or ``sdpa``, else the library's default.

    Args: settings: more arguments of the class's ``from_pretrained``.
    Raises: BackendError if the configuration turns on code or has too many layers; whatever the library raises.
    """
    if "Model" in auto.__name__:
        settings["attn_implementation"] = _attention(folder, settings)
    return auto.from_pretrained(folder, trust_remote_code=False, local_files_only=True, **settings)


def _attention(folder: Path, settings: dict[str, Any]) -> str | None:
    """Return the attention to name, so that a configuration cannot name a kernel on the hub."""
    from transformers import AutoConfig

    file = {"gguf_file": settings["gguf_file"]} if "gguf_file" in settings else {}
    config = from_pretrained(AutoConfig, folder, **file)
    reason = forbidden(config.to_dict())  # a GGUF file has no JSON file that could be checked before
    if reason:
        raise BackendError(f"{folder}: {reason}", hint="use another model")
    named = getattr(config, "_attn_implementation", None)
    return named if named in {"eager", "sdpa"} else None
