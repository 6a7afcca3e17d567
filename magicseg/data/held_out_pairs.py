"""Pairs of a run that are held out of its training: which they are, and the benchmark that they make.

    trained, held_out = hold_out(KeptSamples.of(run), run)

Scores on them are against the run's own masks, which a model made. They are no ground truth.
"""

import hashlib
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from magicseg.config.evaluation import OWN_MASKS
from magicseg.core.errors import ConfigError
from magicseg.core.files import to_json
from magicseg.core.randomness import sample_words
from magicseg.data.kept_samples import KeptSamples
from magicseg.data.protocol import Background, Labels, Protocol
from magicseg.run.directory import Run

_STREAM = "train/held-out"
_BLOCK = 1 << 16  # samples whose hashes are computed at a time


def hold_out(kept: KeptSamples, run: Run) -> tuple[KeptSamples, KeptSamples]:
    """Split a run's kept samples into those to train on and the ``train.held_out`` that are held out.

    Each sample has a hash of the run's seed and its index; the samples with the smallest hashes are held out. The
    choice does not depend on shards or order. If one of them is dropped, the sample with the next hash replaces it,
    and the others stay.

    Raises: ConfigError if no sample is left to train on.
    """
    count = run.config.train.held_out
    if count >= len(kept.indices):
        raise ConfigError(
            f"{run.path}: train.held_out is {count}, with {len(kept.indices)} samples kept: none is left to train on",
            hint=f"set train.held_out below {len(kept.indices)}",
        )
    chosen = np.zeros(len(kept.indices), bool)
    chosen[np.argsort(_hashes(kept.indices, run.config.seed), kind="stable")[:count]] = True
    return _part(kept, ~chosen), _part(kept, chosen)


def _hashes(indices: NDArray[np.int64], seed: int) -> NDArray[np.uint64]:
    """Return a hash of each sample's index, uint64 (samples,). Args: indices: ascending."""
    found = np.empty(len(indices), np.uint64)
    for block in np.unique(indices // _BLOCK).tolist():
        first, last = np.searchsorted(indices, (block * _BLOCK, (block + 1) * _BLOCK))
        start, stop = int(indices[first]), int(indices[last - 1]) + 1
        found[first:last] = sample_words(seed, _STREAM, start, stop)[indices[first:last] - start, 0]
    return found


def _part(kept: KeptSamples, chosen: NDArray[np.bool_]) -> KeptSamples:
    planned = None if kept.planned is None else kept.planned[chosen]
    return replace(kept, indices=kept.indices[chosen], planned=planned)


@dataclass(frozen=True, kw_only=True)
class HeldOutPairs:
    """A run's held-out pairs as a `magicseg.data.labelled_images.LabelledImages`; names are indices of samples.

    The "ground truth" is the run's own masks. Images are resized and cut as for training.
    """

    run: Run = field(repr=False)
    samples: KeptSamples

    batch: ClassVar[None] = None
    has_counterfactuals: ClassVar[bool] = True

    @classmethod
    def of(cls, run: Run) -> "HeldOutPairs":
        """Open the pairs. Raises: as `KeptSamples.of` and `hold_out` do; ConfigError if none is held out."""
        if not run.config.train.held_out:
            raise ConfigError(
                f"{run.path}: the benchmark {OWN_MASKS} needs pairs that are held out of training, and "
                "train.held_out is 0",
                hint="set train.held_out, such as 256, and train again; or name another benchmark",
            )
        return cls(run=run, samples=hold_out(KeptSamples.of(run), run)[1])

    @cached_property
    def protocol(self) -> Protocol:
        """Background is a class by a threshold of 0.5. Queries are the names alone, as in training.

        Without ``train.crop`` images are scored whole and unresized. With it, their shorter side is
        ``train.resize_short``, and windows of ``train.crop`` pixels overlap by a sixth.
        """
        train, vocabulary = self.run.config.train, self.run.vocabulary
        declared = Protocol(
            name=OWN_MASKS,
            vocabulary=vocabulary.name,
            split="held out of training",
            images=("{name}",),
            labels_in=(Labels(path="{name}"),),
            background=Background(rule="threshold"),
            short_side=None if train.crop is None else train.resize_short,
            long_side=train.resize_long,
            window=train.crop,
            stride=1 if train.crop is None else max(1, train.crop * 5 // 6),
            origin="held out of a run's training",
            source="the run's own masks",
        )
        names_alone = tuple(replace(label, synonyms=()) for label in vocabulary.labels)
        return declared.for_labelled_folder(replace(vocabulary, labels=names_alone, background=("background",)))

    @property
    def ground_truth(self) -> str:
        """What the masks are."""
        return f"none, but the run's own masks, made by {self.run.config.mask.backend}"

    @property
    def layout_path(self) -> str:
        """Where the masks are, for provenance."""
        return "mask/mask"

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The samples' indices, ascending."""
        return tuple(map(str, self.samples.indices.tolist()))

    def pair(self, name: str) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
        """Return the image, uint8 (H, W, 3), and its mask, uint16 (H, W). Raises DamageError."""
        image, mask, _ = self.with_counterfactual(name)
        return image, mask

    def with_counterfactual(self, name: str) -> tuple[NDArray[np.uint8], NDArray[np.uint16], NDArray[np.uint8]]:
        """Return the image, its mask and its counterfactual. Raises DamageError if one cannot be read."""
        images, counterfactuals, masks = self.samples.read(np.array([int(name)]))
        return images[0], masks[0], counterfactuals[0]

    def where(self, name: str) -> str:
        """Return the sample's index and the run in words."""
        return f"sample {name} of {self.run.path}"

    def digest(self) -> str:
        """Return the SHA-256 of the data set's fingerprint and the held-out samples."""
        content = {"masks": self.run.fingerprints["mask"].digest, "samples": self.samples.indices.tolist()}
        return hashlib.sha256(to_json(content)).hexdigest()

    def about(self) -> dict[str, str]:
        """Return what the masks are."""
        return {"ground_truth": self.ground_truth}
