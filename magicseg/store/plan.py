"""The plan: the frozen list of samples, and their division into shards.

A plan is ``plan/plan.json`` (settings, labels, checksum) and ``plan/classes.npy`` (uint16, samples x max_labels:
label ids, 0 where a sample has fewer). Which labels a sample has depends on the run's seed and its index alone.
"""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import TypedDict

from magicseg.config.run import Config, PlanSettings
from magicseg.core.digests import file_sha256, json_sha256
from magicseg.core.documents import open_regular, read_json
from magicseg.core.errors import DamageError, LabelError, RunError
from magicseg.core.files import write_atomic
from magicseg.core.randomness import WORDS_PER_SAMPLE, sample_words
from magicseg.core.text import command, printable
from magicseg.labels import Vocabulary

RECIPE = 1
_BLOCK = 65_536  # samples drawn at a time
_STREAM = "plan"


def plan_inputs(config: Config, vocabulary: Vocabulary) -> dict[str, Any]:
    """Return the settings that decide a plan, by dotted key."""
    return {
        "plan.recipe": RECIPE,
        "seed": config.seed,
        "labels.vocabulary": vocabulary.digest(),
        **{f"plan.{key}": value for key, value in config.plan.model_dump(mode="json").items()},
    }


def draw_classes(config: Config, classes: int, start: int, stop: int) -> NDArray[np.uint16]:
    """Return the label ids of the samples ``start`` to ``stop - 1``: uint16 (samples, max_labels).

    0 stands for "no further label".

    The number of labels is uniform in min_labels..max_labels; the labels are different and uniform (a partial
    Fisher-Yates shuffle, driven by the sample's own random words).
    """
    low, high = config.plan.min_labels, config.plan.max_labels
    blocks = -(-(high + 1) // WORDS_PER_SAMPLE)
    words = np.concatenate(
        [sample_words(config.seed, f"{_STREAM}/{block}", start, stop) for block in range(blocks)], axis=1
    )
    count = low + words[:, 0] % np.uint64(high - low + 1)
    chosen = np.zeros((stop - start, high), dtype=np.int64)
    for position in range(high):
        # A draw among the labels not yet chosen, mapped past the chosen ones in ascending order.
        draw = (words[:, position + 1] % np.uint64(classes - position)).astype(np.int64)
        taken = np.sort(chosen[:, :position], axis=1)
        for column in range(position):
            draw += draw >= taken[:, column]
        chosen[:, position] = draw
    ids = (chosen + 1).astype(np.uint16)
    ids[np.arange(high)[None, :] >= count[:, None].astype(np.int64)] = 0
    return ids


@dataclass(frozen=True)
class Plan:
    """A frozen plan, its class table memory-mapped."""

    samples: int
    shard_size: int
    fingerprint: str
    inputs: dict[str, Any]
    vocabulary: Vocabulary
    classes: NDArray[np.uint16]

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.samples // self.shard_size)

    def shard_range(self, shard: int) -> range:
        """Return the sample indices of a shard. The last shard may be shorter."""
        start = shard * self.shard_size
        return range(start, min(start + self.shard_size, self.samples))

    def label_ids(self, index: int) -> tuple[int, ...]:
        """Return the ids of a sample's labels, in the order in which they were drawn."""
        ids = tuple(int(id_) for id_ in self.classes[index] if id_)
        if max(ids, default=0) > len(self.vocabulary):
            raise DamageError(
                f"the plan's sample {index} has label {max(ids)}; the vocabulary has {len(self.vocabulary)}"
            )
        return ids


def write_plan(folder: Path, config: Config, vocabulary: Vocabulary) -> None:
    """Draw and freeze the plan. Raises RunError if the vocabulary is too small."""
    if config.plan.max_labels > len(vocabulary):
        raise RunError(
            f"plan.max_labels is {config.plan.max_labels}, but {vocabulary.name} has {len(vocabulary)} labels",
            hint=f"--set plan.max_labels={len(vocabulary)}",
        )
    folder.mkdir(parents=True, exist_ok=True)
    total = config.plan.samples
    table = folder / "classes.npy"
    temporary = table.with_name("classes.npy.partial")
    header = {"descr": "<u2", "fortran_order": False, "shape": (total, config.plan.max_labels)}
    try:
        # Plain writes, not a memory map: on a full disk a map kills the process without a word.
        with temporary.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for start in range(0, total, _BLOCK):
                stop = min(start + _BLOCK, total)
                file.write(draw_classes(config, len(vocabulary), start, stop).astype("<u2").tobytes())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(table)
    finally:
        temporary.unlink(missing_ok=True)
    inputs = plan_inputs(config, vocabulary)
    document = {
        "inputs": inputs,
        "labels": vocabulary.to_dict(),
        "classes_sha256": file_sha256(table),
    }
    document["checksum"] = json_sha256(document)
    write_atomic(folder / "plan.json", json.dumps(document, indent=1, ensure_ascii=False).encode())


def read_plan(folder: Path) -> Plan:
    """Open a frozen plan. Raises RunError if it is missing, DamageError if it is damaged."""
    try:
        document = _read_document(folder)
        inputs = document["inputs"]
        vocabulary = Vocabulary.from_dict(document["labels"])
        settings = PlanSettings.model_validate(
            {key: inputs[f"plan.{key}"] for key in PlanSettings.model_fields}, strict=True
        )
        samples, shard_size = settings.samples, settings.shard_size
        classes = _read_classes(folder / "classes.npy", (samples, settings.max_labels))
    except FileNotFoundError as error:
        raise RunError(
            f"{error.filename}: the run has no plan", hint=command("magicseg", "reset", "plan", folder.parent)
        ) from None
    except (ValueError, KeyError, LabelError) as error:
        raise DamageError(
            f"{folder}: the plan is damaged: {printable(str(error), 300)}", hint=_repair(folder)
        ) from error
    return Plan(
        samples=samples,
        shard_size=shard_size,
        fingerprint=json_sha256(inputs),
        inputs=inputs,
        vocabulary=vocabulary,
        classes=classes,
    )


class _PlanFile(TypedDict):
    inputs: dict[str, Any]
    labels: dict[str, Any]
    classes_sha256: str
    checksum: str


def _read_document(folder: Path) -> _PlanFile:
    """Read and check the plan's document. Raises FileNotFoundError, DamageError."""
    path = folder / "plan.json"
    document = read_json(path, _PlanFile, error=DamageError, hint=_repair(folder))
    content = {key: value for key, value in document.items() if key != "checksum"}
    if document["checksum"] != json_sha256(content):
        raise DamageError(f"{path}: checksum differs", hint=_repair(folder))
    return document


def _read_classes(path: Path, shape: tuple[int, int]) -> NDArray[np.uint16]:
    """Return the class table, memory-mapped. Raises FileNotFoundError, DamageError, ValueError."""
    with open_regular(path, error=DamageError, hint=_repair(path.parent)) as file:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError(f"{path.name} is not of the version that is written")
        found, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
        if found != shape or is_fortran or dtype != np.dtype("<u2"):
            raise ValueError(f"{path.name} has shape {found} and type {dtype}, not {shape} and uint16")
        if os.fstat(file.fileno()).st_size != file.tell() + math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{path.name} does not have the size of its content")
        return np.memmap(file, dtype=dtype, mode="r", offset=file.tell(), shape=shape)


def _repair(folder: Path) -> str:
    return command("magicseg", "repair", folder.parent)


def plan_damage(folder: Path) -> list[str]:
    """Return a sentence for each fault of the plan's files."""
    try:
        plan = read_plan(folder)
        expected = _read_document(folder)["classes_sha256"]
    except (RunError, DamageError) as error:
        return [error.message]
    if plan.vocabulary.digest() != plan.inputs["labels.vocabulary"]:
        return [f"{folder / 'plan.json'}: the labels are not those that were planned"]
    if file_sha256(folder / "classes.npy") != expected:
        return [f"{folder / 'classes.npy'}: checksum differs"]
    return []
