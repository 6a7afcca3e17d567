"""What a label and a vocabulary are. Reading them from files is in `magicseg.labels.reading`."""

import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from typing import Any, Self

from magicseg.core.errors import LabelError
from magicseg.labels.inflect import plural

BACKGROUND = 0
"""The value of a pixel that shows none of the vocabulary's labels."""

IGNORE = 65535
"""The value of a pixel that is left out of training and of scores."""

MAX_LABELS = IGNORE - 1

_QUALIFIED = re.compile(r"(?P<text>.*[^\s(]) ?\((?P<qualifier>[^()]+)\)", re.DOTALL)


def split_qualifier(name: str) -> tuple[str, str | None]:
    """Split a trailing qualifier off: "bow (weapon)" gives ("bow", "weapon"), "bow" gives ("bow", None)."""
    match = _QUALIFIED.fullmatch(name)
    if match is None:
        return name, None
    return match["text"].strip(), match["qualifier"].strip() or None


def name_key(name: str) -> str:
    """What two spellings of one name have in common: neither case, nor width of letters, nor white space."""
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


@dataclass(frozen=True, kw_only=True)
class Label:
    """One class.

    ``name`` is its identity, unique in the vocabulary, and holds the qualifier that tells namesakes apart:
    "bow (weapon)" and "bow (decorative ribbons)". ``text`` ("bow") and the ``synonyms`` are what a caption
    says. A text encoder gets ``name``, so that namesakes do not share an embedding.
    """

    id: int
    name: str
    synonyms: tuple[str, ...] = ()
    qualifier: str | None = None

    @property
    def text(self) -> str:
        """The name without its qualifier."""
        return self.name if self.qualifier is None else split_qualifier(self.name)[0]

    @cached_property
    def forms(self) -> tuple[str, ...]:
        """All surface forms: text, synonyms (without qualifiers), then the plurals of these; none twice."""
        singular = [self.text, *(split_qualifier(synonym)[0] for synonym in self.synonyms)]
        return tuple(dict.fromkeys([*singular, *map(plural, singular)]))


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """An ordered list of labels with ids 1 to C.

    ``background`` holds the names of the background class where the benchmark has one, else None; it is not
    among the labels. ``source`` says where the names come from.
    """

    name: str
    labels: tuple[Label, ...]
    background: tuple[str, ...] | None = None
    source: str = ""

    def __post_init__(self) -> None:
        if not self.labels:
            raise LabelError(f"vocabulary {self.name!r} has no labels")
        if len(self.labels) > MAX_LABELS:
            raise LabelError(f"vocabulary {self.name!r} has {len(self.labels)} labels; at most {MAX_LABELS} fit")
        for place, label in enumerate(self.labels, start=1):
            if label.id != place:
                raise LabelError(f"vocabulary {self.name!r}: label {label.name!r} has id {label.id}, not {place}")
        seen: dict[str, int] = {}
        for label in self.labels:
            earlier = seen.setdefault(name_key(label.name), label.id)
            if earlier != label.id:
                raise LabelError(
                    f"vocabulary {self.name!r}: {label.name!r} names both {earlier} and {label.id}",
                    hint="remove one of the two",
                )

    def __len__(self) -> int:
        return len(self.labels)

    def __getstate__(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "labels": self.labels,
            "background": self.background,
            "source": self.source,
        }

    @property
    def names(self) -> tuple[str, ...]:
        """The labels' names in the order of their ids."""
        return tuple(label.name for label in self.labels)

    def by_id(self, id: int) -> Label:
        """The label with this id (1 to C). Raises: LabelError."""
        if not 1 <= id <= len(self.labels):
            raise LabelError(f"vocabulary {self.name!r} has no label {id}: its ids are 1 to {len(self.labels)}")
        return self.labels[id - 1]

    def by_name(self, name: str) -> Label:
        """The label with this name, whatever its case and white space.

        Raises: LabelError naming the nearest.
        """
        label = self._by_key.get(name_key(name))
        if label is None:
            nearest = get_close_matches(name_key(name), self._by_key, n=3)
            raise LabelError(
                f"vocabulary {self.name!r} has no label {name!r}",
                hint=f"nearest: {', '.join(self._by_key[key].name for key in nearest)}" if nearest else None,
            )
        return label

    def to_dict(self) -> dict[str, Any]:
        """The vocabulary as plain values; `from_dict` reads it."""
        return {
            "name": self.name,
            "source": self.source,
            "background": None if self.background is None else list(self.background),
            "labels": [
                {
                    "id": label.id,
                    "name": label.name,
                    "synonyms": list(label.synonyms),
                    "qualifier": label.qualifier,
                }
                for label in self.labels
            ],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The vocabulary that `to_dict` gave. Raises: LabelError where it is malformed."""
        try:
            background = values["background"]
            return cls(
                name=values["name"],
                source=values["source"],
                background=None if background is None else tuple(background),
                labels=tuple(
                    Label(
                        id=label["id"],
                        name=label["name"],
                        synonyms=tuple(label["synonyms"]),
                        qualifier=label["qualifier"],
                    )
                    for label in values["labels"]
                ),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise LabelError(f"malformed vocabulary: {type(error).__name__}: {error}") from error

    def digest(self) -> str:
        """SHA-256 of labels and background as canonical JSON.

        Neither ``name`` nor ``source`` counts: the same list in another file is the same vocabulary.
        """
        content = {key: value for key, value in self.to_dict().items() if key in ("background", "labels")}
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    @cached_property
    def _by_key(self) -> dict[str, Label]:
        return {name_key(label.name): label for label in self.labels}
