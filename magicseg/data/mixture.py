"""Open the training data of a run: its own samples, or the sources of its configuration under one vocabulary.

mixed = open_sources(run)
mixed.samples, mixed.vocabulary, mixed.fingerprint
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from magicseg.config.training_data import SELF, SourceSettings
from magicseg.core.digests import json_sha256
from magicseg.core.errors import ConfigError, DataError
from magicseg.data.ground_truth import data_folder
from magicseg.data.held_out_pairs import hold_out
from magicseg.data.kept_samples import KeptSamples
from magicseg.data.labelled_folders import LabelledSamples, coco_samples, is_vocs, protocol_samples, voc_samples
from magicseg.data.protocol import load_protocol
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
    """Opened training data.

    ``samples``: for `magicseg.train.loop.train`. ``fingerprint``: of the data; that of the masks if a run's own
    samples are the only source. ``provenance``: sources and counts of samples, as JSON values.
    """

    samples: "Mixture"
    vocabulary: Vocabulary
    fingerprint: str
    provenance: dict[str, Any]


@dataclass(frozen=True)
class Renamed:
    """A source with its ids mapped to the training vocabulary. ``table``: uint16 (65536,), from id to id."""

    source: "Samples"
    table: NDArray[np.uint16]

    @property
    def indices(self) -> NDArray[np.int64]:
        """The source's."""
        return self.source.indices

    @property
    def shard_size(self) -> int:
        """The source's."""
        return self.source.shard_size

    @property
    def image_size(self) -> int | None:
        """The source's."""
        return self.source.image_size

    @property
    def validated(self) -> bool:
        """The source's."""
        return self.source.validated

    @property
    def allowed(self) -> None:
        """None: which classes a source lacks is known to the mixture only."""
        return

    def labels(self) -> NDArray[np.uint16]:
        """Return the source's labels in ids of the training vocabulary."""
        ids = self.table[self.source.labels()]
        for row in ids:  # two of the source's names may be one here
            distinct = np.unique(row[row > 0])
            row[:] = 0
            row[: len(distinct)] = distinct
        return ids

    def read(self, indices: NDArray[np.int64]) -> "Read":
        """Return the source's samples, with masks in ids of the training vocabulary."""
        images, counterfactuals, masks = self.source.read(indices)
        return images, counterfactuals, [self.table[mask] for mask in masks]


def open_sources(run: Run, *, stage: bool = True, tell: Callable[[str], None] = lambda text: None) -> Sources:
    """Open all training data of a run.

    Args: stage: copy runs' samples to the node's own disk if ``train.stage_to`` is set; the fingerprint needs no
    copy. tell: called with assumptions about a source.
    Raises: IncompleteError if a run's data are incomplete; DataError, naming the files, if a folder lacks some;
        ConfigError if the sources cannot be mixed; StoreError if there is no room to stage.
    """
    from magicseg.data.dataset import Mixture

    settings = run.config.train
    if not settings.sources:
        kept = _kept(run, run, stage=stage)
        counts = {"samples": len(kept.indices), "near_duplicates": kept.near_duplicates}
        if settings.held_out:
            counts["held_out"] = settings.held_out
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
    fingerprint = json_sha256({"sources": identities, "classes": vocabulary.names})
    return Sources(Mixture(tuple(samples), weights, allowed), vocabulary, fingerprint, provenance)


def _kept(run: Run, trained: Run, *, stage: bool) -> KeptSamples:
    """Return the samples of ``run`` to train on; of those of ``trained`` itself, some may be held out."""
    kept = KeptSamples.of(run, settings=trained.config.train)
    if trained.config.train.held_out and run.path.resolve() == trained.path.resolve():
        kept, _ = hold_out(kept, trained)
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
    labelled = _labelled(source, run, tell)
    return labelled, labelled.vocabulary, labelled.identity()


def _labelled(source: SourceSettings, run: Run, tell: Callable[[str], None]) -> LabelledSamples:
    assert source.split is not None
    if source.coco is not None:
        return coco_samples(Path(source.coco), source.split)
    if source.voc is not None:
        return _voc(Path(source.voc), source.split, source.labels, run, tell)
    assert source.protocol is not None
    assert source.data is not None
    protocol = load_protocol(source.protocol)
    if source.split == protocol.split:
        tell(f"{protocol.name}: {source.split!r}, which training reads here, is the split that this benchmark scores")
    return protocol_samples(protocol.for_split(source.split), data_folder(protocol, Path(source.data)))


def _voc(path: Path, split: str, labels: str | None, run: Run, tell: Callable[[str], None]) -> LabelledSamples:
    """Open a folder in VOC's layout with the vocabulary ``labels``; without it, with the run's if all ids fit.

    Raises DataError if they do not, or if the images are those of PASCAL VOC, whose ids are not the run's.
    """
    if labels is not None:
        return voc_samples(path, split, load_vocabulary(labels))
    folder = voc_samples(path, split, run.vocabulary)
    if is_vocs(run.vocabulary):
        return folder
    example = f"{{voc: {path}, split: {split}, labels: LIST}}   # LIST: voc20, or a file of labels by their ids"
    if all(map(_VOC_NAME.fullmatch, folder.data.names)):
        raise DataError(
            f"{path}: the images are named like those of PASCAL VOC, but the run's labels are not VOC's; "
            "name the labels of this source",
            hint=example,
        )
    try:
        folder.check_labels()
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
    """Merge vocabularies: the names of the first, then the new names of each following one, in order.

    A name is matched to an earlier name in two steps. First, names match if they are equal apart from case and white
    space. Otherwise they match if one is a synonym of the other; the match must be unique among the earlier names,
    and the name's own vocabulary must not contain the earlier name itself. A name without a match is new.

    Returns: the merged vocabulary, and for each given vocabulary a table uint16 (65536,) from its ids to the merged
    ids. BACKGROUND and IGNORE map to themselves.
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
