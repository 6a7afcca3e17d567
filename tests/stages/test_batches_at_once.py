"""Two batches in progress: the CPU works on one while the GPU computes the other. The answers stay in their order."""

import threading

import pytest

from magicseg.config.loading import load_config
from magicseg.stages.placement import batches_at_once
from magicseg.stages.retries import answered_in_batches
from magicseg.vision.shipped_models import TransformersDetector

HANG = 20  # seconds


@pytest.mark.parametrize("at_once", [1, 2])
def test_so_many_batches_are_in_progress(at_once):
    together = threading.Barrier(at_once)

    def attempt(batch):
        together.wait(HANG)
        return [number * 10 for number in batch]

    answers = list(answered_in_batches(range(8), 2, attempt, at_once=at_once))
    assert answers == [(number, number * 10) for number in range(8)]


def test_one_batch_at_once_stays_in_the_thread():
    seen = []
    list(answered_in_batches(range(4), 2, lambda batch: seen.append(threading.current_thread()) or batch))
    assert seen == [threading.current_thread()] * 2


def test_answers_come_in_order_though_a_later_batch_is_ready_first():
    later = threading.Event()

    def attempt(batch):
        if batch[0] == 0:
            later.wait(HANG)
        else:
            later.set()
        return batch

    assert [position for position, _ in answered_in_batches(range(6), 2, attempt, at_once=2)] == list(range(6))


def test_an_error_of_a_batch_ends_the_work_after_the_answers_before_it():
    answered = []

    def attempt(batch):
        if 4 in batch:
            raise ValueError("the third batch")
        return batch

    with pytest.raises(ValueError, match="third"):
        answered.extend(position for position, _ in answered_in_batches(range(10), 2, attempt, at_once=2))
    for position, _ in answered_in_batches(range(4), 2, attempt, at_once=2):
        answered.append(position)
    assert answered[-4:] == [0, 1, 2, 3]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batch")]


def test_a_stop_is_noticed_before_each_batch():
    batches = []

    def stop():
        if len(batches) > 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(answered_in_batches(range(10), 2, lambda batch: batches.append(batch) or batch, stop, at_once=2))
    assert len(batches) < 5


def of_preset(preset, stage, *overrides):
    return batches_at_once(load_config(preset=preset, overrides=list(overrides)), stage)


def test_maskers_on_gpus_have_two_batches_and_all_others_one(monkeypatch):
    assert of_preset("sdxl", "mask") == of_preset("paper", "mask") == 2
    assert of_preset("sdxl", "generate") == of_preset("sdxl", "describe") == 1
    assert of_preset("miniature", "mask") == of_preset("miniature", "generate") == 1
    on_cpu = [f"mask.options.{role}.options.device=cpu" for role in ("detector", "segmenter")]
    assert of_preset("sdxl", "mask", *on_cpu) == 1
    monkeypatch.delattr(TransformersDetector, "THREAD_SAFE")
    assert of_preset("sdxl", "mask") == 1
