"""Untrusted documents are validated, or refused with an error that names the file."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from magicseg.core.documents import parse_json, parse_yaml, read_bytes, read_json, read_yaml, to_yaml
from magicseg.core.errors import ConfigError, DataError

_plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufeff\u2028\u2029\ufffe\uffff")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc01ye.-", max_size=5), inner, max_size=3),
    max_leaves=10,
)


@given(_plain)
def test_data_written_as_yaml_is_read_back_unchanged(value: Any) -> None:
    text = to_yaml(value)
    assert parse_yaml(text, source="t") == value


@given(_plain)
def test_other_yaml_readers_read_the_same_data(value: Any) -> None:
    assert yaml.safe_load(to_yaml(value)) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("yes", "yes"),
        ("off", "off"),
        ("true", True),
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("1:20", "1:20"),
        ("1_000", "1_000"),
        ("1e-5", 1e-5),
        ("1e5", 1e5),
        (".5", 0.5),
        ("-.inf", -float("inf")),
        ("2026-01-01", "2026-01-01"),
        ("", None),
        ("~", None),
        ("[1, 2]", [1, 2]),
        ("a: &x [1]\nb: *x", {"a": [1], "b": [1]}),
        ("=", "="),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: Any) -> None:
    read = parse_yaml(text, source="t")
    assert read == value
    assert type(read) is type(value)


_LAUGHS = "\n".join(
    ["a0: &a0 [x, x, x, x, x, x, x, x, x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12))]
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: 1\nb: 2\na: 3", "line 3, column 1: the key 'a' is already on line 1"),
        ("x:\n  a: 1\n  a: 1", "already on line 2"),
        ("a: &a {x: 1}\nb:\n  <<: *a", "merge keys"),
        ("a: &a [*a]", "levels deep"),
        ("a: &a {b: *a}", "levels deep"),
        (_LAUGHS, "multiply"),
        ("[" * 100_000, "levels deep"),
        ("[" * 200 + "]" * 200, "levels deep"),
        ("a: !!python/object/apply:os.system [id]", "tag"),
        ("seed: !!timestamp 2026-01-01", "tag"),
        ("seed: !!int abc", "line 1: the tag"),
        ("seed: !!map [1, 2]", "tag"),
        ("{!!map x: 1}", "tag"),
        ("{!!seq x: 1}", "tag"),
        ("a: !!bool yes", "tag"),
        ("a: !!binary eA==", "tag"),
        ("a: ! x", "tag"),
        (f"a: &a {'x' * 5000}\nb: [{', '.join(['*a'] * 50)}]", "multiply"),
        (f"a: &a {{{'x' * 900}: 1}}\nb: [{', '.join(['*a'] * 50)}]", "multiply"),
        ("9" * 5000, "digits"),
        ("? [a, b]\n: 1", "key is not a scalar"),
        ("a: 'x", "line 1"),
        ("a\x00b", "YAML"),
    ],
)
def test_ambiguous_or_expanding_yaml_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        parse_yaml(text, source="file.yaml")
    assert caught.value.message.startswith("file.yaml: ")


@pytest.mark.parametrize(
    "text",
    [
        "[" * 200_000,
        "NaN",
        '{"a": Infinity}',
        "{",
        "9" * 5000 + ",",
        '{"a": 1} x',
        "\x00",
        '{"a": "1"}',
        "[1]",
        '{"b": true}',
    ],
)
def test_json_that_does_not_match_the_schema_is_refused(text: str) -> None:
    with pytest.raises(DataError, match=r"^x\.json: cannot be used: "):
        parse_json(text, dict[str, int], source="x.json")


@given(st.binary())
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        value = parse_json(data, dict[str, Any], source="x")
    except DataError:
        return
    assert value == json.loads(data)


def test_only_regular_files_of_a_bounded_size_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b"x" * 101)
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero"), tmp_path / "large"):
        with pytest.raises(DataError, match=str(path)):
            read_bytes(path, limit=100)
    assert read_bytes(tmp_path / "large", limit=101) == b"x" * 101
    with pytest.raises(FileNotFoundError):
        read_bytes(tmp_path / "absent")


def test_the_error_has_the_requested_class_and_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=r"a\.json") as caught:
        read_json(path, dict[str, int], error=ConfigError, hint="do this")
    assert caught.value.hint == "do this"
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_yaml(path)
