"""The data classes Label and Vocabulary. `magicseg.labels.vocabulary_files` reads them from files."""

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
"""The value of pixels that belong to no label of the vocabulary."""

IGNORE = 65535
"""The value of pixels that training and scores ignore."""

MAX_LABELS = IGNORE - 1

_QUALIFIED = re.compile(r"(?P<text>.*[^\s(]) ?\((?P<qualifier>[^()]+)\)", re.DOTALL)


def split_qualifier(name: str) -> tuple[str, str | None]:
    """Split a trailing qualifier off: "bow (weapon)" gives ("bow", "weapon"), "bow" gives ("bow", None)."""
    match = _QUALIFIED.fullmatch(name)
    if match is None:
        return name, None
    return match["text"].strip(), match["qualifier"].strip() or None


def name_key(name: str) -> str:
    """Return a key for comparing names that ignores case, the width of letters and white space."""
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


@dataclass(frozen=True, kw_only=True)
class Label:
    """One class.

    ``name`` is unique in the vocabulary. It includes the qualifier that distinguishes homonyms: "bow (weapon)" and
    "bow (decorative ribbons)". Captions use ``text`` ("bow") and the ``synonyms``. A text encoder gets ``name``, so
    that homonyms have different embeddings.
    """

    id: int
    name: str
    synonyms: tuple[str, ...] = ()
    qualifier: str | None = None

    @property
    def text(self) -> str:
        """Return the name without its qualifier."""
        return self.name if self.qualifier is None else split_qualifier(self.name)[0]

    @cached_property
    def forms(self) -> tuple[str, ...]:
        """Return all surface forms: text, synonyms without qualifiers, then their plurals, without duplicates."""
        singular = [self.text, *(split_qualifier(synonym)[0] for synonym in self.synonyms)]
        return tuple(dict.fromkeys([*singular, *map(plural, singular)]))


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """An ordered list of labels with ids 1 to C.

    ``background``: the names of the background class, or None if the benchmark has no background class. The
    background is not among the labels. ``source``: the origin of the names.
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
        for id_, label in enumerate(self.labels, start=1):
            if label.id != id_:
                raise LabelError(f"vocabulary {self.name!r}: label {label.name!r} has id {label.id}, not {id_}")
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
        """Return the labels' names in the order of their ids."""
        return tuple(label.name for label in self.labels)

    def by_id(self, id: int) -> Label:
        """Return the label with this id (1 to C). Raises: LabelError if the id is out of range."""
        if not 1 <= id <= len(self.labels):
            raise LabelError(f"vocabulary {self.name!r} has no label {id}: its ids are 1 to {len(self.labels)}")
        return self.labels[id - 1]

    def by_name(self, name: str) -> Label:
        """Return the label with this name. Case and white space do not matter.

        Raises: LabelError, with the most similar names, if there is no such label.
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
        """Return the vocabulary as plain data for `from_dict`."""
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
        """Return a vocabulary from the data of `to_dict`. Raises: LabelError if the data is malformed."""
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
        """Return the SHA-256 of labels and background as canonical JSON.

        ``name`` and ``source`` are not included: the same list in another file is the same vocabulary.
        """
        content = {key: value for key, value in self.to_dict().items() if key in ("background", "labels")}
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    @cached_property
    def _by_key(self) -> dict[str, Label]:
        return {name_key(label.name): label for label in self.labels}
