"""Detect passwords, tokens and keys, which must not be written into files of a run."""

import re
from collections.abc import Collection, Sequence
from itertools import pairwise

# Common names of variables that hold secrets. TOKENIZERS_PARALLELISM and similar names do not match.
_NAME = re.compile(
    r"(^|_)(KEY|PAT)(_|$)|_KEY|API_?KEY|TOKEN(?!IZ)|SECRET|PASS(WORD|WD|PHRASE)|CREDENTIAL", re.IGNORECASE
)
# Passwords in URLs, and keys with a known prefix.
_VALUE = re.compile(
    r"\b[A-Za-z][\w+.-]*://[^/\s@]*:[^/\s@]+@"
    r"|\b(hf_[A-Za-z0-9]{16,}|sk-[\w-]{16,}|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}"
    r"|xox[abprs]-[\w-]{10,}|AKIA[A-Z0-9]{16})"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
    r"|\bBearer\s+[\w.~+/=-]{8,}"
)
_COUNT_OR_FILE = re.compile(r"--[\w-]+(file|path|env)=.*|--[\w-]*(tokens|token-id)[\w-]*=[\d.]*")
_ASSIGNMENT = re.compile(r"(?<![\w-])(?:--)?([A-Za-z_][\w-]*)=([\"']?[^\s;&|]*)")


def secret_name(name: str) -> bool:
    """Return whether a variable or a setting of this name usually holds a secret."""
    return _NAME.search(name.replace("-", "_")) is not None


def secret_value(text: str) -> bool:
    """Return whether ``text`` contains a URL with a password, or a key in a known format."""
    return _VALUE.search(text) is not None


def assigned_secret(text: str, names: Collection[str] = ()) -> str | None:
    """Return the variable that a shell line or an option sets to a secret, as in ``export HF_TOKEN=abc``, or None.

    A value that is expanded when the line runs, such as ``$(cat FILE)`` or ``$NAME``, does not count.

    Args: names: additional variable names that hold secrets.
    """
    for name, value in _ASSIGNMENT.findall(text):
        bare = value.strip("\"'")
        if (name in names or secret_name(name)) and bare and not bare.startswith(("$", "`")):
            return str(name)
    return None


def secret_argument(words: Sequence[str]) -> bool:
    """Return whether a command's arguments contain a secret, as ``--api-key abc`` or ``--api-key=abc`` do.

    Numbers of tokens (``--max-num-batched-tokens 8192``) and names of files (``--api-key-file PATH``) do not count.
    """
    pairs = [f"{name}={value}" for name, value in pairwise(words) if name.startswith("--") and value[:1] != "-"]
    return any(
        secret_value(text) or (assigned_secret(text) is not None and not _COUNT_OR_FILE.fullmatch(text))
        for text in (*words, *pairs)
    )
