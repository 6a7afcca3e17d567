"""Benchmark protocols: small data files that say where a benchmark's files are, what they mean, how to score them.

Declarations only. `magicseg.data.ground_truth` reads the files; `magicseg.evaluate.benchmark` scores models.
"""

import os
import re
from dataclasses import replace
from difflib import get_close_matches
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, PrivateAttr, ValidationError, model_validator

from magicseg.config.evaluation import is_protocol_file
from magicseg.core.digests import json_sha256
from magicseg.core.documents import parse_yaml, read_text
from magicseg.core.errors import ConfigError, LabelError
from magicseg.core.setting_errors import first_fault
from magicseg.core.settings import Settings
from magicseg.labels import BACKGROUND, IGNORE, Vocabulary, load_vocabulary

_HINT = "see docs/benchmarks.md"
_GREATEST_VALUE = 65_535  # of 16 bits, the most that an index map has
_SPAN = re.compile(r" *(\d{1,9}) *- *(\d{1,20}) *", re.ASCII)


def _spans(value: Any) -> Any:
    """Expand ranges in a list of numbers, such as ``[0-10, 12, 13-24]``. Raises ValueError if there are too many."""
    if not isinstance(value, list):
        return value
    found: list[Any] = []
    for item in value:
        span = _SPAN.fullmatch(item) if isinstance(item, str) else None
        if span is None:
            found.append(item)
            continue
        first, last = int(span[1]), int(span[2])
        if not first <= last <= _GREATEST_VALUE:
            raise ValueError(f"{item!r} is not an ascending range of numbers up to {_GREATEST_VALUE}")
        found.extend(range(first, last + 1))
        if len(found) > _GREATEST_VALUE:
            raise ValueError(f"there are more than {_GREATEST_VALUE} numbers")
    return tuple(found)


Values = Annotated[tuple[Annotated[int, Field(ge=0, le=_GREATEST_VALUE)], ...], BeforeValidator(_spans)]


class Labels(Settings):
    """One layout of the ground truth: where it lies, and what its numbers mean."""

    path: str = Field(
        description="label files in the data folder, with {name} and {split}: PNGs of numbers, or MATLAB files with "
        "a `LabelMap`; without {name} one COCO file of instances"
    )
    class_values: Values | None = Field(
        None, description="the classes' numbers in the files, in the vocabulary's order; none: 1, 2, 3, ..."
    )
    background_values: Values = Field((0,), description="values of pixels that belong to no label of the vocabulary")
    ignored_values: Values = Field((255,), description="numbers of pixels that do not count")
    other_values: Literal["error", "background"] = Field("error", description="what all other numbers are")

    @property
    def text(self) -> str:
        """What the ground truth is made of, such as ``label maps stuffthingmaps/{split}/{name}.png``."""
        return f"{'label maps' if '{name}' in self.path else 'instances'} {self.path}"


class Background(Settings):
    """The rule by which a pixel is background."""

    rule: Literal["none", "threshold", "prompts"] = Field(
        "none",
        description="none: background is no class; threshold: the best class scores below the threshold; "
        "prompts: names of background are asked like classes, and one of them scores best",
    )
    threshold: float = Field(0.5, ge=0, le=1, description="on the best class's score, where none was swept")
    prompts: tuple[str, ...] = Field((), description="names of background for the rule `prompts`")


class Protocol(Settings):
    """How one benchmark is scored.

    In the numbers of the vocabulary 0 is background and 1 the first label. The background counts as a class where
    the vocabulary has one (``voc21``), else its pixels are ignored (``voc20``).
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    vocabulary: str = Field(description="a shipped vocabulary, or a file beside this one")
    ignore_value: int = Field(255, ge=0, description="the number that ignored pixels get; no class has it")
    split: str = Field("val", description="what is scored; stands for {split} in paths")
    tuning_split: str | None = Field(None, description="another split of the same benchmark, to sweep thresholds on")
    folders: tuple[str, ...] = Field(
        (), description="where the data set lies in a folder of several: the first that is there counts"
    )
    split_lists: tuple[str, ...] = Field(
        (),
        description="files that list the images' names, one a line; the first that is there counts. None: all images",
    )
    images: tuple[str, ...] = Field(
        min_length=1, description="image files, with {name}; the first kind that is there"
    )
    labels_in: tuple[Labels, ...] = Field(min_length=1, description="layouts; the first that is there counts")
    official_images: int | None = Field(None, ge=1, description="images of the split as published")
    origin: str = Field(description="where the data come from: site and archives")
    spelling: dict[str, str] = Field(
        default_factory=dict,
        description="the benchmark's spelling of labels that the vocabulary spells otherwise",
    )
    background: Background = Background()
    short_side: int | None = Field(
        512, ge=1, description="images are resized to this shorter side; none: as they are"
    )
    long_side: int = Field(2048, ge=1, description="but no longer than this")
    window: int | None = Field(512, ge=1, description="side of the sliding window, pixels; none: the whole image")
    stride: int = Field(426, ge=1, description="pixels from one window to the next")
    source: str = Field(description="who published the benchmark, and where")
    sources: dict[str, str] = Field(default_factory=dict, description="where each choice comes from")

    _folder: Path | None = PrivateAttr(None)
    _labels: Vocabulary | None = PrivateAttr(None)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.window is not None and self.stride > self.window:
            raise ValueError(f"windows of {self.window} pixels every {self.stride} leave gaps")
        if self.background.rule == "prompts" and not self.background.prompts:
            raise ValueError("background.rule is prompts, but background.prompts is empty")
        unknown = set(self.sources) - set(type(self).model_fields)
        if unknown:
            raise ValueError(f"sources are of settings; there is no setting {', '.join(sorted(unknown))}")
        return self

    @cached_property
    def labels(self) -> Vocabulary:
        """The vocabulary itself."""
        if self._labels is not None:
            return self._labels
        return load_vocabulary(self.vocabulary, base=self._folder)

    @property
    def counts_background(self) -> bool:
        """Whether background is a class."""
        return self.labels.background is not None

    @property
    def first_value(self) -> int:
        """The number of the first class."""
        return BACKGROUND if self.counts_background else BACKGROUND + 1

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes' names in the benchmark's own spelling; the first has the number `first_value`."""
        background = self.labels.background or ()
        return (*background[:1], *(self.spelling.get(name, name) for name in self.labels.names))

    @property
    def queries(self) -> tuple[tuple[str, ...], ...]:
        """The queries for a model: each label's name and synonyms, then each name of background by itself."""
        asked = [(label.name, *label.synonyms) for label in self.labels.labels]
        prompts = self.background.prompts if self.background.rule == "prompts" else ()
        return (*asked, *((prompt,) for prompt in prompts))

    @property
    def split_list(self) -> str:
        """The first of the files that can list the images of the split."""
        return self.split_lists[0].replace("{split}", self.split)

    def for_split(self, split: str) -> "Protocol":
        """Return the same protocol for another split."""
        return self._copy({"split": split, "official_images": None})

    def for_labelled_folder(self, vocabulary: Vocabulary, **changes: Any) -> "Protocol":
        """Return this layout with other labels, for a folder of training data. Its pixels of 0 are background.

        Ignored pixels get `magicseg.labels.IGNORE`, which is no id of any vocabulary.

        Args: changes: fields to replace, such as ``name``, ``split`` or ``images``.
        """
        copied = self._copy({"ignore_value": IGNORE, "spelling": {}, "official_images": None, **changes})
        copied._labels = replace(vocabulary, background=vocabulary.background or ("background",))
        return copied

    def with_background(self, rule: Literal["threshold", "prompts"]) -> "Protocol":
        """Return the same protocol with another rule for background. Raises ConfigError if the rule cannot apply."""
        if not self.counts_background:
            raise ConfigError(f"{self.name}: background is not a class in it, so no rule is needed")
        if rule == "prompts" and not self.background.prompts:
            raise ConfigError(f"{self.name}: the protocol has no names of background to ask for")
        return self._copy({"background": self.background.model_copy(update={"rule": rule})})

    def to_dict(self) -> dict[str, Any]:
        """Return the protocol in full, as JSON values: its fields, classes and queries."""
        return {
            **self.model_dump(mode="json"),
            "classes": list(self.classes),
            "queries": [list(names) for names in self.queries],
        }

    def digest(self) -> str:
        """Return the SHA-256 of everything that decides scores. Descriptions and file names are left out."""
        words = {"source", "sources", "origin", "folders", "official_images", "vocabulary", "tuning_split"}
        return json_sha256({k: v for k, v in self.to_dict().items() if k not in words})

    def _copy(self, update: dict[str, Any]) -> "Protocol":
        values = {**self.model_dump(), **update}
        copied = type(self).model_validate(values)
        copied._folder, copied._labels = self._folder, self._labels
        return copied


def protocol_names() -> tuple[str, ...]:
    """Return the names of the shipped benchmarks."""
    folder = files("magicseg.data") / "benchmarks"
    return tuple(sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml")))


def load_protocol(name: str) -> Protocol:
    """Load the protocol of a shipped benchmark, or of a .yaml file with the same keys.

    Raises ConfigError, naming the known benchmarks, for an unknown name; or naming the key, for an invalid file.
    """
    if is_protocol_file(name):
        path = Path(os.path.expanduser(name))
        try:
            text = read_text(path, hint=_HINT)
        except FileNotFoundError:
            raise ConfigError(f"{path}: there is no such protocol", hint=_HINT) from None
        return _parse(text, str(path), path.parent)
    known = protocol_names()
    if name not in known:
        nearest = get_close_matches(name.lower(), known, n=1)
        raise ConfigError(
            f"there is no benchmark {name!r}" + (f"; did you mean {nearest[0]!r}?" if nearest else ""),
            hint=f"benchmarks: {', '.join(known)}; or give a .yaml file with a protocol of your own",
        )
    text = (files("magicseg.data") / "benchmarks" / f"{name}.yaml").read_text(encoding="utf-8")
    return _parse(text, f"{name}.yaml", None)


def _parse(text: str, where: str, folder: Path | None) -> Protocol:
    data = parse_yaml(text, source=where, hint=_HINT)
    try:
        protocol = Protocol.model_validate(data)
    except ValidationError as error:
        first = first_fault(error)
        place = first.key or "the protocol"
        raise ConfigError(f"{where}: {place}: {first.message}", hint="keys: docs/benchmarks.md") from error
    protocol._folder = folder
    try:
        labels = protocol.labels
    except LabelError as error:
        raise ConfigError(f"{where}: vocabulary: {error}", hint=error.hint) from error
    _check(protocol, labels, where)
    return protocol


def _check(protocol: Protocol, labels: Vocabulary, where: str) -> None:
    """Check the fields that depend on the vocabulary."""
    has_rule = protocol.background.rule != "none"
    if has_rule != protocol.counts_background:
        wanted = "threshold or prompts" if protocol.counts_background else "none"
        raise ConfigError(
            f"{where}: background.rule must be {wanted}: the vocabulary has "
            + ("a background" if protocol.counts_background else "no background"),
            hint="docs/benchmarks.md: a custom folder",
        )
    if protocol.ignore_value <= len(labels):
        raise ConfigError(f"{where}: ignore_value {protocol.ignore_value} is the number of a class")
    unknown = set(protocol.spelling) - set(labels.names)
    if unknown:
        raise ConfigError(f"{where}: spelling: the vocabulary has no label {sorted(unknown)[0]!r}")
    for layout in protocol.labels_in:
        if layout.class_values is not None and len(layout.class_values) != len(labels):
            raise ConfigError(
                f"{where}: {layout.path}: {len(layout.class_values)} class_values for {len(labels)} labels"
            )
