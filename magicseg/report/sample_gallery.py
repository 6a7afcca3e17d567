"""Choose the samples that a report shows, and encode their images as small PNGs inside the page."""

import base64
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from magicseg.backends import Image
from magicseg.config.stage_declarations import STAGES
from magicseg.core.documents import parse_json
from magicseg.core.errors import DamageError
from magicseg.images.colours import css_colour, overlay
from magicseg.run.directory import Run
from magicseg.run.ledger import CommitRecord

Commits = Mapping[str, Mapping[int, CommitRecord]]

_LONGEST_SIDE = 256  # larger images are downscaled, to keep the page small
_PER_REASON = 2
_MOST_DROPPED = 12


@dataclass(frozen=True, kw_only=True)
class EmbeddedImage:
    """An image in the page. ``source``: a data URL. ``pixelated``: small, so enlarge it without smoothing."""

    what: str
    source: str
    pixelated: bool


@dataclass(frozen=True, kw_only=True)
class ShownSample:
    """A sample for the page. ``labels``: names and colours. ``reason``, ``detail``: why it was dropped, if it was."""

    index: int
    labels: tuple[tuple[str, str], ...]
    caption: str
    counterfactual_caption: str
    images: tuple[EmbeddedImage, ...]
    stage: str | None = None
    reason: str | None = None
    detail: str = ""


def choose_spread(indices: NDArray[np.int64], classes: NDArray[np.integer], count: int) -> list[int]:
    """Choose ``count`` of ``indices``, spread over the classes and, within a class, over the range.

    The choice is deterministic. Classes get equal shares. If there are more classes than ``count``, evenly spaced
    classes are chosen.

    Args: indices: (N,), ascending. classes: (N,), the class of each index.
    Returns: the chosen indices, ascending.
    """
    present = np.unique(classes)
    if len(present) == 0:
        return []
    if len(present) > count:
        present = present[np.arange(count) * len(present) // count]
    members = [indices[classes == class_] for class_ in present]
    wanted = [0] * len(members)
    for _ in range(min(count, sum(map(len, members)))):
        open_ = [index for index, found in enumerate(members) if wanted[index] < len(found)]
        wanted[min(open_, key=lambda index: wanted[index])] += 1
    chosen = [
        int(found[(2 * number + 1) * len(found) // (2 * share)])
        for found, share in zip(members, wanted, strict=True)
        for number in range(share)
    ]
    return sorted(chosen)


def furthest_stage(commits: Commits) -> str | None:
    """Return the last stage that has kept a sample; None if no stage has."""
    for stage in reversed(STAGES):
        if any(record.kept for record in commits[stage].values()):
            return stage
    return None


def choose_kept(run: Run, commits: Commits, count: int) -> list[int]:
    """Return the indices of ``count`` samples that the furthest stage has kept, spread over their first labels."""
    stage = furthest_stage(commits)
    if stage is None:
        return []
    indices = np.array(
        [
            run.plan.shard_range(shard).start + offset
            for shard, record in sorted(commits[stage].items())
            for offset in record.kept_offsets()
        ],
        dtype=np.int64,
    )
    return choose_spread(indices, run.plan.classes[:, 0][indices], count)


def choose_dropped(run: Run, commits: Commits) -> Iterator[tuple[str, int, str, str]]:
    """Yield some dropped samples of every stage and reason: stage, index, reason, detail.

    Raises DamageError if the quality notes of a shard cannot be read.
    """
    left = _MOST_DROPPED
    for stage in STAGES:
        first_shard: dict[str, int] = {}
        for shard, record in sorted(commits[stage].items()):
            for reason in record.dropped:
                first_shard.setdefault(reason, shard)
        for reason, shard in sorted(first_shard.items()):
            samples = run.plan.shard_range(shard)
            notes = run.store.read(f"{stage}/quality", samples.start, samples.stop)
            found = 0
            for index, text in zip(samples, notes, strict=True):
                note = parse_json(str(text), dict[str, Any], source=f"sample {index}", error=DamageError, nan=True)
                if note.get("reason") != reason or found == _PER_REASON or not left:
                    continue
                found, left = found + 1, left - 1
                yield stage, index, reason, str(note.get("detail", ""))


def show_sample(run: Run, index: int, commits: Commits, dropped: tuple[str, str, str] | None = None) -> ShownSample:
    """Read a sample's captions, images and mask, as far as they exist.

    Args: dropped: stage, reason and detail of a dropped sample; None for a kept sample.
    Raises DamageError if the store is damaged.
    """
    ids = run.plan.label_ids(index)
    labels = tuple((run.vocabulary.by_id(id_).name, css_colour(id_)) for id_ in ids)
    # The stage that dropped a sample has written fill values for it, so show only the stages before.
    done = STAGES[: STAGES.index(dropped[0])] if dropped else STAGES
    made = [stage for stage in done if _is_kept(run, commits[stage], index)]
    captions = ("", "")
    images: list[EmbeddedImage] = []
    if "describe" in made:
        first, second = run.store.read("describe/captions", index, index + 1)[0]
        captions = (str(first), str(second))
    if "generate" in made:
        image = run.store.read_images("generate/image", index, index + 1)[0]
        other = run.store.read_images("generate/counterfactual", index, index + 1)[0]
        images += [_embedded("image", image), _embedded("counterfactual", other)]
        if "mask" in made:
            mask = run.store.read("mask/mask", index, index + 1)[0]
            images.append(_embedded("mask", overlay(image, mask)))
    stage, reason, detail = dropped or (None, None, "")
    return ShownSample(
        index=index,
        labels=labels,
        caption=captions[0],
        counterfactual_caption=captions[1],
        images=tuple(images),
        stage=stage,
        reason=reason,
        detail=detail,
    )


def _is_kept(run: Run, commits: Mapping[int, CommitRecord], index: int) -> bool:
    shard, offset = divmod(index, run.plan.shard_size)
    record = commits.get(shard)
    return record is not None and offset in record.kept_offsets()


def _embedded(what: str, image: Image) -> EmbeddedImage:
    side = max(image.shape[:2])
    small = PILImage.fromarray(image)
    if side > _LONGEST_SIDE:
        small.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE), PILImage.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "PNG", optimize=True)
    return EmbeddedImage(
        what=what,
        source="data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii"),
        pixelated=side <= 128,
    )
