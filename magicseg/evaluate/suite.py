"""A model on all the benchmarks that are asked for, with its baselines: resumable, shared out over processes.

    suite = Suite.of(Target.of(Path("runs/first")), settings)
    for results in suite.evaluate(): ...

Files: RESULTS/BENCHMARK.json, the model's results with the baselines' in them, when all of them are done;
RESULTS/BENCHMARK/HEAD/ has the parts and each head's own results, see `magicseg.evaluate.benchmark`.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from magicseg.config.evaluation import MINIATURE, EvaluateSettings
from magicseg.core.documents import parse_json, read_bytes, without_nan
from magicseg.core.errors import BackendError, ConfigError, DataError, StoreError
from magicseg.core.files import storage_errors, to_json, write_atomic
from magicseg.core.text import command
from magicseg.data.ground_truth import DataSet, data_folder, open_data_set
from magicseg.data.protocol import load_protocol
from magicseg.evaluate.benchmark import Outcome, evaluate_benchmark, results_folder
from magicseg.evaluate.decoding import ImageFailed
from magicseg.evaluate.metrics.counts import CONVENTIONS, RECIPE
from magicseg.evaluate.model_under_test import Target
from magicseg.evaluate.threshold import Threshold
from magicseg.miniature.held_out_scenes import undrawn
from magicseg.model.card import model_card, read_card
from magicseg.run.attempts import Attempts, told

if TYPE_CHECKING:
    from magicseg.evaluate.heads.base import Head
    from magicseg.model.segmenter import Segmenter

Report = Callable[[str], None]
Progress = Callable[[str, int, int], None]
"""Called with what is being done, and how many of how many images of this process's share are."""

_OF_BOTH = ("baselines", "bank_samples", "bank_prototypes")
_OF_MINIATURE = (*_OF_BOTH, "scenes", "max_objects", "batch_size", "threshold")
_OF_BENCHMARKS = (*_OF_BOTH, "limit", "background", "sweep_images")


@dataclass(frozen=True)
class Suite:
    """``data``: the data sets of all benchmarks but the miniature, in their order; none of their files is missing."""

    target: Target
    settings: EvaluateSettings
    data: tuple[DataSet, ...]
    device: str

    @classmethod
    def of(cls, target: Target, settings: EvaluateSettings, *, device: str = "cpu") -> "Suite":
        """Open all that is needed, before any model is loaded.

        Raises: ConfigError for an unknown benchmark or data that are not named; DataError for what they lack.
        """
        data = []
        for name in dict.fromkeys(settings.benchmarks):
            if name == MINIATURE:
                if target.run is None:
                    raise ConfigError(
                        f"{target.path}: the benchmark {MINIATURE} is of a run's own vocabulary, and this is a model",
                        hint="magicseg evaluate RUN, or --benchmark NAME --data DIR",
                    )
                unknown = undrawn(target.run.vocabulary)
                if unknown:
                    raise ConfigError(
                        f"{target.path}: the benchmark {MINIATURE} has painted scenes, and the painter has no "
                        f"drawing of {', '.join(map(repr, unknown[:3]))}",
                        hint="--benchmark voc21 --data DIR, or set evaluate.benchmarks and evaluate.data",
                    )
                continue
            protocol = load_protocol(name)
            if settings.background is not None and protocol.counts_background:
                protocol = protocol.with_background(settings.background)
            if settings.data is None:
                raise ConfigError(f"{name}: where are its data?", hint=f"--data DIR; {protocol.origin}")
            data.append(open_data_set(protocol, data_folder(protocol, Path(settings.data))))
        return cls(target, settings, tuple(data), device)

    def evaluate(
        self,
        *,
        part: tuple[int, int] = (0, 1),
        report: Report = lambda text: None,
        progress: Progress = lambda title, done, total: None,
        stop: Callable[[], bool] = lambda: False,
        failed: Callable[[ImageFailed], None] = lambda failure: None,
    ) -> Iterator[dict[str, Any]]:
        """Do what is not done of this process's share, and give the results of each benchmark that is whole then.

        Args: part: (index, count): the share. report: told what was chosen, such as thresholds. stop: asked before
            every image. failed: told of every image that could not be scored; its benchmark gets no results.
        Raises: what `evaluate_benchmark` and `sweep_threshold` raise; BackendError without torch.
        """
        if MINIATURE in self.settings.benchmarks and part[0] == 0 and not stop():
            yield self._miniature(report)
        for data in self.data:
            if stop():
                return
            results: dict[str, dict[str, Any]] = {}
            failing: set[str] = set()
            # Twice: what another process had not finished of the first head may be there behind the last one, and of
            # all processes the last to finish has to see everything.
            for report_once in (report, _silent):
                for head in self._heads:
                    if head.name in results or head.name in failing or stop():
                        continue
                    try:
                        outcome = self._scored(
                            head, data, part=part, report=report_once, progress=progress, stop=stop
                        )
                    except ImageFailed as failure:  # of the threshold's images
                        failing.add(head.name)
                        failed(failure)
                        continue
                    for each in outcome.failed:
                        failing.add(head.name)
                        failed(each)
                    if outcome.results is not None:
                        results[head.name] = outcome.results
            if len(results) == len(self._heads):
                yield self._joined(data, [results[head.name] for head in self._heads])

    def path_of(self, benchmark: str) -> Path:
        """The file of a benchmark's results."""
        if benchmark == MINIATURE:
            return self.target.results / f"{benchmark}.json"
        rule = "" if self.settings.background is None else f"-{self.settings.background}"
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

    def _provenance(self, settings: Sequence[str]) -> dict[str, Any]:
        used = self.settings.model_dump(mode="json", include=set(settings))
        plain: dict[str, Any] = json.loads(to_json({**self.target.provenance, "evaluate": used}))
        return plain

    def _miniature(self, report: Report) -> dict[str, Any]:
        """Results of the very same model under the very same settings are not computed again."""
        run = self.target.run
        assert run is not None
        path = self.path_of(MINIATURE)
        known = _read(path)
        scenes = {
            "seed": run.config.seed,
            "size": run.config.generate.size,
            "scenes": self.settings.scenes,
            "max_objects": self.settings.max_objects,
            "vocabulary": run.vocabulary.digest(),
        }
        provenance = {**self._provenance(_OF_MINIATURE), "recipe": RECIPE, "data": scenes}
        if known is not None and known.get("provenance") == provenance:
            return known
        model, heads = self._model_and_heads
        from magicseg.evaluate.painted import evaluate_heldout

        scores = evaluate_heldout(
            model,
            run.vocabulary,
            self.settings,
            image_size=run.config.generate.size,
            seed=run.config.seed,
            model_seed=run.config.seed,
            baselines=heads[1:],
        )
        for name, found in scores["baselines"].items():
            if "threshold" in found:
                _report_swept(f"{MINIATURE}, {name}", Threshold.from_dict(found["threshold"]), report)
        results = {
            "benchmark": MINIATURE,
            "images": self.settings.scenes,
            "classes": ["background", *run.vocabulary.names],
            **scores,
            "conventions": CONVENTIONS,
            "provenance": provenance,
        }
        self._write(path, results)
        self._update_card()
        return results

    def _scored(
        self,
        head: "Head",
        data: DataSet,
        *,
        part: tuple[int, int],
        report: Report,
        progress: Progress,
        stop: Callable[[], bool],
    ) -> Outcome:
        title = f"{data.protocol.name}, {head.name}"
        outcome = evaluate_benchmark(
            head,
            data.protocol,
            data.folder,
            self.target.results,
            threshold=self._threshold(head, data, report=report, progress=progress),
            limit=self.settings.limit,
            part=part,
            provenance=self._provenance(_OF_BENCHMARKS),
            progress=lambda done, total: progress(title, done, total),
            stop=stop,
        )
        lacking: Sequence[str] = getattr(head, "lacking", ())
        if lacking and outcome.results is not None:
            report(f"{title}: nothing known of {', '.join(lacking)}: never predicted")
        return outcome

    def _threshold(self, head: "Head", data: DataSet, *, report: Report, progress: Progress) -> Threshold | None:
        """Swept on the benchmark's other split, once; the protocol's own where that is not there."""
        protocol = data.protocol
        if protocol.background.rule != "threshold":
            return None
        own = Threshold(value=protocol.background.threshold, origin="default")
        title = f"{protocol.name}, {head.name}"
        from magicseg.evaluate.sweep import RECIPE as SWEEP_RECIPE
        from magicseg.evaluate.sweep import sweep_threshold, why_not

        reason = why_not(protocol, data.folder) if self.settings.sweep_images else "evaluate.sweep_images is 0"
        if reason is not None:
            report(f"{title}: background below {own.value:g}, the protocol's, not chosen on other images: {reason}")
            return own
        assert protocol.tuning_split is not None
        tuning = open_data_set(protocol.for_split(protocol.tuning_split), data.folder)
        content = {
            "head": {"name": head.name, **head.identity},
            "protocol": protocol.digest(),
            "data": tuning.digest(),
            "images": self.settings.sweep_images,
            "recipe": SWEEP_RECIPE,
        }
        identity = hashlib.sha256(to_json(content)).hexdigest()
        path = results_folder(self.target.results, protocol, head.name) / f"threshold-{identity[:16]}.json"
        chosen = _read_threshold(path)
        if chosen is None:
            with storage_errors(path, "evaluate again"), Attempts(path.parent) as attempts:

                def attempt(name: str) -> AbstractContextManager[None]:
                    if (left := attempts.killed(name, identity)) is not None:
                        raise ImageFailed(f"{tuning.image_paths[tuning.place[name]]}: {told(left)}")
                    return attempts.on(name, identity)

                swept = sweep_threshold(
                    head,
                    protocol,
                    data.folder,
                    limit=self.settings.sweep_images,
                    progress=lambda done, total: progress(f"{title}, threshold", done, total),
                    attempt=attempt,
                )
            # Several processes may have swept; what the first has written holds for all.
            self._write(path, swept.to_dict(), exclusive=True)
            chosen = _read_threshold(path)
        if chosen is None:
            raise StoreError(f"{path}: is damaged", hint=f"{command('rm', path)}, then evaluate again")
        _report_swept(title, chosen, report)
        return chosen

    def _joined(self, data: DataSet, results: Sequence[dict[str, Any]]) -> dict[str, Any]:
        model, *baselines = results
        joined = {**model, "baselines": {each["head"]: each for each in baselines}}
        path = self.path_of(data.protocol.name)
        if _read(path) != joined:
            self._draw(data, model)  # first: with the results there, nobody would draw them again
            self._write(path, joined)
            self._update_card()
        return joined

    def _draw(self, data: DataSet, results: Mapping[str, Any]) -> None:
        """The model's charts, and its best and worst images."""
        from magicseg.evaluate.figures import write_charts, write_examples

        head = self._heads[0]
        limit = self.settings.limit if results["images"] < results["images_in_data_set"] else None
        folder = results_folder(self.target.results, data.protocol, head.name, limit=limit)
        write_charts(results, folder)
        write_examples(head, data.protocol, data.folder, results, folder)

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
                    name = (
                        f"mIoU on {results['benchmark']}, {results['images']} images (95 %: {low:.4g} to {high:.4g})"
                    )
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


def _silent(_text: str) -> None:
    """Tell nobody."""


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
