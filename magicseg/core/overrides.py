"""Merge layers of settings: a preset, then a file, then ``--set`` options of the command line.

Groups are merged key by key. An empty mapping clears a group. A new choice drops dependent settings of lower layers:
a new ``backend`` drops ``options``, a new encoder ``name`` drops the whole group ``encoder``, a new ``model`` drops
``revision``. Dependent settings from the same layer as the choice are kept, in any order.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

Assignment = tuple[tuple[Any, ...], Any]
"""The keys from the outermost group to a setting, and its value."""

_DROPPED = {"backend": "options", "model": "revision"}  # key of a choice -> dependent key in the same group


class NotAGroup(ValueError):
    """A setting is a value, but a group is expected; the message is its dotted key."""


def assignments(value: Any, path: tuple[Any, ...] = ()) -> Iterator[Assignment]:
    """Yield every single setting in a group below ``path``. A value that is not a group is yielded as one setting."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from assignments(inner, (*path, key))
    else:
        yield path, value


def lay_over(data: dict[str, Any], layer: Iterable[Assignment]) -> None:
    """Merge a layer's settings into ``data``, in order.

    Raises NotAGroup if one of the outer keys of a setting is a value.
    """
    layer = list(layer)
    choices = {path: value for path, value in layer if _is_choice(path)}
    for path in sorted(choices, key=len):  # outer choices first: they drop the choices inside their options
        _drop_former(data, path, choices[path])
    for path, value in layer:
        *groups, name = path
        node = data
        for depth, group in enumerate(groups, start=1):
            child = node.get(group)
            if child is None:
                child = node[group] = {}
            if not isinstance(child, dict):
                raise NotAGroup(".".join(map(str, path[:depth])))
            node = child
        node[name] = value


def _drop_former(data: dict[str, Any], path: tuple[Any, ...], value: Any) -> None:
    """Drop the dependent settings of a choice if its current value differs from ``value``."""
    node: Any = data
    for group in path[:-1]:
        node = node.get(group) if isinstance(node, dict) else None
    name = path[-1]
    if isinstance(node, dict) and node.get(name) not in (None, value):
        if name == "name":
            node.clear()
        else:
            node.pop(_DROPPED[name], None)


def _is_choice(path: tuple[Any, ...]) -> bool:
    return path[-1] in _DROPPED or path[-2:] == ("encoder", "name")
