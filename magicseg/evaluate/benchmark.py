"""Score one head on one data set: resumable, sharded across processes, with results that do not depend on either.

    outcome = evaluate_benchmark(head, open_data_set(load_protocol("voc21"), data_dir), results_dir)
    outcome.results["miou"], outcome.results["miou_interval"]

In two steps: `Scoring.score` does a process's share and writes ``RESULTS/BENCHMARK/HEAD/part-00003.npz``, one file
per `PART` images; `Scoring.merge` joins the parts to ``results.json`` once all are there. With a limit, both are in
``RESULTS/BENCHMARK/HEAD/limit-50/``.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from magicseg.core.digests import json_sha256
from magicseg.core.documents import parse_json, read_bytes, without_nan
from magicseg.core.errors import ConfigError, DataError
from magicseg.core.files import storage_errors, write_atomic
from magicseg.core.text import command
from magicseg.data.ground_truth import DataSet
from magicseg.data.held_out_pairs import HeldOutPairs
from magicseg.data.labelled_images import LabelledImages
from magicseg.data.protocol import Protocol
from magicseg.evaluate.committed_parts import Part, cut, evenly, join, part_path, part_size, read_part, write_part
from magicseg.evaluate.decoding import WINDOWS_AT_ONCE, ImageFailed, threshold_of
from magicseg.evaluate.metrics.counts import CONVENTIONS, COUNTS_RECIPE, image_scores, scored
from magicseg.evaluate.metrics.counts import RECIPE as SCORES_RECIPE
from magicseg.evaluate.metrics.false_positives import FALSE_POSITIVE_CONVENTIONS
from magicseg.evaluate.runner import READERS, CountedImages, Progress, Runner
from magicseg.evaluate.threshold import Threshold
from magicseg.run.attempts import Attempts, told
from magicseg.run.versions import library_versions

if TYPE_CHECKING:
    from magicseg.evaluate.heads.head import Head

RECIPE = 1
"""Version: increased when this code's results change."""

_SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class BenchmarkOutcome:
    """Progress of a benchmark: ``done`` of ``parts``; ``results`` if all are done, else None.

    ``failed``: why images could not be scored. Their parts stay undone; results never leave an image out.
    """

    folder: Path
    done: int
    parts: int
    results: dict[str, Any] | None
    failed: tuple[ImageFailed, ...] = ()


def evaluate_benchmark(
    head: "Head",
    data: DataSet,
    out_dir: Path,
    *,
    threshold: Threshold | None = None,
    limit: int | None = None,
    part: tuple[int, int] = (0, 1),
    readers: int = READERS,
    provenance: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    stop: Callable[[], bool] | None = None,
) -> BenchmarkOutcome:
    """Score this process's share of a benchmark, then merge all parts that are there.

    Arguments and errors are those of `Scoring` and `Scoring.score`.
    """
    scoring = Scoring(head, data, out_dir, threshold=threshold, limit=limit, provenance=provenance)
    known = scoring.known()
    if known is not None:
        return BenchmarkOutcome(
            folder=scoring.folder, done=len(scoring.parts), parts=len(scoring.parts), results=known
        )
    failed = scoring.score(part=part, readers=readers, progress=progress, stop=stop)
    results = scoring.merge()
    done = len(scoring.parts) if results is not None else len(scoring.committed())
    return BenchmarkOutcome(
        folder=scoring.folder, done=done, parts=len(scoring.parts), results=results, failed=failed
    )


class Scoring:
    """The scoring of one head on one data set: its parts, their files, their identity.

    Results depend neither on ``part`` nor ``readers`` nor the order in which processes run. Committed parts are
    reused; parts with another identity, and damaged parts, are computed again.

    Args:
        threshold: a swept threshold; None: the protocol's. Ignored if the protocol's rule has no threshold.
        limit: score only this many images, spread evenly over the list; the results say so.
        provenance: JSON values to keep in the results.

    Raises ConfigError if ``limit`` is below 1.
    """

    def __init__(
        self,
        head: "Head",
        data: LabelledImages,
        out_dir: Path,
        *,
        threshold: Threshold | None = None,
        limit: int | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        if limit is not None and limit < 1:
            raise ConfigError(f"limit must be 1 or more, got {limit}")
        self.head, self.data = head, data
        self.threshold = threshold_of(data.protocol, threshold)
        self.names = evenly(data.names, limit)
        self.parts = cut(self.names, part_size(data.batch))
        self.identity = benchmark_identity(head, data, self.threshold)
        shown_limit = limit if len(self.names) < len(data.names) else None
        self.folder = results_folder(out_dir, data.protocol, head.name, limit=shown_limit)
        self.lacking: tuple[str, ...] = ()
        """Classes that the head knows by none of their names, once it has been prepared to score."""
        self._provenance = dict(provenance or {})

    def score(
        self,
        *,
        part: tuple[int, int] = (0, 1),
        readers: int = READERS,
        progress: Progress | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> tuple[ImageFailed, ...]:
        """Compute and commit the parts of this process's share that are missing.

        An image that does not fit in memory, or that killed an earlier process (`magicseg.run.attempts`), leaves its
        part undone; the other parts are done.

        Args:
            part: (index, count): do every ``count``-th part, from number ``index`` on.
            readers: threads that read images and count pixels while the model works.
            progress: called with the number of finished images and of all images of the missing parts.
            stop: asked before every image; True leaves the rest undone.

        Returns: why images failed.
        Raises: DataError, naming the file, if one is missing or damaged; ConfigError for an impossible ``part``;
            StoreError.
        """
        index, count = part
        if not 0 <= index < count:
            raise ConfigError(f"part must be one of 0 to {count - 1}, got {index}")
        failed: list[ImageFailed] = []
        with storage_errors(self.folder, "evaluate again"):
            self.folder.mkdir(parents=True, exist_ok=True)
            missing = [number for number in range(index, len(self.parts), count) if self._committed(number) is None]
            with Attempts(self.folder) as attempts:
                for name in [name for number in missing for name in self.parts[number]]:
                    if (left := attempts.killed(name, self.identity)) is not None:
                        failed.append(ImageFailed(f"{self.data.where(name)}: {told(left)}"))
                        missing = [number for number in missing if name not in self.parts[number]]
                if missing:
                    runner = Runner(
                        self.head,
                        self.data,
                        self.threshold,
                        readers=readers,
                        attempt=lambda name: attempts.on(name, self.identity),
                        progress=progress,
                        stop=stop,
                    )
                    for number, images in runner.run({number: self.parts[number] for number in missing}):
                        write_part(part_path(self.folder, number), self._part(number, images))
                    failed += runner.failed
                    self.lacking = tuple(getattr(self.head, "lacking", ()))
        return tuple(failed)

    def committed(self) -> list[Part]:
        """Read all committed parts, of this process and others, in their order."""
        found = map(self._committed, range(len(self.parts)))
        return [part for part in found if part is not None]

    def known(self) -> dict[str, Any] | None:
        """Return the content of ``results.json`` if it is of the same identity, images, threshold and provenance."""
        known = read_results(self.folder)
        facts = json.loads(
            json.dumps({"threshold": self.threshold and self.threshold.to_dict(), "provenance": self._provenance})
        )
        # Facts that change no score may have changed: then the parts are merged again, which costs nothing.
        same = (
            known is not None
            and known["threshold"] == facts["threshold"]
            and known["provenance"].get("recipe") == [RECIPE, SCORES_RECIPE]
            and facts["provenance"].items() <= known["provenance"].items()
            and known["provenance"]["identity"] == self.identity
            and known["images"] == len(self.names)
        )
        return known if same else None

    def merge(self) -> dict[str, Any] | None:
        """Write ``results.json`` from the parts and return its content; None if parts are missing."""
        assert isinstance(self.data, DataSet | HeldOutPairs)
        with storage_errors(self.folder, "evaluate again"):
            parts = self.committed()
            if len(parts) < len(self.parts):
                return None
            results = self._results(self.data, parts)
            content = json.dumps(without_nan(results), indent=1, ensure_ascii=False).encode()
            write_atomic(self.folder / "results.json", content)
            return results

    def _committed(self, number: int) -> Part | None:
        classes = len(self.data.protocol.classes)
        names = self.parts[number]
        return read_part(part_path(self.folder, number), identity=self.identity, names=names, classes=classes)

    def _part(self, number: int, images: "CountedImages") -> Part:
        return Part.of(
            images.results,
            identity=self.identity,
            names=self.parts[number],
            content=images.content,
            classes=len(self.data.protocol.classes),
            seconds=images.seconds,
        )

    def _results(self, data: DataSet | HeldOutPairs, parts: Sequence[Part]) -> dict[str, Any]:
        """Return the content of ``results.json``."""
        protocol = data.protocol
        confusion, counts = join(parts)
        content = hashlib.sha256()
        for part in parts:
            for name, digest in zip(part.names, part.content, strict=True):
                content.update(f"{name}\0{digest}\n".encode())
        order = _ranked(self.names, image_scores(counts))
        official = protocol.official_images
        results = {
            "benchmark": protocol.name,
            "head": self.head.name,
            "images": len(self.names),
            "images_in_data_set": len(data.names),
            "limited": len(self.names) < len(data.names),
            "official_images": official,
            "complete": None if official is None else len(self.names) >= official,
            "classes": list(protocol.classes),
            "ground_truth": data.ground_truth,
            **scored(confusion, counts, protocol.classes),
            "conventions": CONVENTIONS,
            **({"false_positive_conventions": FALSE_POSITIVE_CONVENTIONS} if data.has_counterfactuals else {}),
            "threshold": None if self.threshold is None else self.threshold.to_dict(),
            "worst": order[:_SHOWN],
            "best": order[::-1][:_SHOWN],
            "provenance": {
                **self._provenance,
                "identity": self.identity,
                "head": {"name": self.head.name, **self.head.identity},
                "protocol": protocol.to_dict(),
                "protocol_digest": protocol.digest(),
                "data": {"layout": data.layout_path, "files": data.digest(), "content": content.hexdigest()},
                "recipe": [RECIPE, SCORES_RECIPE],
                "windows_at_once": WINDOWS_AT_ONCE,
                "versions": library_versions(),
                "seconds": round(sum(part.seconds for part in parts), 3),
            },
        }
        try:
            plain: dict[str, Any] = json.loads(json.dumps(results))
        except TypeError as error:
            raise DataError(
                f"{self.head.name}: identity or provenance holds values that are not JSON: {error}"
            ) from error
        return plain


def results_folder(out_dir: Path, protocol: Protocol, head: str, *, limit: int | None = None) -> Path:
    """Return the folder of a head's results on a benchmark. Args: head: its name."""
    folder = out_dir / protocol.name / head
    return folder if limit is None else folder / f"limit-{limit}"


def read_results(folder: Path) -> dict[str, Any] | None:
    """Return the content of a folder's ``results.json``, or None if it is missing or damaged."""
    try:
        content = read_bytes(folder / "results.json", hint=command("rm", "-r", folder))
    except FileNotFoundError:
        return None
    try:
        results = parse_json(content, dict[str, Any], source=folder, nan=True)
        return results if isinstance(results["provenance"]["identity"], str) and results["images"] else None
    except (DataError, KeyError, TypeError):
        return None  # damaged: it is written again


def benchmark_identity(head: "Head", data: LabelledImages, threshold: Threshold | None) -> str:
    """Return the SHA-256 of everything that decides an image's results: recipe, protocol, head, threshold, data."""
    content = {
        "recipe": [RECIPE, COUNTS_RECIPE],
        "windows": WINDOWS_AT_ONCE,
        "part": part_size(data.batch),
        "protocol": data.protocol.digest(),
        "head": {"name": head.name, **head.identity},
        "threshold": None if threshold is None else threshold.key,
        "data": data.digest(),
        **({"counterfactuals": True} if data.has_counterfactuals else {}),
    }
    return json_sha256(content)


def _ranked(names: Sequence[str], scores: NDArray[np.float64]) -> list[dict[str, Any]]:
    """Rank images by their own mean IoU, lowest first, names breaking ties.

    Images without counted pixels are left out.
    """
    found = [(float(score), name) for name, score in zip(names, scores, strict=True) if not np.isnan(score)]
    return [{"image": name, "miou": score} for score, name in sorted(found)]
