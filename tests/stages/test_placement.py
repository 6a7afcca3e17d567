"""How many workers a stage gets, and on which GPUs. The GPUs are stand-ins: no device is used."""

import pytest

from helpers.tiny_runs import TINY
from magicseg.config.loading import load_config
from magicseg.core.errors import ConfigError
from magicseg.core.gpus import Gpu, VisibleGpus
from magicseg.stages.placement import Wish, default_workers, place_task, place_workers, stage_devices

pytestmark = pytest.mark.usefixtures("faulty")

NONE = VisibleGpus(())
DETECTOR = "{backend: clip, options: {model: 'shipped:clip', against: [nothing], device: %s, dtype: float32}}"


def config(*overrides):
    return load_config(preset="painted", overrides=[*TINY, *overrides])


@pytest.fixture
def recorder(tmp_path):
    return config("generate.backend=gpu-recorder", f"generate.options.log={tmp_path}", "mask.backend=gpu-recorder")


def machine(count):
    return lambda: VisibleGpus(tuple(Gpu(str(number), {}) for number in range(count)))


def placed(settings, stage, count, **wish):
    placement = place_workers(settings, stage, Wish(**wish), machine(count))
    return placement.workers, [gpu.name for gpu in placement.gpus], str(placement)


@pytest.mark.parametrize(
    ("count", "text"), [(1, "1 worker on GPU 0"), (2, "2 workers on GPUs 0-1"), (8, "8 workers on GPUs 0-7")]
)
def test_a_stage_on_gpus_gets_one_worker_per_gpu(recorder, count, text):
    workers, gpus, shown = placed(recorder, "generate", count)
    assert (workers, len(gpus), shown) == (count, count, text)


def test_workers_per_gpu_and_a_number_of_workers_are_obeyed(recorder):
    assert placed(recorder, "generate", 4, per_gpu=2) == (8, ["0", "1", "2", "3"], "8 workers on GPUs 0-3")
    assert placed(recorder, "generate", 4, workers=6)[:2] == (6, ["0", "1", "2", "3"])
    assert placed(recorder, "generate", 4, workers=3) == (3, ["0", "1", "2"], "3 workers on GPUs 0-2")
    assert placed(recorder, "generate", 4, gpus="3,1") == (2, ["3", "1"], "2 workers on GPUs 1,3")
    with pytest.raises(ConfigError, match="this machine has no GPU 4"):
        placed(recorder, "generate", 4, gpus="4")
    with pytest.raises(ConfigError, match="both give the number of workers"):
        Wish(workers=3, per_gpu=2)


def test_a_stage_on_cpus_gets_one_worker_per_cpu_and_does_not_look_for_gpus(recorder):
    def never():
        raise AssertionError("nvidia-smi was asked")

    placement = place_workers(recorder, "describe", Wish(gpus="0"), never)
    assert (placement.workers, placement.gpus) == (default_workers(), ())
    assert str(placement) == f"{default_workers()} worker{'s' if default_workers() > 1 else ''} (CPU)"
    assert str(place_workers(recorder, "describe", Wish(workers=1), never)) == "1 worker (CPU)"


def test_without_a_gpu_a_stage_that_needs_one_gets_one_worker_which_says_what_is_missing(recorder):
    assert placed(recorder, "generate", 0) == (1, [], "1 worker, no GPU was found")


@pytest.mark.parametrize(("stage", "listed", "expected"), [
    ("describe", ["0", "1"], (1, [])),
    ("generate", ["0", "MIG-1"], (2, ["0", "MIG-1"])),
    ("mask", ["0", "MIG-1"], (2, ["0", "MIG-1"])),
    ("generate", [], (1, [])),
    ("generate", None, (1, [])),
])  # fmt: skip
def test_an_array_task_has_one_worker_per_gpu_that_its_job_was_given(recorder, stage, listed, expected):
    names, limit = (["0", "1", "2"], None) if listed is None else (listed, "CUDA_VISIBLE_DEVICES")
    visible = VisibleGpus(tuple(Gpu(name, {}) for name in names), limit)
    placement = place_task(recorder, stage, lambda: visible)
    assert (placement.workers, [gpu.name for gpu in placement.gpus]) == expected


def test_a_stage_whose_device_is_auto_uses_the_cpus_where_there_is_no_gpu(recorder):
    assert placed(recorder, "mask", 2)[2] == "2 workers on GPUs 0-1"
    assert placed(recorder, "mask", 0, workers=3)[2] == "3 workers (CPU)"


@pytest.mark.parametrize(("device", "expected"), [("cuda", {"cpu", "cuda"}), ("cpu", {"cpu"})])
def test_a_detector_on_a_gpu_counts_inside_options_and_in_checks(device, expected):
    checked = config(f"generate.validity={{detector: {DETECTOR % device}}}")
    assert stage_devices(checked, "generate") == expected
    assert stage_devices(checked, "mask") == {"cpu"}
    segmenter = "{backend: transformers, options: {model: /nowhere, device: cpu}}"
    nested = config(
        "mask.backend=detect-segment",
        f"mask.options={{detector: {DETECTOR % device}, segmenter: {segmenter}}}",
    )
    assert stage_devices(nested, "mask") == expected


def test_no_more_workers_are_shown_than_shards_are_missing(recorder):
    placement = place_workers(recorder, "generate", Wish(per_gpu=2), machine(4)).at_most(3)
    assert str(placement) == "3 workers on GPUs 0-2"
