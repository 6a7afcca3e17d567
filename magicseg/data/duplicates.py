"""Near duplicates: images whose hashes differ in a few bits from an earlier one's."""

from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import StringConstraints
from typing_extensions import TypedDict

from magicseg.core.documents import parse_json
from magicseg.core.errors import DamageError, IncompleteError
from magicseg.core.shard_ranges import format_ranges
from magicseg.core.text import command
from magicseg.run.directory import Run

HASH_BITS = 64


class _Hashed(TypedDict, total=False):
    hash: Annotated[str, StringConstraints(pattern="^[0-9a-f]{1,16}$")]


def near_duplicates(hashes: NDArray[np.uint64], bits: int) -> NDArray[np.bool_]:
    """Return which of ``hashes`` (n,) differ in at most ``bits`` (0 to 7) bits from an earlier one that was kept.

    Two such hashes agree in one of ``bits`` + 1 bands of bits, so only hashes with an equal band are compared.
    """
    edges = np.linspace(0, HASH_BITS, bits + 2).astype(np.uint64)
    widths = np.diff(edges)
    masks = np.array([(1 << int(width)) - 1 for width in widths], dtype=np.uint64)
    bands = (hashes[:, None] >> edges[:-1]) & masks
    seen: list[dict[int, list[int]]] = [{} for _ in widths]
    found = np.zeros(len(hashes), dtype=bool)
    for place, own in enumerate(bands.tolist()):
        near = [other for band, value in enumerate(own) for other in seen[band].get(value, ())]
        if near and int(np.bitwise_count(hashes[near] ^ hashes[place]).min()) <= bits:
            found[place] = True
            continue
        for band, value in enumerate(own):
            seen[band].setdefault(value, []).append(place)
    return found


def image_hashes(run: Run, indices: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return the hashes of samples' images, (n,), which the generate stage measured.

    Args: indices: ascending. Raises: IncompleteError if an earlier version generated images without hashes.
    """
    hashes: list[int] = []
    missing: list[int] = []
    for shard in np.unique(indices // run.plan.shard_size).tolist():
        samples = run.plan.shard_range(shard)
        texts = run.store.read("generate/quality", samples.start, samples.stop)
        for index in indices[(indices >= samples.start) & (indices < samples.stop)].tolist():
            source = f"{run.store.path}: quality of sample {index}"
            note = parse_json(str(texts[index - samples.start]), _Hashed, source=source, error=DamageError, nan=True)
            if "hash" in note:
                hashes.append(int(note["hash"], 16))
            else:
                missing.append(index)
    if missing:
        raise IncompleteError(
            f"{run.path}: train.duplicate_bits is set, but samples {format_ranges(missing[:20])} have no hash",
            hint=f"set it to null, or: {command('magicseg', 'reset', 'generate', run.path)}",
        )
    return np.array(hashes, dtype=np.uint64)
