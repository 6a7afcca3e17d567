"""Parse the number of GPUs that a job requests, in every syntax of Slurm.

``gres`` and the ``tres-*`` options are comma-separated lists: ``gpu``, ``gpu:4``, ``gpu:a100:4``,
``gres/gpu:a100=4``. ``--gpus-per-node`` and similar options are comma-separated counts or ``TYPE:COUNT``.
"""

import math
import re
from collections.abc import Mapping

from magicseg.core.text import printable

MOST = 1024  # GPUs per node: a larger number is a typing error
_SHARED = {"shard", "mps"}  # parts of one GPU: any count means one GPU
_COUNTED = ("gpus", "gpus-per-node", "gpus-per-task", "gpus-per-socket")
_LISTED = ("tres-per-job", "tres-per-node", "tres-per-task", "tres-per-socket")
OPTIONS = frozenset((*_COUNTED, *_LISTED))  # sbatch's long names, besides ``gres``


def gpus_in_list(text: str) -> int:
    """Return the number of GPUs in a list of generic resources: ``gpu:a100:2,gpu:v100:1`` or ``gres/gpu=2``.

    Raises ValueError if there are more than `MOST`.
    """
    return sum(_gpus_of_item(item) for item in _items(text))


def gpus_in_count(value: str | int) -> int:
    """Return the number of GPUs in a value of ``--gpus-per-node`` and similar options: ``4``, ``a100:2,v100:1``.

    Raises ValueError if the value cannot be parsed, or there are more than `MOST`.
    """
    total = 0
    for item in _items(str(value)):
        if not re.fullmatch(r"([A-Za-z][\w.-]*[:=])?\d+", item, re.ASCII):
            raise ValueError(f"{printable(item, 40)!r} is not a number of GPUs: write 4, or TYPE:4")
        total += _checked(re.split("[:=]", item)[-1])
    return total


def gpus_per_node(gpus: str | int, gres: str | None, extra: Mapping[str, str | bool], nodes: int) -> int:
    """Return the number of GPUs per node of a job.

    If several options request GPUs, the largest number counts. Jobs run one task per node, so GPUs per task equal
    GPUs per node.

    Args: gpus: per node. gres: per node. extra: sbatch's options by long name. nodes: number of nodes of the job.
    Raises ValueError if a value cannot be parsed.
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
    """Return the items of a list, without parenthesised suffixes such as ``(S:0-1)`` in ``gpu:2(S:0-1)``."""
    return [item.strip() for item in re.sub(r"\(.*?\)", "", text).split(",") if item.strip()]


def _gpus_of_item(item: str) -> int:
    name, *more = re.split("[:=]", re.sub("^gres[:/]", "", item))
    if name in _SHARED:
        return 1
    if name != "gpu":
        return 0
    return _checked(more[-1]) if more else 1


def _checked(count: str) -> int:
    """Return a number of GPUs. A type without a number means one GPU. Raises ValueError above `MOST`."""
    if not count.isascii() or not count.isdigit():
        return 1
    if len(count) > len(str(MOST)) or int(count) > MOST:
        raise ValueError(f"requests more than {MOST} GPUs per node")
    return int(count)
