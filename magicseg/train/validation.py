"""What training looks at now and then: a score on pictures that are neither trained on nor tested on."""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from magicseg.config.evaluation import MINIATURE
from magicseg.data.ground_truth import data_folder
from magicseg.data.protocol import load_protocol
from magicseg.evaluate.benchmark import evaluate_benchmark
from magicseg.evaluate.heads.segmenter_head import SegmenterHead
from magicseg.evaluate.painted import OTHER_SCENES, score_heldout
from magicseg.evaluate.sweep import why_not
from magicseg.miniature.held_out_scenes import undrawn
from magicseg.model.segmenter import Segmenter
from magicseg.run.directory import Run

_IMAGES = 50  # other processes wait meanwhile

Watch = Callable[[Segmenter, int], Mapping[str, float]]


def watch(run: Run) -> Watch | None:
    """A function for `magicseg.train.loop.train`: mIoU on painted scenes of another seed, or on 50 images of the
    first benchmark's other split. None where there is neither: the best checkpoint is not chosen on test images.

    Raises: ConfigError, DataError, as opening the benchmark does.
    """
    settings = run.config.evaluate
    if MINIATURE in settings.benchmarks and not undrawn(run.vocabulary):

        def on_scenes(model: Segmenter, _step: int) -> dict[str, float]:
            scores = score_heldout(
                [SegmenterHead(model, "")],
                run.vocabulary,
                settings,
                image_size=run.config.generate.size,
                seed=run.config.seed + OTHER_SCENES,
            )
            return {"miou": scores["model"]["miou"]}

        return on_scenes
    if settings.data is None:
        return None
    others = [name for name in settings.benchmarks if name != MINIATURE]
    if not others:
        return None
    protocol = load_protocol(others[0])
    folder = data_folder(protocol, Path(settings.data))
    if protocol.tuning_split is None or why_not(protocol, folder) is not None:
        return None
    other = protocol.for_split(protocol.tuning_split)

    def on_images(model: Segmenter, step: int) -> dict[str, float]:
        head = SegmenterHead(model, f"step {step}")
        with tempfile.TemporaryDirectory() as out:
            results = evaluate_benchmark(head, other, folder, Path(out), limit=_IMAGES).results
        assert results is not None
        return {"miou": results["miou"]}

    return on_images
