"""One SHA-256 of what a data set says, whatever way it was made and is kept."""

import hashlib
from collections.abc import Callable

import numpy as np

from magicseg.config.stage_declarations import STAGES
from magicseg.core.errors import IncompleteError
from magicseg.core.files import to_json
from magicseg.core.shard_ranges import format_ranges
from magicseg.core.text import command
from magicseg.run.directory import Run

FORMAT = 1


def logical_digest(run: Run, progress: Callable[[int], None] = lambda shard: None) -> str:
    """SHA-256 over the plan's labels and, in sample order, label ids, captions, pixels and masks.

    Independent of sharding, codecs, job layout and time. Of JPEG images the streams are hashed, not the pixels.
    Arrays are hashed in C order, little-endian; texts and streams with their length before them.

    Raises: IncompleteError when shards are missing, DamageError when stored data cannot be read.
    """
    for stage in STAGES:
        missing = set(range(run.plan.shards)) - run.checked_commits(stage).keys()
        if missing:
            raise IncompleteError(
                f"{run.path}: {len(missing)} shards of {stage} are not done: {format_ranges(missing)}",
                hint=command("magicseg", "run", run.path),
            )
    plan, store = run.plan, run.store
    total = hashlib.sha256()
    header = {"format": FORMAT, "samples": plan.samples, "labels": plan.vocabulary.digest()}
    total.update(to_json(header))

    def add(data: bytes) -> None:
        total.update(len(data).to_bytes(8, "little"))
        total.update(data)

    for shard in range(plan.shards):
        samples = plan.shard_range(shard)
        captions = store.read("describe/captions", samples.start, samples.stop)
        images = store.read("generate/image", samples.start, samples.stop)
        counterfactuals = store.read("generate/counterfactual", samples.start, samples.stop)
        masks = store.read("mask/mask", samples.start, samples.stop)
        for offset, index in enumerate(samples):
            add(np.array(plan.label_ids(index), dtype="<u2").tobytes())
            for text in captions[offset]:
                add(str(text).encode())
            for image in (images[offset], counterfactuals[offset]):
                add(image if isinstance(image, bytes) else image.tobytes())
            add(masks[offset].astype("<u2", copy=False).tobytes())
        progress(shard)
    return total.hexdigest()
