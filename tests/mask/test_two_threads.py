"""Two threads share detector and segmenter: images are preprocessed while a model computes, one model at a time."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from helpers.mask_requests import labels, picture, segment_request
from helpers.tiny_runs import do, make_run
from magicseg.backends import DetectRequest
from magicseg.run.digest import logical_digest
from magicseg.stages import shard

HANG = 20  # seconds
DETECTORS = ("grounding_dino", "original_grounding_dino", "owlv2")
SEGMENTERS = ("sam", "sam2", "original_sam")
NAMES = ["cat", "dining table", "hot dog", "red car", "wombat"]


def calls(backend, family):
    """Some calls with different images and labels, as functions of nothing that return arrays."""
    if family in DETECTORS:
        requests = [
            [DetectRequest(image=picture(10 * call + i), labels=labels(*NAMES[: 1 + call % 4])) for i in range(4)]
            for call in range(6)
        ]
        return [
            lambda given=given: [values for one in backend.detect(given) for values in (one.boxes, one.scores)]
            for given in requests
        ]
    requests = [[segment_request(10 * call + i, count=1 + call) for i in range(4)] for call in range(6)]
    return [
        lambda given=given: [values for one in backend.segment(given) for values in (one.logits, one.quality)]
        for given in requests
    ]


@pytest.mark.parametrize("family", [*DETECTORS, *SEGMENTERS])
def test_threads_get_the_answers_of_one_thread(family, detector, segmenter):
    todo = calls((detector if family in DETECTORS else segmenter)(family), family)
    alone = [call() for call in todo]
    with ThreadPoolExecutor(2) as threads:
        together = list(threads.map(lambda call: call(), todo))
    for one, other in zip(together, alone, strict=True):
        assert all(map(np.array_equal, one, other))


@pytest.mark.parametrize("family", ["owlv2", "grounding_dino", "sam"])
def test_images_are_preprocessed_while_another_threads_model_computes(family, detector, segmenter, monkeypatch):
    backend = (detector if family in DETECTORS else segmenter)(family)
    model = backend._model._model
    name = "get_image_embeddings" if family == "sam" else "forward"
    compute, prepare = getattr(model, name), backend._model._prepared
    computing, prepared, inside = threading.Event(), threading.Event(), []

    def waiting(*given, **named):
        inside.append(threading.current_thread().name)
        assert len(inside) == 1, "two models at once"
        computing.set()
        assert prepared.wait(HANG), "nothing was preprocessed meanwhile"
        result = compute(*given, **named)
        inside.pop()
        return result

    def noting(rows):
        rows = prepare(rows)
        if computing.is_set():
            prepared.set()
        return rows

    def second(call):
        assert computing.wait(HANG)
        return call()

    monkeypatch.setattr(model, name, waiting)
    monkeypatch.setattr(backend._model, "_prepared", noting)
    one, other = calls(backend, family)[:2]
    with ThreadPoolExecutor(2) as threads:
        found = [threads.submit(one), threads.submit(second, other)]
        assert all(each.result(HANG) for each in found)


def test_a_run_with_two_batches_in_progress_has_the_same_bytes(tmp_path, checkpoint, monkeypatch):
    def masked(name, at_once):
        monkeypatch.setattr(shard, "batches_at_once", lambda _config, stage: at_once if stage == "mask" else 1)
        models = ", ".join(
            f"{role}: {{backend: transformers, options: {{model: '{checkpoint(model)}', device: cpu}}}}"
            for role, model in (("detector", "owlv2"), ("segmenter", "sam"))
        )
        run = make_run(
            tmp_path / name,
            "plan.samples=12",
            "plan.shard_size=12",
            "mask.backend=detect-segment",
            "mask.batch_size=3",
            f"mask.options={{{models}, box_threshold: 0, text_threshold: 0, max_objects: 2, min_area: 0, "
            "max_area: 1, check_counterfactual: false, missing_labels: keep}",
        )
        for stage in ("describe", "generate", "mask"):
            do(run, stage)
        assert len(run.ledger("mask").committed(0).kept_offsets()) > 6
        return logical_digest(run)

    assert masked("one", 1) == masked("two", 2)
