"""What a run is trained on: its own samples, or the sources of its configuration under one vocabulary.

mixed = open_sources(run)
mixed.samples, mixed.vocabulary, mixed.fingerprint
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from magicseg.config.training_data import SELF, SourceSettings
from magicseg.core.errors import ConfigError, DataError
from magicseg.core.files import to_json
from magicseg.data.kept_samples import KeptSamples
from magicseg.data.labelled_folders import CocoFolder, VocFolder, is_vocs
from magicseg.data.staging import staged
from magicseg.labels import IGNORE, Label, Vocabulary, load_vocabulary
from magicseg.labels.vocabulary import name_key, split_qualifier
from magicseg.run.directory import Run

if TYPE_CHECKING:
    from magicseg.data.dataset import Mixture, Read, Samples

_VOC_NAME = re.compile(r"20\d\d_\d{6}")  # how PASCAL VOC names its images
_SHOWN = 8


@dataclass(frozen=True)
class Sources:
    """``samples``: what `magicseg.train.loop.train` takes. ``fingerprint``: names the data; of a run's own samples
    alone it is that of its masks. ``provenance``: what there is, as JSON values.
    """

    samples: "Mixture"
    vocabulary: Vocabulary
    fingerprint: str
    provenance: dict[str, Any]


@dataclass(frozen=True)
class Renamed:
    """A source whose ids are exchanged for those of the training's vocabulary. ``table``: uint16 (65536,)."""

    source: "Samples"
    table: NDArray[np.uint16]

    @property
    def indices(self) -> NDArray[np.int64]:
        """As the source has them."""
        return self.source.indices

    @property
    def shard_size(self) -> int:
        """As the source has it."""
        return self.source.shard_size

    @property
    def image_size(self) -> int | None:
        """As the source has it."""
        return self.source.image_size

    @property
    def allowed(self) -> None:
        """A source alone does not know what others have."""
        return

    def labels(self) -> NDArray[np.uint16]:
        """The source's, in ids of the training."""
        ids = self.table[self.source.labels()]
        for row in ids:  # two of the source's names may be one here
            distinct = np.unique(row[row > 0])
            row[:] = 0
            row[: len(distinct)] = distinct
        return ids

    def read(self, indices: NDArray[np.int64]) -> "Read":
        """The source's samples, masks in ids of the training."""
        images, counterfactuals, masks = self.source.read(indices)
        return images, counterfactuals, [self.table[mask] for mask in masks]


def open_sources(run: Run, *, stage: bool = True, tell: Callable[[str], None] = lambda text: None) -> Sources:
    """Everything that a run's training reads.

    Args: stage: copy to the node's own disk where the settings say so; not needed for the fingerprint alone.
    tell: called with what was assumed of a source.
    Raises: IncompleteError where a run's data are not whole; DataError naming what a folder lacks; ConfigError for
        sources that cannot be mixed; StoreError when there is no room to stage.
    """
    from magicseg.data.dataset import Mixture

    settings = run.config.train
    if not settings.sources:
        kept = _kept(run, run, stage=stage)
        counts = {"samples": len(kept.indices), "near_duplicates": kept.near_duplicates}
        return Sources(Mixture.of(kept), run.vocabulary, run.fingerprints["mask"].digest, counts)
    opened = [_open(source, run, stage=stage, tell=tell) for source in settings.sources]
    vocabulary, tables = union([run.vocabulary, *(names for _, names, _ in opened)])
    allowed = np.zeros((len(opened), len(vocabulary)), bool)
    samples: list[Samples] = []
    for row, (source, names, _), table in zip(allowed, opened, tables[1:], strict=True):
        row[table[1 : len(names) + 1] - 1] = True
        same = np.array_equal(table[: len(names) + 1], np.arange(len(names) + 1))
        samples.append(source if same else Renamed(source, table))
    weights = tuple(source.weight for source in settings.sources)
    identities = [{**identity, "weight": weight} for (_, _, identity), weight in zip(opened, weights, strict=True)]
    provenance: dict[str, Any] = {
        "samples": sum(len(source.indices) for source in samples),
        "sources": [
            {**identity, "samples": len(source.indices)} for identity, source in zip(identities, samples, strict=True)
        ],
    }
    fingerprint = hashlib.sha256(to_json({"sources": identities, "classes": vocabulary.names})).hexdigest()
    return Sources(Mixture(tuple(samples), weights, allowed), vocabulary, fingerprint, provenance)


def _kept(run: Run, trained: Run, *, stage: bool) -> KeptSamples:
    kept = KeptSamples.of(run, settings=trained.config.train)
    folder = trained.config.train.stage_to
    return kept if folder is None or not stage else staged(kept, folder, key=run.fingerprints["mask"].digest)


def _open(
    source: SourceSettings, run: Run, *, stage: bool, tell: Callable[[str], None]
) -> "tuple[Samples, Vocabulary, dict[str, Any]]":
    if source.run is not None:
        other = run if source.run == SELF else Run.open(Path(source.run))
        return (
            _kept(other, run, stage=stage),
            other.vocabulary,
            {"layout": "run", "masks": other.fingerprints["mask"].digest},
        )
    assert source.split is not None
    if source.voc is not None:
        voc = _voc(source, run, tell)
        return voc, voc.vocabulary, voc.identity()
    assert source.coco is not None
    coco = CocoFolder.open(Path(source.coco), source.split)
    return coco, coco.vocabulary, coco.identity()


def _voc(source: SourceSettings, run: Run, tell: Callable[[str], None]) -> VocFolder:
    """Open a folder in VOC's layout with the vocabulary of its ``labels``, else with the run's if all ids fit.

    Raises: DataError if they do not, or if the images are those of PASCAL VOC, whose ids are not the run's.
    """
    assert source.voc is not None
    assert source.split is not None
    path = Path(source.voc)
    if source.labels is not None:
        return VocFolder.open(path, source.split, load_vocabulary(source.labels))
    folder = VocFolder.open(path, source.split, run.vocabulary)
    if is_vocs(run.vocabulary):
        return folder
    example = (
        f"{{voc: {path}, split: {source.split}, labels: LIST}}   # LIST: voc20, or a file of labels by their ids"
    )
    if all(map(_VOC_NAME.fullmatch, folder.names)):
        raise DataError(
            f"{path}: the images are named like those of PASCAL VOC, but the run's labels are not VOC's; "
            "name the labels of this source",
            hint=example,
        )
    try:
        folder.check_ids()
    except DataError as error:
        raise DataError(
            f"{error.message}; the source has no `labels:`, so the run's labels were tried", hint=example
        ) from error
    tell(f"{path}: no `labels:`; ids 1 to {len(run.vocabulary)} refer to the run's labels: {_shown(run.vocabulary)}")
    return folder


def _shown(vocabulary: Vocabulary) -> str:
    names = vocabulary.names
    return ", ".join(names) if len(names) <= _SHOWN else f"{', '.join(names[:_SHOWN])}, ..."


def union(vocabularies: Sequence[Vocabulary]) -> tuple[Vocabulary, list[NDArray[np.uint16]]]:
    """One vocabulary with all names: the first's as they are, then the new ones of each other, in order.

    A name is an earlier one's if they are equal but for case and spaces; else if one is a synonym of the other and
    that holds for no second earlier name, and the vocabulary has no label of the earlier name itself; else it is new.

    Returns: the vocabulary, and per given vocabulary a table uint16 (65536,) from its ids to the new ones; 0 stays
    background, IGNORE stays IGNORE.
    """
    labels: list[Label] = []
    tables = []
    for vocabulary in vocabularies:
        table = np.full(IGNORE + 1, IGNORE, np.uint16)
        table[0] = 0
        own = {name_key(label.name) for label in vocabulary.labels}
        earlier = tuple(labels)
        by_key = {name_key(label.name): label.id for label in earlier}
        for label in vocabulary.labels:
            found = by_key.get(name_key(label.name))
            if found is None:
                like = [each.id for each in earlier if name_key(each.name) not in own and _synonymous(each, label)]
                found = like[0] if len(like) == 1 else None
            if found is None:
                found = len(labels) + 1
                labels.append(replace(label, id=found))
            table[label.id] = found
        tables.append(table)
    if len(labels) > IGNORE - 1:
        raise ConfigError(f"the sources have {len(labels)} different names in all; at most {IGNORE - 1} fit")
    first = vocabularies[0]
    if len(labels) == len(first):
        return first, tables
    names = "+".join(dict.fromkeys(vocabulary.name for vocabulary in vocabularies))
    return replace(first, name=names, labels=tuple(labels), source="; ".join(v.source for v in vocabularies)), tables


def _synonymous(one: Label, other: Label) -> bool:
    return name_key(one.name) in _synonyms(other) or name_key(other.name) in _synonyms(one)


def _synonyms(label: Label) -> set[str]:
    return {name_key(split_qualifier(synonym)[0]) for synonym in label.synonyms}
