"""Hostile labels, typed and in lists: file names, expanding aliases, control characters."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magicseg.core.errors import LabelError
from magicseg.labels import load_vocabulary, parse_labels, vocabulary_files, vocabulary_names
from magicseg.labels.vocabulary_files import MAX_SYNONYMS, _parse, _parts


@pytest.mark.parametrize("name", ["labels.yml", "labels.YAML", "L.TXT", "l.Txt", "-odd name.yml"])
def test_a_label_lists_file_extension_is_case_insensitive(tmp_path: Path, name: str, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text("- car\n- house\n" if name.lower().endswith("ml") else "car\nhouse\n")
    assert parse_labels(name).names == ("car", "house")
    assert parse_labels(str(tmp_path / name)).names == ("car", "house")


def test_a_label_list_may_be_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "own.txt").write_text("car\n")
    assert parse_labels("~/own.txt").names == ("car",)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("L.csv", "looks like a file"),
        ("labels.json", "looks like a file"),
        ("lists/labels.tsv", "looks like a file"),
        ("cat, L.csv", "looks like a file"),
        ("labels.yml.gz", "looks like a file"),
        ("/home/me/labels", "looks like a file"),
        ("~/labels", "looks like a file"),
        ("./labels", "looks like a file"),
        ("../labels", "looks like a file"),
        ("C:\\labels.names", "looks like a file"),
        ("missing.txt", "No such file"),
        ("~nobody-of-this-name/l.txt", "No such file"),
        ("/dev/stdin.yml", "No such file"),
        ("VOC20", "is the vocabulary 'voc20'"),
        ("voc-20", "is the vocabulary 'voc20'"),
        ("Coco_Stuff", "is the vocabulary 'coco-stuff'"),
        ("ADE20K", "is the vocabulary 'ade20k'"),
        ("voc20, cat", "is the vocabulary 'voc20'"),
        ("cat, LVIS1203", "is the vocabulary 'lvis1203'"),
        ("", "no labels"),
        (" , ,", "no labels"),
        ("cat, CAT", "names both 1 and 2"),
        ("cat, d\x1bog", r"U\+001B"),
        ("cat, \u202egod", r"U\+202E"),
        ("cat\nhint: rm", r"U\+000A"),
        ("x" * 201, "201 characters"),
        ("x" * 300 + ".txt", "too long"),
        ("\udcff.txt", "No such file|cannot be read"),
        ("a\x00b.txt", "cannot be read"),
    ],
)
def test_file_names_and_vocabulary_names_are_not_accepted_as_labels(
    tmp_path: Path, monkeypatch: Any, text: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LabelError, match=words) as caught:
        parse_labels(text)
    assert caught.value.hint


@pytest.mark.parametrize("text", ["L.csv", "VOC20", "cat, labels.json", "missing.yml", "[/red]/x.txt"])
@pytest.mark.parametrize(
    "command",
    [
        ("predict", "a.jpg", "--model", "m", "--out", "o"),
        ("mask", "--images", ".", "--out", "o", "--preset", "miniature"),
    ],
)
def test_every_command_with_labels_refuses_the_name_of_a_missing_file(
    typed: Any, tmp_path: Path, command: tuple[str, ...], text: str
) -> None:
    result = typed(*command, "--labels", text)
    assert result.code == 2
    assert result.err.startswith("error: ")
    assert "\nhint:  " in result.err
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("name", vocabulary_names())
def test_a_shipped_vocabulary_is_typed_by_its_name(name: str) -> None:
    assert parse_labels(name) == load_vocabulary(name)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("cat,dog", ("cat", "dog")),
        ("St. Bernard, Mr. Bean", ("St. Bernard", "Mr. Bean")),
        ("bow (weapon, old), bow (ribbon)", ("bow (weapon, old)", "bow (ribbon)")),
        ("tv/monitor, 3.5 inch disk", ("tv/monitor", "3.5 inch disk")),
        ("Katze, 猫, chien  noir", ("Katze", "猫", "chien noir")),
        ("u.s. flag, etc.", ("u.s. flag", "etc.")),
    ],
)
def test_comma_separated_names_are_parsed_unchanged(text: str, names: tuple[str, ...]) -> None:
    assert parse_labels(text).names == names


@pytest.mark.parametrize(
    ("content", "path", "words"),
    [
        ("cat," + "a," * 200_000 + "b", "x.txt", "synonyms; at most"),
        ("cat" + ",(" * 200_000, "x.txt", "synonyms; at most"),
        ("cat (" + "," * 200_000, "x.txt", "synonyms; at most"),
        ("- {name: cat, synonyms: [" + "a," * 100_000 + "b]}", "x.yaml", "synonyms; at most"),
        ("a: &a [x,x]\nlabels: [*a, *a]", "x.yaml", "unknown"),
        ("- &a [*a]", "x.yaml", "a list or a mapping"),
        ("[" * 100_000, "x.yaml", "nested too deeply"),
        ("- " * 100_000, "x.yaml", "nested too deeply"),
        ("{a: " * 100_000, "x.yaml", "nested too deeply"),
        ('source: "a\\eb"\nlabels: [cat]', "x.yaml", r"U\+001B"),
        ('labels: [cat]\nbackground: ["\\u202egod"]', "x.yaml", r"U\+202E"),
        ('- "cat\\nhint: rm"', "x.yaml", r"U\+000A"),
        ("- cat: [dog]", "x.yaml", "unknown"),
        ('{"' + "k" * 100_000 + '": 1}', "x.yaml", "not YAML"),
        ("cat\u2028dog", "x.txt", r"U\+2028"),
        ("\ud800".encode("utf-8", "surrogatepass").decode("latin-1"), "x.txt", "control"),
    ],
)
def test_a_hostile_label_list_is_refused_quickly(content: str, path: str, words: str) -> None:
    with pytest.raises(LabelError, match=words) as caught:
        _parse(content.encode(), path=path, name="x", source="x")
    assert len(caught.value.message) < 1000


def test_yaml_aliases_cannot_expand_a_label_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary_files, "MAX_NAMES", 5000)
    synonyms = ", ".join(f"s{number}" for number in range(MAX_SYNONYMS))
    first = f"- {{name: l0, synonyms: &s [{synonyms}]}}\n"
    others = "".join(f"- {{name: l{number}, synonyms: *s}}\n" for number in range(1, 1000))
    with pytest.raises(LabelError, match="more than 5000 labels and synonyms"):
        _parse((first + others).encode(), path="x.yaml", name="x", source="x")


@pytest.mark.parametrize("coding", ["utf-16", "utf-32", "latin-1", "cp037"])
def test_other_encodings_are_refused_with_a_hint(coding: str) -> None:
    with pytest.raises(LabelError) as caught:
        _parse("café\nhouse\n".encode(coding), path="x.txt", name="x", source="x")
    assert caught.value.hint in {"save the list as UTF-8", "remove it"}


def test_a_label_list_of_unlimited_size_is_refused(tmp_path: Path) -> None:
    (tmp_path / "zero.txt").symlink_to("/dev/zero")
    (tmp_path / "large.txt").touch()
    os.truncate(tmp_path / "large.txt", 1 << 40)
    os.mkfifo(tmp_path / "pipe.yaml")
    for name in ("zero.txt", "large.txt", "pipe.yaml"):
        with pytest.raises(LabelError, match=name):
            load_vocabulary(name, base=tmp_path)


@given(st.text("ab,() ", max_size=20))
def test_commas_in_parentheses_do_not_separate_names(row: str) -> None:
    assert _parts(row) == re.split(r",(?![^()]*\))", row)
