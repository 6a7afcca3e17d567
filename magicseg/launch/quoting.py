"""Types of a profile's values. Each rejects text that would add a line or an option to a job script."""

import math
import re
from typing import Annotated

from pydantic import AfterValidator

from magicseg.core.secrets import assigned_secret, secret_value

_LONGEST_SECONDS = 366 * 86400
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def _one_line(text: str) -> str:
    if not text or not text.isprintable() or text != text.strip():
        raise ValueError("must be one line of printable text, without leading or trailing spaces")
    return text


def _word(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_(\[][\w.,:=@%&|*!()\[\]/+-]*", text, re.ASCII):
        raise ValueError("must be one word that begins with a letter, a digit or a bracket")
    return text


def _module(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_][\w.+/@-]*", text, re.ASCII):
        raise ValueError("is not a valid name of a module")
    return text


def _size(text: str) -> str:
    if not re.fullmatch(r"[1-9]\d{0,15}[KMGT]?", text, re.ASCII):
        raise ValueError("must be a whole number with an optional unit K, M, G or T, such as 16G")
    return text


def bytes_of(text: str) -> int:
    """Return a size such as ``16G`` in bytes. Without a unit it is in mebibytes, as in Slurm."""
    return int(text[:-1]) * _UNITS[text[-1]] if text[-1] in _UNITS else int(text) * 2**20


def public(text: str) -> str:
    """Return ``text``, which a job script will contain. Raises ValueError if it holds a secret."""
    name = assigned_secret(text)
    if name is not None:
        raise ValueError(f"{name} looks secret, and a job script would store it: name it in pass_environment")
    if secret_value(text):
        raise ValueError("holds a password or a key, which a job script would store: name it in pass_environment")
    return text


def _shell_line(text: str) -> str:
    if _one_line(text).startswith("#"):
        raise ValueError("must not begin with '#': sbatch would read #SBATCH and #PBS lines as options")
    if text.endswith("\\"):
        raise ValueError("must not end with a backslash, which would join it with the next line")
    return public(text)


def _bind(text: str) -> str:
    if not re.fullmatch(r"[^\s:,]+(:[^\s:,]+(:r[ow])?)?", _one_line(text)):
        raise ValueError("must be SOURCE, SOURCE:TARGET or SOURCE:TARGET:ro")
    return text


def minutes_of(text: str) -> int:
    """Return a Slurm time limit in minutes, rounded up: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text, re.ASCII)
    if match is None:
        raise ValueError("must be a time limit in Slurm's format: 90 (minutes), 4:00:00, 1-12:00:00")
    days, *rest = match.groups()
    first, second, third = (int(part or 0) for part in rest)
    if days is not None:
        seconds = int(days) * 86400 + first * 3600 + second * 60 + third
    elif match[4] is not None:
        seconds = first * 3600 + second * 60 + third
    else:
        seconds = first * 60 + second
    if seconds < 1:
        raise ValueError("must be longer than zero")
    if seconds > _LONGEST_SECONDS:
        raise ValueError("must be at most 366 days")
    return math.ceil(seconds / 60)


def _time(text: str) -> str:
    minutes_of(text)
    return text


def _operand(text: str) -> str:
    if _one_line(text).startswith("-"):
        raise ValueError("must not begin with a dash: it would be read as an option")
    return public(text)


def _argument(text: str) -> str:
    if not text or not text.isprintable():
        raise ValueError("must be one line of printable text")
    return text


def _url_path(text: str) -> str:
    if not re.fullmatch(r"/[\w./?=&%~+-]*", text, re.ASCII):
        raise ValueError("must be the path of a URL, such as /health")
    return text


Word = Annotated[str, AfterValidator(_word)]
Argument = Annotated[str, AfterValidator(_argument)]
UrlPath = Annotated[str, AfterValidator(_url_path)]
Line = Annotated[str, AfterValidator(_one_line), AfterValidator(public)]
Module = Annotated[str, AfterValidator(_module)]
Size = Annotated[str, AfterValidator(_size)]
ShellLine = Annotated[str, AfterValidator(_shell_line)]
Operand = Annotated[str, AfterValidator(_operand)]
Bind = Annotated[str, AfterValidator(_operand), AfterValidator(_bind)]
TimeLimit = Annotated[str, AfterValidator(_time)]
