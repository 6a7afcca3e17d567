"""One head on one benchmark: resumable, shared out over processes, the same result whoever did which part.

    outcome = evaluate_benchmark(head, load_protocol("voc21"), data_dir, results_dir)
    outcome.results["miou"], outcome.results["miou_interval"]

Files: ``RESULTS/BENCHMARK/HEAD/part-00003.npz`` for every `PART` images, and ``results.json`` when all parts are
there, written by whoever finishes last or by the next call. With a limit one folder deeper: ``.../limit-50/``.
"""

import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from magicseg.core.documents import parse_json, read_bytes, without_nan
from magicseg.core.errors import ConfigError, DataError
from magicseg.core.files import storage_errors, to_json, write_atomic
from magicseg.core.text import command
from magicseg.data.ground_truth import DataSet, open_data_set
from magicseg.data.protocol import Protocol
from magicseg.evaluate.decoding import WINDOWS_AT_ONCE, ImageFailed, label_image, threshold_of
from magicseg.evaluate.metrics.counts import (
    CONVENTIONS,
    COUNTS_RECIPE,
    ImageResult,
    count_image,
    image_scores,
    scored,
)
from magicseg.evaluate.metrics.counts import (
    RECIPE as SCORES_RECIPE,
)
from magicseg.evaluate.parts import PART, Part, cut, evenly, join, part_path, read_part, write_part
from magicseg.evaluate.threshold import Threshold
from magicseg.run.attempts import Attempts, told
from magicseg.run.versions import library_versions

if TYPE_CHECKING:
    from magicseg.evaluate.heads.base import Head

RECIPE = 1
"""Counts up when this code's results change."""

READERS = 2
_SHOWN = 8

Progress = Callable[[int, int], None]
Loaded = tuple[NDArray[np.uint8], NDArray[np.uint16]]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Progress of a benchmark: ``done`` of ``parts``; ``results`` if all are done, else None.

    ``failed``: why images could not be scored. Their parts are not done; no image is ever left out of results.
    """

    folder: Path
    done: int
    parts: int
    results: dict[str, Any] | None
    failed: tuple[ImageFailed, ...] = ()


def evaluate_benchmark(
    head: "Head",
    protocol: Protocol,
    data_dir: Path,
    out_dir: Path,
    *,
    threshold: Threshold | None = None,
    limit: int | None = None,
    part: tuple[int, int] = (0, 1),
    readers: int = READERS,
    provenance: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    stop: Callable[[], bool] | None = None,
) -> Outcome:
    """Score a head on a benchmark, as far as it is not scored yet.

    Neither ``part`` nor ``readers`` nor the order in which processes run changes the results. Results of the same
    head, protocol and data are not computed again; parts of others, and damaged ones, are.

    Args:
        threshold: for the rule ``threshold``: what was swept; else the protocol's own.
        limit: score only this many images, spread evenly over the list; the results say so.
        part: (index, count): this process does every ``count``-th part, beginning with number ``index``.
        readers: threads that read images and count pixels while the model works.
        provenance: what else the results are to remember, as JSON values.
        progress: called with images done and all images of this process's share.
        stop: asked before every image; True leaves what is not committed undone.

    An image without memory, or on which an earlier process died (`magicseg.run.attempts`), leaves its part undone;
    the other parts are done.

    Raises: DataError that names a missing or damaged file; no image is ever left out. ConfigError, StoreError.
    """
    import torch

    if limit is not None and limit < 1:
        raise ConfigError(f"limit must be 1 or more, got {limit}")
    index, count = part
    if not 0 <= index < count:
        raise ConfigError(f"part must be one of 0 to {count - 1}, got {index}")
    data = open_data_set(protocol, data_dir)
    names = evenly(data.names, limit)
    used = threshold_of(protocol, threshold)
    identity = benchmark_identity(head, data, used)
    folder = results_folder(out_dir, protocol, head.name, limit=limit if len(names) < len(data.names) else None)
    known = read_results(folder)
    parts = cut(names)
    # Facts that change no score may be others than then: results are joined anew, which costs nothing.
    facts = json.loads(json.dumps({"threshold": used and used.to_dict(), "provenance": dict(provenance or {})}))
    same_facts = (
        known is not None
        and known["threshold"] == facts["threshold"]
        and known["provenance"].get("recipe") == [RECIPE, SCORES_RECIPE]
        and (facts["provenance"].items() <= known["provenance"].items())
    )
    if (
        known is not None
        and same_facts
        and known["provenance"]["identity"] == identity
        and known["images"] == len(names)
    ):
        return Outcome(folder=folder, done=len(parts), parts=len(parts), results=known)

    classes = len(protocol.classes)
    with storage_errors(folder, "evaluate again"):
        folder.mkdir(parents=True, exist_ok=True)

        def committed(number: int) -> Part | None:
            return read_part(part_path(folder, number), identity=identity, names=parts[number], classes=classes)

        open_parts = [number for number in range(index, len(parts), count) if committed(number) is None]
        failed: list[ImageFailed] = []
        with Attempts(folder) as attempts:
            for name in [name for number in open_parts for name in parts[number]]:
                if (left := attempts.killed(name, identity)) is not None:
                    failed.append(ImageFailed(f"{data.image_paths[data.place[name]]}: {told(left)}"))
                    open_parts = [number for number in open_parts if name not in parts[number]]
            if open_parts:
                head.prepare(protocol.queries)
                with torch.inference_mode(), ThreadPoolExecutor(max(1, readers)) as pool:
                    worker = _Worker(
                        head, data, used, pool, max(1, readers), stop or (lambda: False), progress, attempts
                    )
                    for number, made in worker.run({number: parts[number] for number in open_parts}, identity):
                        write_part(part_path(folder, number), made)
                    failed += worker.failed
        found = [committed(number) for number in range(len(parts))]
        whole = [item for item in found if item is not None]
        results = None
        if len(whole) == len(parts):
            results = _results(head, data, used, whole, identity, names, dict(provenance or {}))
            write_atomic(
                folder / "results.json", json.dumps(without_nan(results), indent=1, ensure_ascii=False).encode()
            )
    return Outcome(folder=folder, done=len(whole), parts=len(parts), results=results, failed=tuple(failed))


def results_folder(out_dir: Path, protocol: Protocol, head: str, *, limit: int | None = None) -> Path:
    """Where the results of a head (its name) on a benchmark lie."""
    folder = out_dir / protocol.name / head
    return folder if limit is None else folder / f"limit-{limit}"


def read_results(folder: Path) -> dict[str, Any] | None:
    """The content of a folder's ``results.json``; None where there is none that can be read."""
    try:
        content = read_bytes(folder / "results.json", hint=command("rm", "-r", folder))
    except FileNotFoundError:
        return None
    try:
        results = parse_json(content, dict[str, Any], source=folder, nan=True)
        return results if isinstance(results["provenance"]["identity"], str) and results["images"] else None
    except (DataError, KeyError, TypeError):
        return None  # damaged: it is written again


def benchmark_identity(head: "Head", data: DataSet, threshold: Threshold | None) -> str:
    """SHA-256 of all that decides the results of an image: recipe, protocol, head, threshold, data."""
    content = {
        "recipe": [RECIPE, COUNTS_RECIPE],
        "windows": WINDOWS_AT_ONCE,
        "part": PART,
        "protocol": data.protocol.digest(),
        "head": {"name": head.name, **head.identity},
        "threshold": None if threshold is None else threshold.key,
        "data": data.digest(),
    }
    return hashlib.sha256(to_json(content)).hexdigest()


class _Worker:
    """Reads ahead, runs the model image by image, counts behind."""

    def __init__(
        self,
        head: "Head",
        data: DataSet,
        threshold: Threshold | None,
        pool: ThreadPoolExecutor,
        ahead: int,
        stop: Callable[[], bool],
        progress: Progress | None,
        attempts: Attempts,
    ) -> None:
        self.failed: list[ImageFailed] = []
        self.attempts = attempts
        self.head, self.data, self.threshold = head, data, threshold
        self.pool, self.ahead, self.stop, self.progress = pool, ahead, stop, progress

    def run(self, parts: Mapping[int, Sequence[str]], identity: str) -> Iterator[tuple[int, Part]]:
        """Yield the parts as they are finished; fewer if a stop was requested, or images failed."""
        protocol = self.data.protocol
        classes = len(protocol.classes)
        total = sum(map(len, parts.values()))
        loaded = self._loaded([name for names in parts.values() for name in names])
        done = 0
        for number, names in parts.items():
            began = time.perf_counter()
            counting: list[Future[tuple[ImageResult, str]]] = []
            for name in names:
                if self.stop():
                    loaded.close()
                    return
                path = str(self.data.image_paths[self.data.place[name]])
                try:
                    with self.attempts.on(name, identity):
                        image, truth = next(loaded)
                        numbers = label_image(self.head, image, protocol, self.threshold, path)
                    counting.append(self.pool.submit(self._count, image, truth, numbers))
                    if len(counting) > self.ahead:
                        counting[-1 - self.ahead].exception()  # wait: images that queue up need memory
                except ImageFailed as failure:
                    self.failed.append(failure)
                done += 1
                if self.progress is not None:
                    self.progress(done, total)
            counted = [future.result() for future in counting]
            if len(counted) < len(names):
                continue
            yield (
                number,
                Part.of(
                    [result for result, _ in counted],
                    identity=identity,
                    names=names,
                    content=[digest for _, digest in counted],
                    classes=classes,
                    seconds=time.perf_counter() - began,
                ),
            )

    def _loaded(self, names: Sequence[str]) -> Generator[Loaded, None, None]:
        """Images and truths in order, read by the pool a few ahead."""
        waiting: deque[Future[Loaded]] = deque()
        try:
            for name in names:
                waiting.append(self.pool.submit(self.data.pair, name))
                if len(waiting) > self.ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def _count(
        self, image: NDArray[np.uint8], truth: NDArray[np.uint16], numbers: NDArray[np.uint16]
    ) -> tuple[ImageResult, str]:
        protocol = self.data.protocol
        result = count_image(truth, numbers, len(protocol.classes), protocol.ignore_value, first=protocol.first_value)
        return result, content_digest(image, truth)


def content_digest(image: NDArray[np.uint8], truth: NDArray[np.uint16]) -> str:
    """SHA-256 of an image's size, pixels and ground truth."""
    digest = hashlib.sha256(np.array(image.shape, np.int64).tobytes())
    digest.update(image.tobytes())
    digest.update(truth.astype("<u2").tobytes())
    return digest.hexdigest()


def _results(
    head: "Head",
    data: DataSet,
    threshold: Threshold | None,
    parts: Sequence[Part],
    identity: str,
    names: Sequence[str],
    provenance: dict[str, Any],
) -> dict[str, Any]:
    """The content of ``results.json``."""
    protocol = data.protocol
    confusion, counts = join(parts)
    content = hashlib.sha256()
    for part in parts:
        for name, digest in zip(part.names, part.content, strict=True):
            content.update(f"{name}\0{digest}\n".encode())
    order = _ranked(names, image_scores(counts))
    official = protocol.official_images
    results = {
        "benchmark": protocol.name,
        "head": head.name,
        "images": len(names),
        "images_in_data_set": len(data.names),
        "limited": len(names) < len(data.names),
        "official_images": official,
        "complete": None if official is None else len(names) >= official,
        "classes": list(protocol.classes),
        "ground_truth": data.layout.text.replace("{split}", protocol.split),
        **scored(confusion, counts, protocol.classes),
        "conventions": CONVENTIONS,
        "threshold": None if threshold is None else threshold.to_dict(),
        "worst": order[:_SHOWN],
        "best": order[::-1][:_SHOWN],
        "provenance": {
            **provenance,
            "identity": identity,
            "head": {"name": head.name, **head.identity},
            "protocol": protocol.to_dict(),
            "protocol_digest": protocol.digest(),
            "data": {"layout": data.layout.path, "files": data.digest(), "content": content.hexdigest()},
            "recipe": [RECIPE, SCORES_RECIPE],
            "windows_at_once": WINDOWS_AT_ONCE,
            "versions": library_versions(),
            "seconds": round(sum(part.seconds for part in parts), 3),
        },
    }
    try:
        plain: dict[str, Any] = json.loads(json.dumps(results))
    except TypeError as error:
        raise DataError(f"{head.name}: identity or provenance holds what is no JSON: {error}") from error
    return plain


def _ranked(names: Sequence[str], scores: NDArray[np.float64]) -> list[dict[str, Any]]:
    """Images by their own mean IoU, lowest first, names breaking ties; those without any counted pixel left out."""
    found = [(float(score), name) for name, score in zip(names, scores, strict=True) if not np.isnan(score)]
    return [{"image": name, "miou": score} for score, name in sorted(found)]
