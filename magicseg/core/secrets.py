"""What looks like a password, a token or a key: it is refused where it would be written into a file of a run."""

import re
from collections.abc import Collection

# Names by which programs take secrets. TOKENIZERS_PARALLELISM and the like are none.
_NAME = re.compile(
    r"(^|_)(KEY|PAT)(_|$)|_KEY|API_?KEY|TOKEN(?!IZ)|SECRET|PASS(WORD|WD|PHRASE)|CREDENTIAL", re.IGNORECASE
)
# A password in an address, and keys that can be told by how they begin.
_VALUE = re.compile(
    r"\b[A-Za-z][\w+.-]*://[^/\s@]*:[^/\s@]+@"
    r"|\b(hf_[A-Za-z0-9]{16,}|sk-[\w-]{16,}|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}"
    r"|xox[abprs]-[\w-]{10,}|AKIA[A-Z0-9]{16})"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
_ASSIGNMENT = re.compile(r"(?<![\w-])(?:--)?([A-Za-z_][\w-]*)=([\"']?[^\s;&|]*)")


def secret_name(name: str) -> bool:
    """Return whether a variable or a setting of this name usually holds a secret."""
    return _NAME.search(name.replace("-", "_")) is not None


def secret_value(text: str) -> bool:
    """Return whether ``text`` holds an address with a password in it, or a key of a known form."""
    return _VALUE.search(text) is not None


def assigned_secret(text: str, names: Collection[str] = ()) -> str | None:
    """Return the name that a line of shell or an option gives a secret to, as in ``export HF_TOKEN=abc``, or None.

    A value that is read when the line runs, as ``$(cat FILE)`` or ``$NAME``, is no secret in the line.

    Args: names: names of secrets besides those that look like one.
    """
    for name, value in _ASSIGNMENT.findall(text):
        bare = value.strip("\"'")
        if (name in names or secret_name(name)) and bare and not bare.startswith(("$", "`")):
            return str(name)
    return None
