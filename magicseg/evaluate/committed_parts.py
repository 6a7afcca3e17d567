"""Parts of a benchmark: the results of a fixed number of images, committed as one file each."""

import io
import struct
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from magicseg.core.documents import read_bytes
from magicseg.core.files import write_atomic
from magicseg.core.text import command
from magicseg.evaluate.metrics.confusion import Confusion
from magicseg.evaluate.metrics.counts import ImageResult, tabulate
from magicseg.evaluate.metrics.intervals import TABLES, ImageCounts

PART = 16
"""Images in a part, or a few more if images go through the model in batches. A process that stops loses one part at
most."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """Results of some images, in the order of ``names``.

    ``content``: SHA-256 of each image's pixels and ground truth. ``seconds``: time that the work took.
    """

    identity: str
    names: tuple[str, ...]
    content: tuple[str, ...]
    confusion: Confusion
    counts: ImageCounts
    seconds: float

    @classmethod
    def of(
        cls,
        images: Sequence[ImageResult],
        *,
        identity: str,
        names: Sequence[str],
        content: Sequence[str],
        classes: int,
        seconds: float,
    ) -> "Part":
        """Tabulate the results of these images."""
        confusion, counts = tabulate(images, classes)
        return cls(
            identity=identity,
            names=tuple(names),
            content=tuple(content),
            confusion=confusion,
            counts=counts,
            seconds=seconds,
        )


def part_size(batch: int | None) -> int:
    """Return the number of images in a part: `PART`, rounded up to whole batches."""
    return PART if batch is None else -(-PART // batch) * batch


def cut(names: Sequence[str], size: int = PART) -> list[tuple[str, ...]]:
    """Cut a list of images into parts of ``size``; the last may be smaller."""
    return [tuple(names[start : start + size]) for start in range(0, len(names), size)]


def evenly(names: Sequence[str], limit: int | None) -> tuple[str, ...]:
    """Choose at most ``limit`` names, spread evenly over the list. The choice depends on the list and limit alone."""
    if limit is None or limit >= len(names):
        return tuple(names)
    return tuple(names[number * len(names) // limit] for number in range(limit))


def part_path(folder: Path, number: int) -> Path:
    """Return the path of a part."""
    return folder / f"part-{number:05}.npz"


def write_part(path: Path, part: Part) -> None:
    """Write a part atomically. Only counts above 0 are stored."""
    tables = np.stack([getattr(part.counts, name) for name in TABLES])
    image, number = np.nonzero(tables.any(axis=0))
    counterfactual = part.counts.counterfactual
    more: dict[str, Any] = {} if counterfactual is None else {"counterfactual": counterfactual}
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        identity=np.array(part.identity),
        names=np.array(part.names),
        content=np.array(part.content),
        confusion=part.confusion,
        image=image.astype(np.int32),
        number=number.astype(np.int32),
        values=tables[:, image, number],
        seconds=np.array(part.seconds),
        **more,
    )
    write_atomic(path, buffer.getvalue())


def read_part(path: Path, *, identity: str, names: Sequence[str] | None, classes: int) -> Part | None:
    """Read a part. Returns None if it is missing, damaged, or has another identity or other images.

    Args: names: the images that it must have; None: any, up to `PART`.
    """
    images = PART if names is None else len(names)
    try:
        most = (64 << 20) + 16 * classes**2 + 256 * images * classes  # upper bound of an array's bytes
        content_bytes = read_bytes(path, limit=8 * most, hint=command("rm", path))
        with zipfile.ZipFile(io.BytesIO(content_bytes)) as packed:
            if max((each.file_size for each in packed.infolist()), default=0) > most:
                return None
            if packed.testzip() is not None:  # checksums first: NumPy parses what it is given
                return None
        with np.load(io.BytesIO(content_bytes), allow_pickle=False) as stored:
            values = dict(stored)
        stored_names = tuple(str(name) for name in values["names"].tolist())
        if str(values["identity"]) != identity or len(stored_names) > images:
            return None
        if names is not None and stored_names != tuple(names):
            return None
        tables = np.zeros((len(TABLES), len(stored_names), classes), np.int64)
        tables[:, values["image"], values["number"]] = values["values"]
        confusion = np.asarray(values["confusion"], np.int64).reshape(classes, classes)
        content = tuple(str(item) for item in values["content"].tolist())
        seconds = float(values["seconds"].item())
        counterfactual = values.get("counterfactual")
        if counterfactual is not None:
            counterfactual = np.asarray(counterfactual, np.int64).reshape(len(stored_names), classes)
    except FileNotFoundError:
        return None
    except (ValueError, LookupError, TypeError, EOFError, RuntimeError, MemoryError, struct.error, zlib.error):
        return None  # damaged: computed again
    except zipfile.BadZipFile:
        return None  # damaged: computed again
    if (tables[1].sum(axis=0) != confusion.sum(axis=1)).any() or len(content) != len(stored_names):
        return None
    return Part(
        identity=identity,
        names=stored_names,
        content=content,
        confusion=confusion,
        counts=ImageCounts(*tables, counterfactual=counterfactual),
        seconds=seconds,
    )


def join(parts: Sequence[Part]) -> tuple[Confusion, ImageCounts]:
    """Join parts, in their order, into the summed confusion matrix and the counts by image."""
    confusion = np.sum([part.confusion for part in parts], axis=0)
    tables = [np.concatenate([getattr(part.counts, name) for part in parts]) for name in TABLES]
    found = [part.counts.counterfactual for part in parts if part.counts.counterfactual is not None]
    together = np.concatenate(found) if len(found) == len(parts) else None
    return confusion, ImageCounts(*tables, counterfactual=together)
