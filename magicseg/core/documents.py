"""Read untrusted JSON and YAML.

Only regular files of limited size are read, and JSON is validated against a schema. Every fault raises a
`MagicsegError` that names the file. Only `FileNotFoundError` passes through: a missing file is often not a fault.

YAML scalars are read by the rules of YAML 1.2: ``yes`` and ``2026-01-01`` are strings, ``010`` is ten, ``1e-5`` is a
number.
"""

import io
import math
import os
import re
import stat
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import from_json

from magicseg.core.errors import ConfigError, DataError, MagicsegError
from magicseg.core.setting_errors import first_fault
from magicseg.core.storage_errors import reason, remedy
from magicseg.core.text import printable

DOCUMENT_BYTES = 64 << 20
_LINE_BYTES = 1 << 20
_YAML_DEPTH = 64

T = TypeVar("T")


def read_bytes(
    path: Path, *, limit: int = DOCUMENT_BYTES, error: type[MagicsegError] = DataError, hint: str | None = None
) -> bytes:
    """Return the bytes of a regular file.

    Args: limit: most bytes that are read. error: the class to raise. hint: the hint of that error.
    Raises: FileNotFoundError if there is no such file; ``error`` if it is a folder, a pipe or a device, is larger
    than ``limit``, or cannot be read.
    """
    try:
        with open_regular(path, error=error, hint=hint) as file:
            # `read` allocates the requested size. A file may grow meanwhile, and files in /proc report no size.
            step = min(limit, max(os.fstat(file.fileno()).st_size, 1 << 16)) + 1
            data = file.read(step) or b""
            while len(data) <= limit and (more := file.read(min(step, limit + 1 - len(data)))):
                data += more
    except OSError as fault:
        if isinstance(fault, FileNotFoundError):
            raise
        raise error(f"{path}: cannot be read: {reason(fault)}", hint=remedy(fault) or hint) from fault
    if len(data) > limit:
        raise error(f"{path}: is larger than {limit:,} bytes, the limit for such a file", hint=hint)
    return data


def open_regular(path: Path, *, error: type[MagicsegError] = DataError, hint: str | None = None) -> io.FileIO:
    """Open a regular file for reading, without waiting for the writer of a pipe.

    Raises: FileNotFoundError if the file is missing; ``error`` if it is a folder, a pipe or a device; ``error``,
    caused by the operating system's error, if it cannot be opened.
    """
    try:
        # Without O_NONBLOCK, opening a pipe waits for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as fault:
        raise error(f"{path}: cannot be read: {reason(fault)}", hint=remedy(fault) or hint) from fault
    except ValueError as fault:  # a NUL in the name
        raise error(f"{path!s}: cannot be read: {fault}", hint=hint) from fault
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise error(f"{path}: is not a regular file", hint=hint)
    return io.FileIO(descriptor)


def parse_json(
    data: bytes | str,
    schema: type[T],
    *,
    source: Path | str,
    error: type[MagicsegError] = DataError,
    hint: str | None = None,
    nan: bool = False,
) -> T:
    """Return the value of JSON text, checked against ``schema`` without coercion of types.

    Args: schema: a type that pydantic understands: a model, a dataclass, ``dict[str, int]``. source: named in errors.
    nan: allow NaN and infinite numbers where ``schema`` does not constrain numbers.
    Raises: ``error`` with the position of the first fault, if the text is not JSON, is nested too deeply, contains
    NaN or an infinite number, or does not match ``schema``.
    """
    try:
        from_json(data, allow_inf_nan=nan, cache_strings="keys")
        value: T = _adapter(cast("Any", schema)).validate_json(data, strict=True)
    except ValidationError as fault:
        why = str(first_fault(fault))
    except ValueError as fault:
        why = f"it is not JSON: {fault}"
    else:
        return value
    raise error(f"{source}: cannot be used: {printable(why, 300)}", hint=hint)


def read_json(
    path: Path,
    schema: type[T],
    *,
    limit: int = DOCUMENT_BYTES,
    error: type[MagicsegError] = DataError,
    hint: str | None = None,
    nan: bool = False,
) -> T:
    """Return a JSON file's value: `read_bytes`, then `parse_json`, with the errors of both."""
    data = read_bytes(path, limit=limit, error=error, hint=hint)
    return parse_json(data, schema, source=path, error=error, hint=hint, nan=nan)


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON-lines file one at a time. NaN is allowed.

    Invalid lines are skipped, because the last line may be half written. Raises: FileNotFoundError; DataError as
    `open_regular` does.
    """
    with io.BufferedReader(open_regular(path)) as file:
        try:
            while line := file.readline(_LINE_BYTES):
                try:
                    row = from_json(line)
                except ValueError:
                    continue
                if isinstance(row, dict):
                    yield row
        except OSError as fault:
            raise DataError(f"{path}: cannot be read: {reason(fault)}", hint=remedy(fault)) from fault


@lru_cache(maxsize=64)
def _adapter(schema: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter[Any](schema, config=ConfigDict(allow_inf_nan=False))
    except PydanticUserError:  # models and dataclasses bring their configuration
        return TypeAdapter[Any](schema)


def parse_yaml(
    text: str,
    *,
    source: Path | str,
    error: type[MagicsegError] = ConfigError,
    hint: str | None = None,
    numbers: bool = True,
) -> Any:
    """Return the plain data of a YAML document.

    Args: numbers: parse numbers; if False, they stay text in their original spelling: ``010``, ``1e3``.

    Raises: ``error`` if the text is not YAML, contains a duplicate key, a merge key (``<<``) or a tag, is nested too
    deeply, or has aliases that form a cycle or expand exponentially.
    """
    try:
        _check_events(text)
        value = yaml.load(text, _Loader if numbers else _TextLoader)
        _check_expansion(value, most=2 * len(text) + 1000)
    except (yaml.YAMLError, ValueError, RecursionError) as fault:
        raise error(f"{source}: is not YAML that can be read: {_reason(fault)}", hint=hint) from None
    return value


def read_text(path: Path, *, error: type[MagicsegError] = ConfigError, hint: str | None = None) -> str:
    """Return a file's text, without its byte order mark: `read_bytes`, with its errors; ``error`` if not UTF-8."""
    data = read_bytes(path, error=error, hint=hint)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        raise error(f"{path}: is not UTF-8 text: {fault}", hint=hint) from None


def read_yaml(path: Path, *, error: type[MagicsegError] = ConfigError, hint: str | None = None) -> Any:
    """Return a YAML file's plain data: `read_text`, then `parse_yaml`, with the errors of both."""
    return parse_yaml(read_text(path, error=error, hint=hint), source=path, error=error, hint=hint)


def without_nan(value: Any) -> Any:
    """Return plain data with None for every number that is not finite, because JSON cannot represent them."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return value


def to_yaml(value: Any) -> str:
    """Return plain data as YAML, in its own order. `parse_yaml` and other YAML readers return the same data."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _reason(fault: Exception) -> str:
    if isinstance(fault, yaml.MarkedYAMLError) and fault.problem and fault.problem_mark:
        mark = fault.problem_mark
        return printable(f"line {mark.line + 1}, column {mark.column + 1}: {fault.problem}", 300)
    return printable(str(fault), 300)


def _check_events(text: str) -> None:
    """Raise ValueError for tags, and for deep nesting, which would overflow the stack of the C composer."""
    depth = 0
    for event in yaml.parse(text, _Loader):
        if isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent) and event.tag is not None:
            line = event.start_mark.line + 1 if event.start_mark else 1
            raise ValueError(f"line {line}: the tag {event.tag} is not supported; leave it out")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > _YAML_DEPTH:
                raise ValueError(f"it is nested more than {_YAML_DEPTH} levels deep")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _check_expansion(value: Any, most: int) -> None:
    """Raise ValueError if the data are cyclic, too deep, or larger than a document without aliases could be."""
    count = 0
    open_nodes = [(value, 0)]
    while open_nodes:
        node, depth = open_nodes.pop()
        count += 1 + (len(node) if isinstance(node, str) else 0)
        if depth > _YAML_DEPTH:
            raise ValueError(f"it is nested more than {_YAML_DEPTH} levels deep")
        if count > most:
            raise ValueError("its aliases multiply it beyond its own size")
        if isinstance(node, dict):
            open_nodes += [(each, depth + 1) for item in node.items() for each in item]
        elif isinstance(node, list):
            open_nodes += [(each, depth + 1) for each in node]


# The core schema of YAML 1.2 (section 10.3.2), by first characters.
_SCALARS = (
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("tag:yaml.org,2002:int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "tag:yaml.org,2002:float",
        r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
)


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """The safe loader, with the scalars of YAML 1.2 and without duplicate keys, merge keys and tags."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - the base class's own attribute

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[Any, int] = {}
        for key_node, _ in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key is not a scalar", key_node.start_mark)
            if key_node.value == "<<" and not key_node.style:
                problem = "merge keys (<<) are not supported; write the keys out"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            key = self.construct_object(key_node)
            if key in lines:
                problem = f"the key {key!r} is already on line {lines[key]}"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            lines[key] = line
        result: dict[Any, Any] = yaml.constructor.BaseConstructor.construct_mapping(self, node, deep=deep)
        return result

    def _integer(self, node: yaml.ScalarNode) -> int:
        text = str(self.construct_scalar(node))
        return int(text, 0) if text[:2] in {"0o", "0x"} else int(text)

    def _float(self, node: yaml.ScalarNode) -> float:
        text = str(self.construct_scalar(node)).lower()
        return float(text.replace(".inf", "inf").replace(".nan", "nan"))

    def _bool(self, node: yaml.ScalarNode) -> bool:
        return str(self.construct_scalar(node)).lower() == "true"

    def _unknown(self, node: yaml.Node) -> None:
        raise yaml.constructor.ConstructorError(None, None, f"the tag {node.tag} is not supported", node.start_mark)


class _TextLoader(_Loader):
    """The loader without conversion of numbers: they stay text."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - the base class's own attribute


class _Dumper(yaml.SafeDumper):
    """The safe dumper; it quotes strings that YAML 1.1 or 1.2 would not read as strings."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_STANDARD = "tag:yaml.org,2002:"
_Loader.yaml_constructors = {
    f"{_STANDARD}null": yaml.SafeLoader.construct_yaml_null,
    f"{_STANDARD}bool": _Loader._bool,
    f"{_STANDARD}int": _Loader._integer,
    f"{_STANDARD}float": _Loader._float,
    f"{_STANDARD}str": yaml.SafeLoader.construct_yaml_str,
    f"{_STANDARD}seq": yaml.SafeLoader.construct_yaml_seq,
    f"{_STANDARD}map": yaml.SafeLoader.construct_yaml_map,
    None: _Loader._unknown,
}
for _tag, _pattern, _first in _SCALARS:
    is_number = _tag.endswith((":int", ":float"))
    for _class in (_Loader, _Dumper, *(() if is_number else (_TextLoader,))):
        _class.add_implicit_resolver(_tag, re.compile(rf"^(?:{_pattern})$"), _first)
