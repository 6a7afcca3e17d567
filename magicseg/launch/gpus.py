"""How many GPUs a job asks for: every way in which Slurm takes the question, understood in this one place.

``gres`` and the ``tres-*`` options are lists: ``gpu``, ``gpu:4``, ``gpu:a100:4``, ``gres/gpu:a100=4``, with commas
between them. ``--gpus-per-node`` and its kin are a count or ``TYPE:COUNT``, with commas between them.
"""

import math
import re
from collections.abc import Mapping

from magicseg.core.text import printable

MOST = 1024  # GPUs of a node: more is a slip of the keyboard
_SHARED = {"shard", "mps"}  # parts of one GPU, whatever their number
_COUNTED = ("gpus", "gpus-per-node", "gpus-per-task", "gpus-per-socket")
_LISTED = ("tres-per-job", "tres-per-node", "tres-per-task", "tres-per-socket")
OPTIONS = frozenset((*_COUNTED, *_LISTED))  # sbatch's long names, besides ``gres``


def gpus_in_list(text: str) -> int:
    """Return the GPUs in a list of generic resources, such as ``gpu:a100:2,gpu:v100:1`` or ``gres/gpu=2``.

    Raises ValueError if there are more than `MOST`.
    """
    return sum(_gpus_of_item(item) for item in _items(text))


def gpus_in_count(value: str | int) -> int:
    """Return the GPUs that ``--gpus-per-node`` and its kin ask for: ``4``, ``a100:4``, ``a100:2,v100:1``.

    Raises ValueError if it is nothing of the kind, or there are more than `MOST`.
    """
    total = 0
    for item in _items(str(value)):
        if not re.fullmatch(r"([A-Za-z][\w.-]*[:=])?\d+", item, re.ASCII):
            raise ValueError(f"{printable(item, 40)!r} is no number of GPUs: 4, or TYPE:4")
        total += _checked(re.split("[:=]", item)[-1])
    return total


def gpus_per_node(gpus: str | int, gres: str | None, extra: Mapping[str, str | bool], nodes: int) -> int:
    """Return how many GPUs a node of a job has.

    The same question may be asked in several ways: the largest answer counts. Jobs run one task per node, so that
    GPUs of a task are those of its node.

    Args: gpus: per node. gres: per node. extra: sbatch's options by their long names. nodes: nodes of the job.
    Raises ValueError if a value cannot be understood.
    """
    found = [gpus_in_count(gpus), gpus_in_list(gres or "")]
    sockets = str(extra.get("sockets-per-node", "1"))
    for name, value in extra.items():
        if name not in OPTIONS or value is False:
            continue
        count = gpus_in_count(value) if name in _COUNTED else gpus_in_list(str(value))
        if name in {"gpus", "tres-per-job"}:
            count = math.ceil(count / nodes)
        elif name.endswith("-per-socket") and sockets.isdecimal():
            count *= int(sockets)
        found.append(count)
    return max(found)


def _items(text: str) -> list[str]:
    """The items of a list, without what Slurm adds in brackets: ``gpu:2(S:0-1)``."""
    return [item.strip() for item in re.sub(r"\(.*?\)", "", text).split(",") if item.strip()]


def _gpus_of_item(item: str) -> int:
    name, *more = re.split("[:=]", re.sub("^gres[:/]", "", item))
    if name in _SHARED:
        return 1
    if name != "gpu":
        return 0
    return _checked(more[-1]) if more else 1


def _checked(count: str) -> int:
    """A number of GPUs; a type without a number is one."""
    if not count.isascii() or not count.isdigit():
        return 1
    if len(count) > len(str(MOST)) or int(count) > MOST:
        raise ValueError(f"asks for more than {MOST} GPUs of a node")
    return int(count)
