"""Load vocabularies: shipped ones by name, user-supplied ones from a .txt or .yaml file.

A .txt file has one label per line. Synonyms follow the name, separated by commas; commas in parentheses do not
separate. Blank lines and lines that start with # are skipped.

A .yaml file is a list of labels, or a mapping with ``labels`` (the list), ``background`` (the names of the background
class) and ``source``. Each item of the list is a string in the format of a .txt line, or a mapping with ``name`` and
``synonyms``.

Two labels may share a synonym, but not a name.
"""

import os
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NoReturn

import yaml

from magicseg.core.documents import read_bytes
from magicseg.core.errors import LabelError
from magicseg.core.text import first_control_character, printable
from magicseg.labels.vocabulary import MAX_LABELS, Label, Vocabulary, name_key, split_qualifier

MAX_NAME = 200  # characters
MAX_SYNONYMS = 1000  # of one label
MAX_NAMES = 500_000  # labels and synonyms of one list
MAX_BYTES = 16 << 20
SUFFIXES = (".txt", ".yaml", ".yml")

# Name of the vocabulary: (data file, whether its background counts as a class).
_SHIPPED = {
    "voc20": ("voc", False),
    "voc21": ("voc", True),
    "context59": ("context", False),
    "context60": ("context", True),
    "coco80": ("coco", False),
    "coco-object": ("coco", True),
    "coco-stuff": ("coco-stuff", False),
    "ade20k": ("ade20k", False),
    "cityscapes": ("cityscapes", False),
    "lvis1203": ("lvis", False),
    "miniature": ("miniature", False),
}

_MARKS = re.compile(r"[,()]")
# A path that starts at the root, the home or the current directory; or a name with a file extension.
_FILE = re.compile(r"[/~\\]|\.{1,2}[/\\]|.*[^.\s]\.[A-Za-z][A-Za-z0-9]{1,4}$")
_JOINERS = "\u200c\u200d"  # some languages need them in their spelling
_MAX_DEPTH = 8  # a valid file has at most 4 levels: a mapping of a list of mappings of lists
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def vocabulary_names() -> tuple[str, ...]:
    """Return the names of the shipped vocabularies."""
    return tuple(_SHIPPED)


def load_vocabulary(ref: str, *, base: Path | None = None) -> Vocabulary:
    """Load a shipped vocabulary by its name, or a .txt or .yaml file by its path.

    Args: ref: the name or the path. base: the directory of relative paths.
    Raises: LabelError if the vocabulary is unknown, or malformed; the message then names the file and line.
    """
    if ref in _SHIPPED:
        return _load_shipped(ref)
    path = Path(os.path.expanduser(ref))
    if path.suffix.lower() not in SUFFIXES:
        nearest = like_shipped(ref) or next(iter(get_close_matches(ref.lower(), _SHIPPED, n=1)), None)
        raise LabelError(
            f"there is no vocabulary {printable(ref, MAX_NAME)!r}"
            + (f"; did you mean {nearest!r}?" if nearest else ""),
            hint=f"shipped: {', '.join(_SHIPPED)}; or give the path of a file ({', '.join(SUFFIXES)})",
        )
    if base is not None:
        path = base / path
    hint = f"shipped vocabularies need no file: {', '.join(_SHIPPED)}"
    try:
        content = read_bytes(path, limit=MAX_BYTES, error=LabelError, hint=hint)
    except FileNotFoundError:
        raise LabelError(f"{path}: the label list cannot be read: No such file", hint=hint) from None
    return _parse(content, path=str(path), name=path.stem, source=ref)


def is_label_file(ref: str) -> bool:
    """Return whether ``ref`` is the path of a label list, by its ending."""
    return ref not in _SHIPPED and Path(ref).suffix.lower() in SUFFIXES


def like_shipped(ref: str) -> str | None:
    """Return the shipped vocabulary that ``ref`` spells in another case or with other hyphens, or None."""
    return {_squeezed(name): name for name in _SHIPPED}.get(_squeezed(ref))


def _squeezed(name: str) -> str:
    return re.sub(r"[\s_-]", "", name).casefold()


def parse_labels(text: str) -> Vocabulary:
    """Parse labels from the command line: a shipped vocabulary, the path of a label list, or comma-separated names.

    Raises: LabelError if a name is malformed, or looks like a file or a vocabulary.
    """
    if text in _SHIPPED or is_label_file(text):
        return load_vocabulary(text)
    lists = _Lists(path="labels", source="")
    names = [name for name in map(str.strip, _parts(text)) if name]
    for id_, name in enumerate(names, start=1):
        known = name if name in _SHIPPED else like_shipped(name)
        if known and (len(names) > 1 or name != known):
            alone = f"give it alone: --labels {known}" if len(names) > 1 else f"--labels {known}"
            raise LabelError(f"{name!r} is the vocabulary {known!r}, not a label", hint=alone)
        if _FILE.match(name):
            raise LabelError(
                f"{printable(name, MAX_NAME)!r} looks like a file, not a label",
                hint=f"a label list ends in {', '.join(SUFFIXES)}; a list may contain any name",
            )
        # Qualifiers, as in "bow (weapon)", stay part of the name.
        lists.labels.append(Label(id=id_, name=lists.clean(name, id_, "a name")))
    if not lists.labels:
        raise LabelError("there are no labels", hint="--labels 'cat, dog', voc20, or a .txt or .yaml file")
    return Vocabulary(name="typed", labels=tuple(lists.labels))


@cache
def _load_shipped(name: str) -> Vocabulary:
    stem, with_background = _SHIPPED[name]
    resource = files("magicseg.labels") / "data" / f"{stem}.yaml"
    vocabulary = _parse(resource.read_bytes(), path=f"{stem}.yaml", name=name, source="")
    return Vocabulary(
        name=name,
        labels=vocabulary.labels,
        background=vocabulary.background if with_background else None,
        source=vocabulary.source,
    )


def _parse(content: bytes, *, path: str, name: str, source: str) -> Vocabulary:
    """Parse a label list. The suffix of ``path`` determines the format."""
    lists = _Lists(path=path, source=source)
    text = _decode(content, lists)
    if path.lower().endswith(".txt"):
        _read_lines(text, lists)
    else:
        _read_yaml(text, lists)
    if not lists.labels:
        raise LabelError(f"{path}: there are no labels in it", hint="write one label per line")
    background = tuple(lists.background) if lists.background else None
    return Vocabulary(name=name, labels=tuple(lists.labels), background=background, source=lists.source)


@dataclass(kw_only=True)
class _Lists:
    """The labels read so far, and the checks of names that all file formats share."""

    path: str
    source: str
    labels: list[Label] = field(default_factory=list)
    background: list[str] = field(default_factory=list)
    lines: dict[str, int] = field(default_factory=dict)
    names: int = 0

    def fail(self, line: int, message: str, hint: str | None = None) -> NoReturn:
        raise LabelError(f"{self.path}:{line}: {printable(message, 600)}", hint=hint)

    def clean(self, raw: str, line: int, what: str) -> str:
        """Return a name in normal form: composed letters (NFC), single spaces."""
        self.names += 1  # YAML aliases can multiply the content of a small file
        if self.names > MAX_NAMES:
            self.fail(line, f"there are more than {MAX_NAMES} labels and synonyms", "split the list")
        for character in raw.strip(" \t"):
            if _is_control(character):
                self.fail(line, f"{what} has the control character {_code(character)}", "remove it")
        name = " ".join(unicodedata.normalize("NFC", raw).split())
        if not name:
            self.fail(line, f"{what} is empty", "remove the item or the surplus comma")
        if len(name) > MAX_NAME:
            self.fail(
                line,
                f"{what} {name[:40]!r}... has {len(name)} characters; at most {MAX_NAME} are allowed",
                "write one label per line",
            )
        return name

    def add(self, raw_name: str, raw_synonyms: list[tuple[str, int]], line: int) -> None:
        """Check a label and append it. ``raw_synonyms`` are pairs of synonym and line number."""
        name = self.clean(raw_name, line, "a name")
        key = name_key(name)
        if key in self.lines:
            self.fail(
                line,
                f"label {name!r} is already on line {self.lines[key]}",
                f"remove one, or tell them apart with a qualifier: {name} (...)",
            )
        if len(self.labels) == MAX_LABELS:
            self.fail(line, f"there are more than {MAX_LABELS} labels", "pixels hold 16 bits; split the list")
        self.lines[key] = line
        if len(raw_synonyms) > MAX_SYNONYMS:
            self.fail(
                line,
                f"label {name!r} has {len(raw_synonyms)} synonyms; at most {MAX_SYNONYMS} are allowed",
                "write one label per line",
            )
        synonyms = {key: name}
        for raw, synonym_line in raw_synonyms:
            synonym = self.clean(raw, synonym_line, f"a synonym of {name!r}")
            synonyms.setdefault(name_key(synonym), synonym)
        self.labels.append(
            Label(
                id=len(self.labels) + 1,
                name=name,
                synonyms=tuple(synonyms.values())[1:],
                qualifier=split_qualifier(name)[1],
            )
        )


def _decode(content: bytes, lists: _Lists) -> str:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        lists.fail(content.count(b"\n", 0, error.start) + 1, "this is not UTF-8 text", "save the list as UTF-8")
    for line, row in _rows(text):
        for character in row if not row.isprintable() else "":
            if character != "\t" and _is_control(character):
                lists.fail(line, f"there is a control character {_code(character)}", "remove it")
    return text


def _rows(text: str) -> Iterator[tuple[int, str]]:
    """Yield numbered lines. Only a line feed, after an optional carriage return, ends a line."""
    for line, row in enumerate(text.split("\n"), start=1):
        yield line, row.removesuffix("\r")


def _is_control(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") and character not in _JOINERS


def _code(character: str) -> str:
    return f"U+{ord(character):04X}"


def _read_lines(text: str, lists: _Lists) -> None:
    for line, row in _rows(text):
        if row.strip() and not row.lstrip().startswith("#"):
            _add_row(row, line, lists)


def _add_row(row: str, line: int, lists: _Lists) -> None:
    name, *synonyms = _parts(row)
    lists.add(name, [(synonym, line) for synonym in synonyms], line)


def _parts(row: str) -> list[str]:
    """Split at commas outside parentheses. An unclosed parenthesis protects no comma."""
    ends, closes = [len(row)], False
    for mark in reversed(list(_MARKS.finditer(row))):
        if mark[0] != ",":
            closes = mark[0] == ")"
        elif not closes:
            ends.append(mark.start())
    starts = [0, *(end + 1 for end in reversed(ends[1:]))]
    return [row[start:end] for start, end in zip(starts, reversed(ends), strict=True)]


def _read_yaml(text: str, lists: _Lists) -> None:
    try:
        _refuse_deep_nesting(text, lists)
        root = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        lists.fail(mark.line + 1 if mark else 1, f"this is not YAML: {problem}", "quote names with punctuation")
    if root is None:
        return
    if isinstance(root, yaml.MappingNode):
        items = _mapping(root, ("labels", "background", "source"), "labels", lists)
        if "source" in items:
            lists.source = _string(items["source"], lists)
            if found := first_control_character(lists.source, allowed="\n\t"):
                lists.fail(_line(items["source"]), f"the source has the control character {found}", "remove it")
        if "background" in items:
            for node in _sequence(items["background"], lists):
                lists.background.append(lists.clean(_string(node, lists), _line(node), "a name of the background"))
        root = items["labels"]
    for node in _sequence(root, lists):
        if isinstance(node, yaml.MappingNode):
            items = _mapping(node, ("name", "synonyms"), "name", lists)
            synonyms = _sequence(items["synonyms"], lists) if "synonyms" in items else []
            lists.add(
                _string(items["name"], lists),
                [(_string(synonym, lists), _line(synonym)) for synonym in synonyms],
                _line(node),
            )
        else:
            _add_row(_string(node, lists), _line(node), lists)


def _refuse_deep_nesting(text: str, lists: _Lists) -> None:
    """Fail for deeply nested YAML: the C composer recurses without a limit. Parsing events does not recurse."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > _MAX_DEPTH:
            line = event.start_mark.line + 1 if event.start_mark else 1
            lists.fail(line, "this is nested too deeply for a list of labels")


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _string(node: yaml.Node, lists: _Lists) -> str:
    if not isinstance(node, yaml.ScalarNode):
        lists.fail(_line(node), "there is a list or a mapping where a name is expected")
    if not node.tag.endswith(":str"):
        kind = node.tag.rpartition(":")[2]
        lists.fail(_line(node), f"YAML reads {node.value!r} as {kind}, not as text", f'quote it: "{node.value}"')
    return str(node.value)


def _sequence(node: yaml.Node, lists: _Lists) -> list[yaml.Node]:
    if not isinstance(node, yaml.SequenceNode):
        lists.fail(_line(node), "a list is expected here", "begin each item with '- '")
    return list(node.value)


def _mapping(node: yaml.MappingNode, known: tuple[str, ...], required: str, lists: _Lists) -> dict[str, yaml.Node]:
    items: dict[str, yaml.Node] = {}
    for key_node, value in node.value:
        key = _string(key_node, lists)
        if key not in known or key in items:
            problem = "twice" if key in items else "unknown"
            lists.fail(_line(key_node), f"the key {key!r} is {problem}", f"known keys: {', '.join(known)}")
        items[key] = value
    if required not in items:
        lists.fail(_line(node), f"the key {required!r} is missing")
    return items
