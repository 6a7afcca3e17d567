"""Settings over settings: a file's over a preset's, and what is typed over both.

Groups are merged key by key. An empty mapping clears a group. A choice drops what a lower layer has for the former
one: another ``backend`` its ``options``, another encoder ``name`` the whole group ``encoder``, another ``model`` its
``revision``. What the choice's own layer has is kept, wherever it stands.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

Assignment = tuple[tuple[Any, ...], Any]
"""The keys from the outermost group to a setting, and its value."""

_DROPPED = {"backend": "options", "model": "revision"}  # by the choice's key: what belongs to it, beside it


class NotAGroup(ValueError):
    """A value stands where a group of settings is expected; the text is its dotted key."""


def assignments(value: Any, path: tuple[Any, ...] = ()) -> Iterator[Assignment]:
    """Yield every single setting in a group below ``path``; a value that is no group is one setting."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from assignments(inner, (*path, key))
    else:
        yield path, value


def lay_over(data: dict[str, Any], layer: Iterable[Assignment]) -> None:
    """Put a layer's settings into ``data``, in their order.

    Raises NotAGroup if the keys lead through a value.
    """
    layer = list(layer)
    choices = {path: value for path, value in layer if _is_choice(path)}
    for path in sorted(choices, key=len):  # an outer choice drops those inside its options
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
    """Drop what belongs to a choice, if there is one and it is another than ``value``."""
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
