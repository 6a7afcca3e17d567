"""Merge layers of settings: a preset, then a file, then ``--set`` options of the command line.

Groups are merged key by key. An empty mapping clears a group. A new choice drops dependent settings of lower layers:
a new ``backend`` drops ``options``, a new encoder ``name`` drops the whole group ``encoder``, a new ``model`` drops
``revision``. Dependent settings from the same layer as the choice are kept, in any order.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from magicseg.core.documents import parse_yaml
from magicseg.core.dotted_keys import Assignment, assignments
from magicseg.core.errors import ConfigError
from magicseg.core.text import printable

_DROPPED = {"backend": "options", "model": "revision"}  # key of a choice -> dependent key in the same group


class NotAGroup(ValueError):
    """A setting is a value, but a group is expected; the message is its dotted key."""


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


def lay_over_options(
    data: dict[str, Any],
    options: Sequence[str],
    *,
    form: str,
    example: str,
    hint: str,
    prefix: str = "",
    numbers: bool = True,
) -> None:
    """Merge the values of ``--set`` options into ``data`` as one layer. Values are YAML.

    Args: form: how an option is written, for messages: ``key.path=value``. example: a valid option. hint: for values
    that are not YAML. prefix: what every key begins with; it is removed. numbers: if false, numbers stay text.
    Raises ConfigError that quotes the option.
    """
    layer: list[Assignment] = []
    shown_by_path: dict[tuple[Any, ...], str] = {}
    for option in options:
        shown = f"--set {printable(option, 200)!r}"
        key, separator, text = option.partition("=")
        key = key.strip()
        if not separator or not key.startswith(prefix) or key == prefix:
            raise ConfigError(f"{shown} is not of the form {form}", hint=f"--set {example}")
        value = parse_yaml(text, source=shown, hint=hint, numbers=numbers)
        for path, single in assignments(value, tuple(key.removeprefix(prefix).split("."))):
            layer.append((path, single))
            shown_by_path[path] = shown
    try:
        lay_over(data, layer)
    except NotAGroup as error:
        shown = next(each for path, each in shown_by_path.items() if ".".join(map(str, path)).startswith(f"{error}."))
        raise ConfigError(
            f"{shown}: {error} is a value, not a group of settings", hint=f"--set {prefix}{error}=VALUE"
        ) from None


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
