"""Checkpoints and settings that do not fit, batches that do not fit: what is wrong, and what to do."""

import json
import os
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.mask_requests import labels, picture
from magicseg.backends import DetectRequest, SegmentRequest
from magicseg.core.errors import BackendError, ConfigError
from magicseg.installed_backends import choose_backend
from magicseg.vision.shipped_models import OriginalDetector, TransformersDetector
from magicseg.weights.hashing import path_identity

GROUNDED = ("grounding_dino", "original_grounding_dino")
LACKING = r"\d tensors of a \w+ are missing or of another shape, such as \w+\."
LONG = "a hot dog on the dining table with a red car and a bird"


def detect(*names, count=1):
    return [DetectRequest(image=picture(seed), labels=labels(*names)) for seed in range(count)]


def segment(count=1):
    box = np.array([[4, 4, 30, 30]], np.float32)
    return [SegmentRequest(image=picture(seed), boxes=box) for seed in range(count)]


@pytest.fixture
def copied(checkpoint, tmp_path):
    """A copy of a checkpoint that a test may damage."""

    def copy(name):
        return shutil.copytree(checkpoint(name), tmp_path / f"{name}-copy")

    return copy


@pytest.fixture
def original_files(checkpoint, tmp_path):
    """The release's files, the checkpoint itself as a link: a test may replace any."""
    folder, whole = tmp_path / "original", checkpoint("original_grounding_dino")
    shutil.copytree(whole, folder, ignore=shutil.ignore_patterns("*.pth"))
    (folder / "groundingdino_swint_ogc.pth").symlink_to(whole / "groundingdino_swint_ogc.pth")
    return folder


@pytest.mark.parametrize("model", GROUNDED)
def test_labels_that_cannot_be_looked_for_are_named(model, detector):
    backend = detector(model, text_length=8)
    with pytest.raises(BackendError, match="alone is longer") as caught:
        backend.detect(detect("cat", LONG))
    assert LONG in caught.value.message
    assert "text_length" in caught.value.hint
    for empty in ("?!", "."):
        with pytest.raises(BackendError, match="nothing to look for") as caught:
            backend.detect(detect("cat", empty))
        assert caught.value.hint
    assert len(backend.detect(detect("cat"))[0].boxes)


def test_more_text_than_the_model_takes_is_refused(detector, original_files):
    with pytest.raises(BackendError, match="text_length is 65") as caught:
        detector("grounding_dino", text_length=65)
    assert caught.value.hint == "set it to 64 or less"
    with (original_files / "tiny.py").open("a") as file:
        file.write("max_text_len = 32\n")
    with pytest.raises(BackendError, match="text_length is 33") as caught:
        detector(original_files, text_length=33)
    assert "32" in caught.value.hint


def remove(folder):
    (folder / "model.safetensors").unlink()


def truncate(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def garble(folder):
    (folder / "model.safetensors").write_bytes(b"no weights at all" * 9)


def drop_a_tensor(folder):
    weights = load_file(folder / "model.safetensors")
    del weights[sorted(weights)[3]]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def resize_a_tensor(folder):
    weights = load_file(folder / "model.safetensors")
    name = max(weights, key=lambda name: weights[name].ndim)
    weights[name] = weights[name][:-1].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def pickle_weights(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def break_config(folder):
    (folder / "config.json").write_text("{")


@pytest.mark.parametrize("model", ["grounding_dino", "owlv2", "sam", "sam_hq", "sam2"])
@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (shutil.rmtree, "cannot be loaded"),
        (remove, "cannot be loaded"),
        (truncate, "cannot be loaded: SafetensorError"),
        (garble, "cannot be loaded: SafetensorError"),
        (drop_a_tensor, LACKING),
        (resize_a_tensor, LACKING),
        (pickle_weights, "cannot be loaded"),
        (break_config, "cannot be loaded"),
    ],
)
def test_a_damaged_checkpoint_is_refused(damage, told, model, copied, detector, segmenter):
    folder = copied(model)
    make, what = (segmenter, "segmenter") if model.startswith("sam") else (detector, "detector")
    make(folder)
    damage(folder)
    with pytest.raises(BackendError, match=told) as caught:
        make(folder)
    assert f"{what}.options.model: {folder}" in caught.value.message
    assert "safetensors" in caught.value.hint
    assert "\x1b" not in caught.value.message


@pytest.mark.parametrize("model", ["sam", "sam2"])
def test_a_segmenter_is_no_detector(model, detector):
    with pytest.raises(BackendError, match=r"Sam.*Model, which this back end does not drive") as caught:
        detector(model)
    assert "GroundingDinoForObjectDetection" in caught.value.hint


@pytest.mark.parametrize("model", ["grounding_dino", "owlv2"])
def test_a_detector_is_no_segmenter(model, segmenter):
    with pytest.raises(BackendError, match="ForObjectDetection, which this back end does not drive") as caught:
        segmenter(model)
    assert "Sam2Model" in caught.value.hint


def test_original_weights_of_another_model_are_refused(original_files, checkpoint, detector, segmenter, tmp_path):
    file = original_files / "groundingdino_swint_ogc.pth"
    file.unlink()
    shutil.copy(checkpoint("original_sam") / "sam_vit_h_4b8939.pth", file)
    with pytest.raises(BackendError, match=r"lacks \d+ tensors") as caught:
        detector(original_files)
    assert str(file) in caught.value.message
    assert "architecture" in caught.value.hint
    other = tmp_path / "sam"
    other.mkdir()
    torch.save({"prompt_encoder.no_mask_embed.weight": torch.zeros(1, 16)}, other / "sam_vit_h_4b8939.pth")
    with pytest.raises(BackendError, match="another architecture") as caught:
        segmenter(other)
    assert "no_mask_embed" in caught.value.message


def test_an_original_checkpoint_that_lacks_a_tensor_is_refused(checkpoint, segmenter, tmp_path):
    weights = torch.load(checkpoint("original_sam") / "sam_vit_h_4b8939.pth")
    del weights["mask_decoder.iou_token.weight"]
    torch.save(weights, tmp_path / "sam_vit_h_4b8939.pth")
    with pytest.raises(BackendError, match=r"lacks 1 tensors of the model, such as mask_decoder\.iou_token\.weight"):
        segmenter(tmp_path)


def test_an_architecture_that_segment_anything_lacks_is_refused(segmenter):
    with pytest.raises(BackendError, match="architecture is 'vit_x'") as caught:
        segmenter("original_sam", architecture="vit_x")
    assert "vit_b" in caught.value.hint


def test_missing_files_of_the_original_are_named(original_files, detector, segmenter, checkpoint):
    with pytest.raises(BackendError, match=r"other\.pth: there is no such file") as caught:
        segmenter("original_sam", file="other.pth")
    assert caught.value.hint
    with pytest.raises(BackendError, match=r"nowhere\.py cannot be read") as caught:
        detector(original_files, config=str(original_files / "nowhere.py"))
    assert "swin-t" in caught.value.hint
    (original_files / "bert" / "config.json").unlink()
    with pytest.raises(BackendError, match="holds no BERT") as caught:
        detector(original_files)
    assert "config.json" in caught.value.hint


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
@pytest.mark.parametrize("model", ["grounding_dino", "original_grounding_dino", "sam", "original_sam"])
def test_a_missing_gpu_is_an_error_not_a_slow_run(model, detector, segmenter):
    make, what = (segmenter, "segmenter") if "sam" in model else (detector, "detector")
    with pytest.raises(BackendError, match="finds no CUDA device") as caught:
        make(model, device="cuda")
    assert f"{what}.options.device" in caught.value.message
    assert "cpu" in caught.value.hint


def limit_memory(monkeypatch, owner, name, rows, size=len):
    """Let a function run out of memory on more than so many rows."""
    whole = getattr(owner, name)

    def limited(*positional, **named):
        given = positional[0] if positional else next(iter(named.values()))
        if size(given) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ...")
        return whole(*positional, **named)

    monkeypatch.setattr(owner, name, limited)


@pytest.mark.parametrize("model", ["grounding_dino", "owlv2"])
def test_a_detectors_batch_that_does_not_fit_names_one_that_does(model, detector, monkeypatch):
    backend = detector(model, batch_size=8)
    limit_memory(monkeypatch, backend._model._model, "forward", rows=3)
    with pytest.raises(
        BackendError, match=r"mask\.batch_size is 8: cpu is out of memory with 8 images at once"
    ) as caught:
        backend.detect(detect("cat", count=8))
    assert caught.value.hint.startswith("2 fits: set mask.batch_size to 2")
    assert "Tried to allocate 2.00 GiB" in caught.value.message
    assert "GPU 0 has" not in caught.value.message


@pytest.mark.parametrize("model", ["sam", "original_sam"])
def test_a_segmenters_batch_that_does_not_fit_names_one_that_does(model, segmenter, monkeypatch):
    backend = segmenter(model, batch_size=8)
    loaded = backend._model._model
    owner, name = (loaded, "get_image_embeddings") if model == "sam" else (loaded.image_encoder, "forward")
    limit_memory(monkeypatch, owner, name, rows=4)
    with pytest.raises(BackendError, match=r"mask\.batch_size is 8: cpu is out of memory") as caught:
        backend.segment(segment(count=8))
    assert caught.value.hint.startswith("4 fits")


def test_a_device_that_fails_stops_the_stage_instead_of_dropping_samples(detector, segmenter, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")

    finding, drawing = detector("owlv2"), segmenter("sam")
    monkeypatch.setattr(finding._model._model, "forward", fail)
    monkeypatch.setattr(drawing._model._model, "get_image_embeddings", fail)
    for call in (lambda: finding.detect(detect("cat")), lambda: drawing.segment(segment(count=1))):
        with pytest.raises(
            BackendError, match="failed: RuntimeError: CUDA error: an illegal memory access"
        ) as caught:
            call()
        assert "run the same command again" in caught.value.hint
        assert "more" not in caught.value.message


def test_models_that_share_a_process_keep_their_numbers_of_threads(detector, segmenter, monkeypatch):
    finding, drawing = detector("owlv2", cpu_threads=2), segmenter("sam", cpu_threads=1)
    seen = []
    for model, name in ((finding._model._model, "forward"), (drawing._model._model, "get_image_embeddings")):
        whole = getattr(model, name)

        def noting(*positional, whole=whole, **named):
            seen.append(torch.get_num_threads())
            return whole(*positional, **named)

        monkeypatch.setattr(model, name, noting)
    for _ in range(2):
        finding.detect(detect("cat", count=1))
        drawing.segment(segment(count=1))
    assert seen == [2, 1, 2, 1]


@pytest.mark.parametrize("model", ["grounding_dino", "original_grounding_dino", "owlv2"])
def test_labels_are_checked_before_anything_is_looked_for(model, detector):
    backend = detector(model)
    backend.check_labels(labels("cat", "dining table"))
    with pytest.raises(BackendError, match="alone is longer than the text encoder takes"):
        backend.check_labels(labels("cat", "very " * 70 + "long cat"))


@pytest.mark.slow
def test_a_checkpoint_s_own_code_is_not_run_even_if_somebody_says_yes(tmp_path):
    marker = tmp_path / "marker"
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil", "AutoProcessor": "evil.Evil"}})
    )
    (tmp_path / "evil.py").write_text(f"open({str(marker)!r}, 'w')\nclass Evil: pass\n")
    code = (
        "from magicseg.vision.batches import HasBatch\n"
        "from magicseg.vision.shipped_models import TransformersDetector as Detector\n"
        f"Detector(HasBatch(1), Detector.Options(model={str(tmp_path)!r}, device='cpu'))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], input="y\n" * 9, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "BackendError" in done.stderr
    assert not marker.exists()


def test_one_image_that_does_not_fit_asks_for_a_smaller_model(detector, monkeypatch):
    backend = detector("owlv2", batch_size=4)
    limit_memory(monkeypatch, backend._model._model, "forward", rows=0)
    with pytest.raises(BackendError, match="batch_size is 4") as caught:
        backend.detect(detect("cat"))
    assert "not even 1 fits" in caught.value.hint


def test_other_errors_of_a_model_are_not_taken_for_a_lack_of_memory(detector, monkeypatch):
    backend = detector("owlv2")

    def fail(*_, **__):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(backend._model._model, "forward", fail)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        backend.detect(detect("cat"))


@pytest.mark.parametrize(("kind", "model"), [("detectors", "grounding_dino"), ("segmenters", "sam")])
def test_float16_is_for_gpus(kind, model, checkpoint):
    options = {"model": str(checkpoint(model)), "device": "cpu", "dtype": "float16"}
    with pytest.raises(ConfigError, match="float16 is for cuda; on the cpu use float32 or bfloat16"):
        choose_backend(kind, "transformers", options, "detector")
    _, chosen = choose_backend(kind, "transformers", options | {"dtype": "bfloat16"}, "detector")
    assert chosen.dtype == "bfloat16"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"file": "../elsewhere.pth"}, "the name of a .pth file"),
        ({"file": "/tmp/elsewhere.pth"}, "the name of a .pth file"),
        ({"file": "weights.bin"}, "the name of a .pth file"),
        ({"dtype": "bfloat16"}, "dtype"),
        ({"text_length": 257}, "text_length"),
        ({"text_encoder": {"model": "google-bert/bert-base-uncased"}}, "needs a revision"),
    ],
)
def test_options_of_the_original_that_do_not_fit_are_refused(options, told, original_files):
    bert = {"model": str(original_files / "bert")}
    given = {"model": str(original_files), "text_encoder": bert, "device": "cpu"} | options
    with pytest.raises(ConfigError, match=told):
        choose_backend("detectors", "original", given, "detector")


class Harmful:
    """Runs a command when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("form", ["archive", "pickle"])
@pytest.mark.parametrize("model", ["original_grounding_dino", "original_sam"])
def test_checkpoints_run_no_code(model, form, original_files, detector, segmenter, tmp_path):
    marker = tmp_path / "marker"
    content = {"model": {"weight": torch.zeros(2)}, "args": Harmful(marker)}
    folder, name = tmp_path / "sam", "sam_vit_h_4b8939.pth"
    folder.mkdir()
    make = segmenter
    if model == "original_grounding_dino":
        folder, name, make = original_files, "groundingdino_swint_ogc.pth", detector
        (folder / name).unlink()
    if form == "archive":
        torch.save(content, folder / name)
    else:
        (folder / name).write_bytes(pickle.dumps({"args": Harmful(marker)}))
    with pytest.raises(BackendError, match="cannot be read") as caught:
        make(folder)
    assert "nothing but tensors" in caught.value.hint
    assert not marker.exists()
    torch.load(folder / name, weights_only=False) if form == "archive" else pickle.loads((folder / name).read_bytes())
    assert marker.exists(), "it would have run"


def test_a_checkpoint_without_tensors_is_refused(segmenter, tmp_path):
    torch.save([torch.zeros(2)], tmp_path / "sam_vit_h_4b8939.pth")
    with pytest.raises(BackendError, match="holds list, not tensors by name"):
        segmenter(tmp_path)
    (tmp_path / "sam_vit_h_4b8939.pth").write_bytes(b"")
    with pytest.raises(BackendError, match="cannot be read"):
        segmenter(tmp_path)


def test_a_file_of_settings_is_read_and_not_run(original_files, detector, checkpoint, tmp_path):
    marker = tmp_path / "marker"
    settings = original_files / "tiny.py"
    code = f'import os\nos.system("touch {marker}")\nopen("{marker}", "w")\n'
    settings.write_text(code + settings.read_text())
    (found,) = detector(original_files).detect(detect("cat"))
    (expected,) = detector("original_grounding_dino").detect(detect("cat"))
    assert np.array_equal(found.boxes, expected.boxes)
    assert not marker.exists()


@pytest.mark.parametrize(
    "line",
    ['num_queries = open("{}", "w") and 20', 'num_queries = __import__("os").system("touch {}")', "x = [y]", "x ="],
)
def test_settings_that_are_no_plain_values_are_refused(line, original_files, detector, tmp_path):
    marker = tmp_path / "marker"
    with (original_files / "tiny.py").open("a") as file:
        file.write(line.format(marker) + "\n")
    with pytest.raises(BackendError, match="is not a list of plain values") as caught:
        detector(original_files)
    assert str(original_files / "tiny.py") in caught.value.message
    assert "swin-t" in caught.value.hint
    assert not marker.exists()


def test_settings_that_build_no_model_are_refused(original_files, detector):
    with (original_files / "tiny.py").open("a") as file:
        file.write('backbone = "no_such_backbone"\n')
    with pytest.raises(BackendError, match="builds no model") as caught:
        detector(original_files)
    assert "swin-t" in caught.value.hint


def test_settings_of_another_size_do_not_take_the_weights(original_files, detector):
    with (original_files / "tiny.py").open("a") as file:
        file.write("num_queries = 21\n")
    with pytest.raises(BackendError, match="another architecture"):
        detector(original_files)


@pytest.mark.parametrize("backend", [OriginalDetector, TransformersDetector])
def test_weights_that_are_not_there_have_no_identity(backend, checkpoint, tmp_path):
    options = {"model": str(tmp_path / "nowhere"), "device": "cpu"}
    if backend is OriginalDetector:
        options["text_encoder"] = {"model": str(checkpoint("original_grounding_dino") / "bert")}
    with pytest.raises(BackendError, match=r"detector\.options\.model: .*nowhere: there is no such folder"):
        path_identity(backend.weights(backend.Options(**options))[0], "detector.options.model")


def test_a_label_that_owl_cannot_read_whole_is_refused(detector):
    with pytest.raises(BackendError, match="alone is longer than the text encoder takes"):
        detector("owlv2").detect([DetectRequest(image=picture(0), labels=labels("cat", "very " * 40 + "long cat"))])


def test_a_half_written_cache_of_yapf_does_not_matter(tmp_path):
    """Found in a cluster's home folder while another task writes it, or for ever after a full quota."""
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}

    def run(program):
        command = [sys.executable, "-c", program]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)

    assert run("import yapf").returncode == 0
    grammars = list(tmp_path.rglob("*.pickle"))
    assert grammars
    for grammar in grammars:
        os.truncate(grammar, 0)
    assert "EOFError" in run("import yapf").stderr
    after = run("import os, magicseg.vision.yapf_shim; print(os.environ['XDG_CACHE_HOME'])")
    assert (after.returncode, after.stdout.strip()) == (0, str(tmp_path))
