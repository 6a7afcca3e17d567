"""Score a model and its baselines on several benchmarks: open each data set once, score its parts, merge, write.

    suite = Suite.of(Target.of(Path("runs/first")), settings)
    for results in suite.evaluate(): ...

RESULTS/BENCHMARK.json holds the model's results with the baselines' in them. It is written when all heads are done.
RESULTS/BENCHMARK/HEAD/ holds the parts and each head's own results, see `magicseg.evaluate.benchmark`.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from magicseg.config.evaluation import MINIATURE, OWN_MASKS, EvaluateSettings
from magicseg.core.digests import json_sha256
from magicseg.core.documents import parse_json, read_bytes, without_nan
from magicseg.core.errors import BackendError, DataError, StoreError
from magicseg.core.files import storage_errors, to_json, write_atomic
from magicseg.core.text import command
from magicseg.data.ground_truth import DataSet
from magicseg.data.held_out_pairs import HeldOutPairs
from magicseg.evaluate.benchmark import Scoring, results_folder
from magicseg.evaluate.committed_parts import join
from magicseg.evaluate.decoding import ImageFailed
from magicseg.evaluate.metrics.counts import RECIPE
from magicseg.evaluate.model_under_test import Target
from magicseg.evaluate.open_benchmark import OpenBenchmark, open_benchmarks
from magicseg.evaluate.sweep import RECIPE as SWEEP_RECIPE
from magicseg.evaluate.sweep import sweep_threshold
from magicseg.evaluate.threshold import Threshold
from magicseg.miniature.held_out_scenes import PaintedScenes
from magicseg.model.card import model_card, read_card
from magicseg.run.attempts import Attempts, told

if TYPE_CHECKING:
    from magicseg.evaluate.heads.head import Head
    from magicseg.model.segmenter import Segmenter

Report = Callable[[str], None]
Progress = Callable[[str, int, int], None]
"""Called with a title, and the numbers of finished images and of all images of this process's share."""

_OF_BOTH = ("baselines", "bank_samples", "bank_prototypes")
_OF_MINIATURE = (*_OF_BOTH, "scenes", "max_objects", "batch_size", "threshold")
_OF_OWN_MASKS = ("limit",)
_OF_BENCHMARKS = (*_OF_BOTH, "limit", "background", "sweep_images")


@dataclass(frozen=True)
class Suite:
    """A model, and the benchmarks that it is scored on, in the order of the settings but the miniature first."""

    target: Target
    settings: EvaluateSettings
    benchmarks: tuple[OpenBenchmark, ...]
    device: str
    _scorings: dict[str, list[Scoring | None]] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, target: Target, settings: EvaluateSettings, *, device: str = "cpu") -> "Suite":
        """Open all data sets. No model is loaded yet.

        Raises: ConfigError for an unknown benchmark, or if its data are not named; DataError if files are missing.
        """
        return cls(target, settings, open_benchmarks(settings, target), device)

    def evaluate(
        self,
        *,
        part: tuple[int, int] = (0, 1),
        report: Report = lambda text: None,
        progress: Progress = lambda title, done, total: None,
        stop: Callable[[], bool] = lambda: False,
        failed: Callable[[ImageFailed], None] = lambda failure: None,
    ) -> Iterator[dict[str, Any]]:
        """Score this process's share, benchmark by benchmark, and yield the results of each that is complete then.

        The process that finishes last sees the parts of all others, whatever the order.

        Args: part: (index, count): the share. report: called with choices, such as thresholds. stop: asked before
            every image. failed: called for every image that could not be scored; its benchmark gets no results.
        Raises: what `Scoring.score` and `sweep_threshold` raise; BackendError without torch.
        """
        for benchmark in self.benchmarks:
            if stop():
                return
            if self._known_scenes(benchmark) is None:
                self._score(benchmark, part=part, report=report, progress=progress, stop=stop, failed=failed)
            results = self._merge(benchmark)
            if results is not None:
                yield results

    def merged(self) -> Iterator[dict[str, Any]]:
        """Yield the results of every benchmark that `evaluate` has begun and that is complete now."""
        yield from filter(None, map(self._merge, self.benchmarks))

    def _score(
        self,
        benchmark: OpenBenchmark,
        *,
        part: tuple[int, int],
        report: Report,
        progress: Progress,
        stop: Callable[[], bool],
        failed: Callable[[ImageFailed], None],
    ) -> None:
        """Do this process's share of all heads. `_scorings` gets one entry per head, None if it was not begun."""
        heads = self._heads_for(benchmark)
        scorings = self._scorings[benchmark.name] = [None] * len(heads)
        for place, head in enumerate(heads):
            if stop():
                return
            title = f"{benchmark.name}, {head.name}"
            try:
                threshold = self._threshold(head, benchmark, report=report, progress=progress)
            except ImageFailed as failure:
                failed(failure)
                continue
            scoring = Scoring(
                head,
                benchmark.data,
                self.target.results,
                threshold=threshold,
                limit=benchmark.limit,
                provenance=self._provenance(_OF_OWN_MASKS if benchmark.name == OWN_MASKS else _OF_BENCHMARKS),
            )
            scorings[place] = scoring
            if scoring.known() is None:
                failures = scoring.score(
                    part=part,
                    progress=partial(progress, title),
                    stop=stop,
                )
                for each in failures:
                    failed(each)
            if scoring.lacking:
                report(f"{title}: the head knows no {', '.join(scoring.lacking)}: never predicted")

    def _merge(self, benchmark: OpenBenchmark) -> dict[str, Any] | None:
        """Write each head's results, and the benchmark's if all heads are complete. Returns: the benchmark's."""
        known = self._known_scenes(benchmark)
        if known is not None:
            return known
        begun = self._scorings.get(benchmark.name, [])
        scorings = [scoring for scoring in begun if scoring is not None]
        if isinstance(benchmark.data, PaintedScenes):
            return self._merge_scenes(benchmark.data, scorings) if begun and len(scorings) == len(begun) else None
        found = [scoring.known() or scoring.merge() for scoring in scorings]
        results = [each for each in found if each is not None]
        return self._joined(benchmark, results) if results and len(results) == len(begun) else None

    def _merge_scenes(self, scenes: PaintedScenes, scorings: Sequence[Scoring]) -> dict[str, Any] | None:
        from magicseg.evaluate.painted_benchmark import painted_file, painted_results

        parts = {scoring.head.name: scoring.committed() for scoring in scorings}
        if any(len(parts[scoring.head.name]) < len(scoring.parts) for scoring in scorings):
            return None
        swept = {each.head.name: each.threshold for each in scorings if each.threshold and each.threshold.details}
        scores = painted_results(scenes, {name: join(found) for name, found in parts.items()}, swept)
        results = painted_file(scenes, scores, self._scenes_provenance(scenes))
        self._write(self.path_of(MINIATURE), results)
        self._update_card()
        return results

    def path_of(self, benchmark: str) -> Path:
        """The file of a benchmark's results."""
        if benchmark == MINIATURE:
            return self.target.results / f"{benchmark}.json"
        rule = "" if self.settings.background is None or benchmark == OWN_MASKS else f"-{self.settings.background}"
        limit = "" if self.settings.limit is None else f"-limit-{self.settings.limit}"
        return self.target.results / f"{benchmark}{rule}{limit}.json"

    @cached_property
    def _model_and_heads(self) -> "tuple[Segmenter, list[Head]]":
        try:
            from magicseg.evaluate.heads.baselines import heads_of
        except ImportError as error:
            raise BackendError(
                f"evaluation needs torch: {error}",
                hint="install the model libraries: pip install 'magicseg[models]'",
            ) from error
        with storage_errors(self.target.results, "evaluate again"):
            return heads_of(self.target, self.settings, device=self.device)

    @property
    def _heads(self) -> "list[Head]":
        return self._model_and_heads[1]

    def _heads_for(self, benchmark: OpenBenchmark) -> "list[Head]":
        """Return the heads that a benchmark scores, the model first. Held-out pairs are for the model alone."""
        if isinstance(benchmark.data, HeldOutPairs):
            return self._heads[:1]
        if not isinstance(benchmark.data, PaintedScenes):
            return self._heads
        assert self.target.run is not None
        model, (head, *baselines) = self._model_and_heads
        from magicseg.evaluate.painted_benchmark import painted_heads

        return painted_heads(head, model, baselines, seed=self.target.run.config.seed)

    def _provenance(self, settings: Sequence[str]) -> dict[str, Any]:
        used = self.settings.model_dump(mode="json", include=set(settings))
        plain: dict[str, Any] = json.loads(to_json({**self.target.provenance, "evaluate": used}))
        return plain

    def _scenes_provenance(self, scenes: PaintedScenes) -> dict[str, Any]:
        data = {
            "seed": scenes.seed,
            "size": scenes.size,
            "scenes": scenes.scenes,
            "max_objects": scenes.max_objects,
            "vocabulary": scenes.vocabulary.digest(),
        }
        return {**self._provenance(_OF_MINIATURE), "recipe": RECIPE, "data": data}

    def _known_scenes(self, benchmark: OpenBenchmark) -> dict[str, Any] | None:
        """Return stored results of the same model, scenes and settings. No model is loaded for them."""
        if not isinstance(benchmark.data, PaintedScenes):
            return None
        known = _read(self.path_of(MINIATURE)) or {}
        return known if known.get("provenance") == self._scenes_provenance(benchmark.data) else None

    def _threshold(
        self, head: "Head", benchmark: OpenBenchmark, *, report: Report, progress: Progress
    ) -> Threshold | None:
        """Sweep the threshold once; return the stored one later, and the protocol's own if none can be swept."""
        protocol = benchmark.data.protocol
        if protocol.background.rule != "threshold":
            return None
        own = Threshold(value=protocol.background.threshold, origin="default")
        if not benchmark.is_swept(head.name):
            return own
        title = f"{protocol.name}, {head.name}"
        tuning = benchmark.tuning
        if isinstance(tuning, str):
            report(f"{title}: background below {own.value:g}, the protocol's, not chosen on other images: {tuning}")
            return own
        content = {
            "head": {"name": head.name, **head.identity},
            "protocol": protocol.digest(),
            "data": tuning.digest(),
            "images": benchmark.sweep_images,
            "recipe": SWEEP_RECIPE,
        }
        identity = json_sha256(content)
        path = results_folder(self.target.results, protocol, head.name) / f"threshold-{identity[:16]}.json"
        chosen = _read_threshold(path)
        if chosen is None:
            with storage_errors(path, "evaluate again"), Attempts(path.parent) as attempts:

                def attempt(name: str) -> AbstractContextManager[None]:
                    if (left := attempts.killed(name, identity)) is not None:
                        raise ImageFailed(f"{tuning.where(name)}: {told(left)}")
                    return attempts.on(name, identity)

                swept = sweep_threshold(
                    head,
                    benchmark.data,
                    tuning,
                    limit=benchmark.sweep_images,
                    progress=partial(progress, f"{title}, threshold"),
                    attempt=attempt,
                )
            # Several processes may have swept: all use the threshold that was written first.
            self._write(path, swept.to_dict(), exclusive=True)
            chosen = _read_threshold(path)
        if chosen is None:
            raise StoreError(f"{path}: is damaged", hint=f"{command('rm', path)}, then evaluate again")
        _report_swept(title, chosen, report)
        return chosen

    def _joined(self, benchmark: OpenBenchmark, results: Sequence[dict[str, Any]]) -> dict[str, Any]:
        assert isinstance(benchmark.data, DataSet | HeldOutPairs)
        model, *baselines = results
        joined = {**model, "baselines": {each["head"]: each for each in baselines}}
        path = self.path_of(benchmark.name)
        if _read(path) != joined:
            self._draw(benchmark.data, model)  # first: with the results there, nobody would draw them again
            self._write(path, joined)
            self._update_card()
        return joined

    def _draw(self, data: DataSet | HeldOutPairs, results: Mapping[str, Any]) -> None:
        """The model's charts, and its best and worst images."""
        from magicseg.evaluate.figures import write_charts, write_examples

        head = self._heads[0]
        limit = self.settings.limit if results["images"] < results["images_in_data_set"] else None
        folder = results_folder(self.target.results, data.protocol, head.name, limit=limit)
        write_charts(results, folder)
        write_examples(head, data, results, folder)

    def _update_card(self) -> None:
        """Put all scores of a run's model into its model card."""
        if self.target.run is None:
            return
        figures = {}
        for path in sorted(self.target.results.glob("*.json")):
            results = _read(path) or {}
            if results.get("provenance", {}).get("weights_digest") == self.target.weights_digest:
                low, high = results.get("miou_interval") or (None, None)
                if low is not None:
                    what = f"mIoU on {results['benchmark']}, {results['images']} images"
                    if results["benchmark"] == OWN_MASKS:
                        what += ", against the run's own masks, which are no ground truth"
                    name = f"{what} (95 %: {low:.4g} to {high:.4g})"
                    figures[name] = results["miou"]
        text = model_card(read_card(self.target.folder), figures=figures)
        with storage_errors(self.target.folder, "evaluate again"):
            write_atomic(self.target.folder / "README.md", text.encode())

    def _write(self, path: Path, content: Mapping[str, Any], *, exclusive: bool = False) -> None:
        with storage_errors(path, "evaluate again"):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(
                path, json.dumps(without_nan(content), indent=1, ensure_ascii=False).encode(), exclusive=exclusive
            )


def _report_swept(title: str, threshold: Threshold, report: Report) -> None:
    images, split = threshold.details["images"], threshold.details["split"]
    report(f"{title}: background below {threshold.text}, chosen on {images} images of the split {split!r}")
    if threshold.warning:
        report(f"{title}: warning: {threshold.warning}")


def _read_threshold(path: Path) -> Threshold | None:
    known = _read(path) or {}
    if not isinstance(known.get("value"), float) or not {"score", "origin", "images", "split"} <= known.keys():
        return None
    return Threshold.from_dict(known)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = read_bytes(path, hint=command("rm", path))
    except FileNotFoundError:
        return None
    try:
        return parse_json(content, dict[str, Any], source=path, nan=True)
    except DataError:
        return None  # damaged: it is written again
