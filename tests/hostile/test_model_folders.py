"""Untrusted weights folders: no code runs, no prompt appears, declared sizes are not allocated."""

import ast
import builtins
import contextlib
import functools
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported

import magicseg
from helpers.tiny_models import TINY_DECODER
from magicseg.config.model import ModelSettings, OpenClipSettings
from magicseg.core.errors import BackendError, ConfigError, DataError, MagicsegError
from magicseg.model import load_model
from magicseg.model.encoder import build_encoder
from magicseg.model.saved_model import save_segmenter
from magicseg.model.segmenter import build_segmenter
from magicseg.model.text_cache import cached_texts
from magicseg.stages.describe.local_model import TransformersCaptioner
from magicseg.stages.generate.diffusers_options import DiffusersOptions
from magicseg.stages.generate.pipeline import load_pipeline
from magicseg.stages.generate.pipeline_folder import read_index
from magicseg.train.checkpoints import newest_checkpoint
from magicseg.vision.batches import HasBatch
from magicseg.vision.shipped_models import ClipDetector, OriginalDetector, OriginalSegmenter, TransformersDetector
from magicseg.vision.shipped_models import TransformersSegmenter as Segmenter
from magicseg.weights import Weights
from magicseg.weights.cache import location

CPU = {"device": "cpu", "dtype": "float32"}
CODE = {
    "AutoConfig": "evil.Evil",
    "AutoModel": "evil.Evil",
    "AutoModelForCausalLM": "evil.Evil",
    "AutoModelForZeroShotObjectDetection": "evil.Evil",
    "AutoModelForMaskGeneration": "evil.Evil",
    "AutoTokenizer": ["evil.Evil", "evil.Evil"],
    "AutoProcessor": "evil.Evil",
    "AutoImageProcessor": "evil.Evil",
}


class Payload:
    """Create a marker file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.fixture(autouse=True)
def marker(tmp_path, monkeypatch, models_apart):
    """Return the path that planted code would create. It must not exist at the end, and no prompt may appear."""

    def ask(*_):
        pytest.fail("somebody was asked on the terminal")

    monkeypatch.setattr(builtins, "input", ask)
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    made = tmp_path / "code-was-run"
    yield made
    assert not made.exists()


def planted(folder, marker):
    """Plant Python files in a folder wherever a library could look for code."""
    code = f"from pathlib import Path\nPath({str(marker)!r}).touch()\nclass Evil:\n    pass\n"
    targets = [folder, *(path for path in folder.rglob("*") if path.is_dir()), folder / "custom_generate"]
    for target in targets:
        target.mkdir(exist_ok=True)
        for name in ("evil", "pipeline", "generate", "unet", "model", "tokenizer", "__init__"):
            (target / f"{name}.py").write_text(code)
    return folder


def changed(file, **entries):
    """Add entries to a JSON file, and create the file if it is missing."""
    value = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(value | entries))


def captioner(folder, **options):
    return TransformersCaptioner(None, TransformersCaptioner.Options(model=str(folder), **CPU, **options))


def detector(folder):
    return TransformersDetector(HasBatch(1), TransformersDetector.Options(model=str(folder), **CPU))


def segmenter(folder):
    return Segmenter(HasBatch(1), Segmenter.Options(model=str(folder), **CPU))


def pipeline(folder):
    options = DiffusersOptions(model=str(folder), **CPU)
    return load_pipeline(options, location(Weights(setting="model", model=str(folder), files=("*", "*/*"))))


def encoder(folder):
    return build_encoder(OpenClipSettings(name="open-clip", weights={"model": str(folder)}))


def clip_judge(folder):
    return ClipDetector(HasBatch(1), ClipDetector.Options(model=str(folder), device="cpu", against=["thing"]))


LOADERS = {
    "language": captioner,
    "grounding_dino": detector,
    "owlv2": detector,
    "sam": segmenter,
    "sd15": pipeline,
    "clip": encoder,
    "judge": clip_judge,
    "saved": load_model,
}


@pytest.fixture(scope="session")
def sound(checkpoint, tmp_path_factory):
    """Return a function from a kind to a valid folder, created once. Do not modify it."""

    @functools.cache
    def make(kind):
        if kind not in {"clip", "judge", "saved"}:
            return checkpoint(kind)
        folder = tmp_path_factory.mktemp(kind) / "clip"
        shutil.copytree(checkpoint("open_clip"), folder)
        tokenizer_of_letters().save_pretrained(folder)
        config = json.loads((folder / "open_clip_config.json").read_text())
        config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "owner/on-the-hub"
        (folder / "open_clip_config.json").write_text(json.dumps(config))
        if kind == "saved":
            settings = {"name": "open-clip", "weights": {"model": str(folder)}}
            save_segmenter(
                build_segmenter(ModelSettings(encoder=settings, **TINY_DECODER), seed=0), folder.parent / "model"
            )
            return folder.parent / "model"
        return folder

    return make


@pytest.fixture
def made(sound, tmp_path, marker):
    """Return a function from a kind to a copy of a valid folder with planted code."""
    return lambda kind: planted(shutil.copytree(sound(kind), tmp_path / kind), marker)


def tokenizer_of_letters():
    from transformers import CLIPTokenizerFast

    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizerFast(vocab={word: id_ for id_, word in enumerate(words)}, merges=[])


CONFIGURATIONS = {
    "language": ("config.json", "tokenizer_config.json", "generation_config.json"),
    "grounding_dino": ("config.json", "tokenizer_config.json", "processor_config.json"),
    "owlv2": ("config.json", "tokenizer_config.json", "preprocessor_config.json"),
    "sam": ("config.json", "processor_config.json", "preprocessor_config.json"),
    "sd15": ("unet/config.json", "text_encoder/config.json", "tokenizer/tokenizer_config.json", "vae/config.json"),
    "clip": ("tokenizer_config.json", "config.json"),
    "judge": ("tokenizer_config.json",),
    "saved": ("tokenizer/tokenizer_config.json", "tokenizer/config.json"),
}
FILES = [(kind, file) for kind, files in CONFIGURATIONS.items() for file in files]


@pytest.mark.parametrize(("kind", "file"), FILES)
def test_an_auto_map_runs_no_code(made, kind, file):
    folder = made(kind)
    changed(folder / file, auto_map=CODE)
    with contextlib.suppress(MagicsegError):  # the library may load its own class without that code
        LOADERS[kind](folder)


SWITCHES = [
    {"trust_remote_code": True},
    {"text_config": {"trust_remote_code": True}},
    {"attn_implementation": "stranger/kernel"},
    {"_attn_implementation": "stranger/kernel:forward"},
    {"vision_config": {"_attn_implementation": "kernels-community/flash-attn"}},
    {"attn_implementation": {"": "sdpa", "text_config": "stranger/kernel"}},
    {"_attn_implementation_internal": "flash_attention_2"},
    {"experts_implementation": "stranger/kernel"},
    {"custom_generate": "."},
    {"custom_pipeline": "pipeline"},
    {"kernel_config": {"RMSNorm": "stranger/kernel:Norm"}},
    {"use_kernels": True},
    {"num_hidden_layers": 10**7},
    {"text_config": {"num_hidden_layers": 1e12}},
    {"layers_per_block": 10**7},
    {"depths": [2, 2, 10**7]},
    {"num_experts": 10**9},
    {"hidden_size": 10**9},
    {"num_layers": 10**400},
    {"text_config": {"hidden_size": 1e300}},
    {"d_model": 10**6},
    {"vocab_size": 10**12},
    {"max_position_embeddings": 10**10},
    {"intermediate_size": 10**11},
]


@pytest.mark.parametrize("entries", SWITCHES, ids=lambda entries: next(iter(entries)))
@pytest.mark.parametrize("kind", LOADERS)
def test_configuration_keys_that_enable_code_or_endless_layers_are_refused_by_name(made, kind, entries):
    folder = made(kind)
    file = folder / CONFIGURATIONS[kind][0]
    changed(file, **entries)
    with pytest.raises(BackendError) as refused:
        LOADERS[kind](folder)
    assert str(file) in refused.value.message
    assert refused.value.hint


@pytest.mark.parametrize("kind", ["language", "grounding_dino", "sam", "sd15"])
@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "a\\b.safetensors", "..", "", 7, None])
def test_an_index_of_shards_that_names_files_elsewhere_is_refused(made, kind, name):
    folder = made(kind)
    weights_folder = folder / "unet" if kind == "sd15" else folder
    file = weights_folder / ("diffusion_pytorch_model" if kind == "sd15" else "model")
    index = file.with_name(f"{file.name}.safetensors.index.json")
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"weight": name}}))
    with pytest.raises(BackendError, match="weight_map"):
        LOADERS[kind](folder)


def test_an_adapter_which_names_other_weights_is_refused(made):
    folder = made("language")
    changed(folder / "adapter_config.json", base_model_name_or_path="stranger/model")
    with pytest.raises(BackendError, match="an adapter"):
        captioner(folder)


@pytest.mark.parametrize(
    ("kind", "file"),
    [
        ("language", "model.safetensors"),
        ("grounding_dino", "model.safetensors"),
        ("sam", "model.safetensors"),
        ("sd15", "unet/diffusion_pytorch_model.safetensors"),
        ("sd15", "text_encoder/model.safetensors"),
        ("clip", "open_clip_model.safetensors"),
        ("saved", "model.safetensors"),
    ],
)
@pytest.mark.parametrize("form", ["pickle", "archive", "bin", "truncated", "empty", "folder"])
def test_a_pickle_under_the_name_of_weights_is_not_unpickled(made, marker, kind, file, form):
    folder = made(kind)
    path = folder / file
    content = path.read_bytes()
    path.unlink()
    match form:
        case "pickle":
            path.write_bytes(pickle.dumps(Payload(marker)))
        case "archive":
            torch.save({"weight": Payload(marker)}, path)
        case "bin":
            torch.save({"weight": Payload(marker)}, path.with_name(f"pytorch_{path.stem}.bin"))
            torch.save({"weight": Payload(marker)}, path.with_suffix(".bin"))
        case "truncated":
            path.write_bytes(content[: len(content) // 2])
        case "empty":
            path.write_bytes(b"")
        case "folder":
            path.mkdir()
    with pytest.raises((BackendError, DataError)):
        LOADERS[kind](folder)


def deep(file):
    file.write_text("[" * 200_000)


def pipe(file):
    file.unlink()
    os.mkfifo(file)


def device(file):
    file.unlink()
    file.symlink_to("/dev/zero")


def folder_instead(file):
    file.unlink()
    file.mkdir()


def unreadable(file):
    file.write_bytes(b"\xff\xfe\x00")


def a_list(file):
    file.write_text("[1, 2]")


def other_types(file):
    file.write_text(json.dumps({key: [[0]] for key in json.loads(file.read_text())}))


@pytest.mark.parametrize("damage", [deep, pipe, device, folder_instead, unreadable, a_list, other_types])
@pytest.mark.parametrize(
    ("kind", "file"),
    [
        ("language", "config.json"),
        ("owlv2", "config.json"),
        ("sd15", "model_index.json"),
        ("clip", "open_clip_config.json"),
        ("saved", "model.json"),
    ],
)
def test_a_damaged_configuration_is_an_error_with_a_name(made, kind, file, damage):
    folder = made(kind)
    damage(folder / file)
    with pytest.raises((BackendError, ConfigError, DataError)) as refused:
        LOADERS[kind](folder)
    assert str(folder) in refused.value.message


PARTS = [
    {"unet": ["evil", "Evil"]},
    {"unet": ["os", "system"]},
    {"unet": ["subprocess", "Popen"]},
    {"unet": ["diffusers.pipelines", "Evil"]},
    {"unet": ["magicseg", "Evil"]},
    {"unet": ["unet", "Evil"]},
    {"tokenizer": ["transformers", "AutoTokenizer"]},
    {"text_encoder": ["transformers", "AutoModel"]},
    {"text_encoder": ["transformers", "pipeline"]},
    {"unet": ["diffusers", "DiffusionPipeline"]},
    {"unet": ["diffusers", "StableDiffusionPipeline"]},
    {"unet": ["diffusers", "__init__"]},
    {"unet": ["diffusers"]},
    {"unet": [None, "Evil"]},
    {"unet": ["diffusers", None]},
    {"unet": []},
    {"../outside": ["diffusers", "UNet2DConditionModel"]},
    {"/etc": ["diffusers", "UNet2DConditionModel"]},
    {"_class_name": ["pipeline", "Evil"]},
    {"_class_name": "Evil"},
    {"_class_name": "DiffusionPipeline"},
    {"_class_name": None},
]


@pytest.mark.parametrize("entries", PARTS, ids=str)
def test_parts_of_a_pipeline_are_known_classes_of_known_libraries(made, entries):
    folder = made("sd15")
    changed(folder / "model_index.json", **entries)
    with pytest.raises(BackendError):
        read_index(folder)
    with pytest.raises(BackendError):
        pipeline(folder)


CLIP_CONFIGURATIONS = [
    ("text_cfg", {"tokenizer_kwargs": {"trust_remote_code": True}}),
    ("text_cfg", {"tokenizer_kwargs": {"trust_remote_code": 1}}),
    ("text_cfg", {"tokenizer_kwargs": {"tokenizer_type": "bert"}}),
    ("text_cfg", {"tokenizer_kwargs": {"bpe_path": "/etc/passwd"}}),
    ("text_cfg", {"tokenizer_kwargs": {"cache_dir": "/tmp/x"}}),
    ("text_cfg", {"tokenizer_kwargs": {"revision": "main", "code_revision": "main"}}),
    ("text_cfg", {"tokenizer_kwargs": "trust_remote_code"}),
    ("text_cfg", {"hf_model_name": "stranger/tower"}),
    ("text_cfg", {"hf_model_name": {"a": 1}}),
    ("text_cfg", {"hf_tokenizer_name": ["stranger"]}),
    ("text_cfg", {"context_length": 10**9}),
    ("text_cfg", {"vocab_size": 10**12}),
    ("text_cfg", {"layers": 10**7}),
    ("text_cfg", {"layers": "many"}),
    ("text_cfg", {"width": 0}),
    ("text_cfg", {"heads": 0}),
    ("vision_cfg", {"timm_model_name": "hf-hub:stranger/tower"}),
    ("vision_cfg", {"timm_model_name": "vit", "timm_model_pretrained": True}),
    ("vision_cfg", {"layers": 10**7}),
    ("vision_cfg", {"layers": 900}),
    ("vision_cfg", {"width": 10**9}),
    ("vision_cfg", {"width": 65536}),
    ("vision_cfg", {"image_size": 10**9}),
    ("vision_cfg", {"image_size": 1 << 20, "pos_embed_type": "sin_cos_2d"}),
    ("vision_cfg", {"patch_size": 0}),
    ("vision_cfg", {"head_width": 10**6}),
    ("vision_cfg", {"mlp_ratio": 1e300}),
    ("vision_cfg", {"act_kwargs": {"inplace": "x" * 1000}}),
    ("vision_cfg", {"norm_kwargs": {"device": {"a": 1}}}),
    ("vision_cfg", {"__class__": "Evil"}),
]


@pytest.mark.parametrize(("part", "entries"), CLIP_CONFIGURATIONS, ids=str)
def test_an_open_clip_configuration_is_restricted_to_known_keys_and_its_weights_sizes(made, part, entries):
    folder = made("clip")
    file = folder / "open_clip_config.json"
    stored = json.loads(file.read_text())
    stored["model_cfg"][part] |= entries
    file.write_text(json.dumps(stored))
    changed(folder / "tokenizer_config.json", auto_map=CODE, tokenizer_class="Evil")
    with pytest.raises((ConfigError, BackendError)):
        encoder(folder)


@pytest.mark.parametrize(("part", "entries"), CLIP_CONFIGURATIONS, ids=str)
def test_the_configuration_inside_a_saved_model_is_restricted_to_known_keys_and_its_weights_sizes(
    made, part, entries
):
    folder = made("saved")
    card = json.loads((folder / "model.json").read_text())
    card["encoder"]["config"][part] |= entries
    (folder / "model.json").write_text(json.dumps(card))
    changed(folder / "tokenizer" / "tokenizer_config.json", auto_map=CODE, tokenizer_class="Evil")
    with pytest.raises((ConfigError, DataError, BackendError)):
        load_model(folder)


@pytest.mark.parametrize(
    "entries",
    [
        {"weights": "../model/model.safetensors"},
        {"weights": "/etc/passwd"},
        {"weights": "."},
        {"weights": "model.safetensors\0"},
        {"weights": ["model.safetensors"]},
        {"tokenizer": "../elsewhere"},
        {"tokenizer": "/etc"},
        {"tokenizer": "stranger/tokenizer"},
        {"tokenizer": 1},
        {"weights_digest": "\x1b[2J"},
        {"weights_digest": None},
        {"format": 2.0},
        {"format": True},
        {"format": [2]},
        {"provenance": "all"},
        {"encoder": []},
        {"encoder": {}},
        {"encoder": {"config": {}, "mean": [0, 0, 0], "std": [1, 1, 1]}},
        {"encoder": {"config": None, "mean": "abc", "std": "abc"}},
        {"settings": {}},
        {"settings": None},
    ],
    ids=str,
)
def test_a_model_card_with_foreign_paths_or_wrong_types_is_refused(made, entries):
    folder = made("saved")
    shutil.copytree(folder / "tokenizer", folder.parent / "elsewhere")
    changed(folder / "model.json", **entries)
    with pytest.raises((DataError, ConfigError, BackendError)):
        load_model(folder)


@pytest.mark.parametrize(
    "entries",
    [
        {"decoder_layers": 10**7},
        {"decoder_layers": 40},
        {"decoder_width": 8 * 10**6},
        {"prompt_tokens": 10**9},
        {"encoder": {"name": "miniature", "layers": 10**7}},
        {"encoder": {"name": "miniature", "width": 8 * 10**8, "heads": 8}},
        {"encoder": {"name": "miniature", "embed_dim": 10**9}},
        {"encoder": {"name": "miniature", "image_size": 8 * 10**6}},
    ],
    ids=str,
)
def test_settings_of_a_saved_model_cannot_declare_sizes_beyond_its_file(tmp_path, entries):
    encoder = {"name": "miniature", "width": 16, "heads": 2, "layers": 1, "image_size": 32}
    save_segmenter(build_segmenter(ModelSettings(encoder=encoder, **TINY_DECODER), seed=0), tmp_path / "model")
    card = json.loads((tmp_path / "model" / "model.json").read_text())
    card["settings"] |= entries | ({"encoder": encoder | entries["encoder"]} if "encoder" in entries else {})
    (tmp_path / "model" / "model.json").write_text(json.dumps(card))
    with pytest.raises(DataError, match=r"layers|tensors|invalid|cannot be loaded"):
        load_model(tmp_path / "model")


@pytest.mark.parametrize("kind", ["original_sam", "original_grounding_dino"])
@pytest.mark.parametrize("form", ["pickle", "archive", "beside"])
def test_a_released_checkpoint_with_other_objects_than_tensors_is_refused(checkpoint, tmp_path, marker, kind, form):
    folder = planted(shutil.copytree(checkpoint(kind), tmp_path / "original"), marker)
    (path,) = folder.glob("*.pth")
    if form == "pickle":
        path.write_bytes(pickle.dumps(Payload(marker)))
    elif form == "archive":
        torch.save({"model": Payload(marker)}, path)
    else:
        torch.save({"model": torch.load(path, weights_only=True), "more": Payload(marker)}, path)
    with pytest.raises(BackendError, match=r"cannot be read|holds"):
        original(kind, folder)


def original(kind, folder):
    """Return the back end for a checkpoint of the original release."""
    if kind == "original_sam":
        return OriginalSegmenter(HasBatch(1), OriginalSegmenter.Options(model=str(folder), device="cpu"))
    options = {"config": str(folder / "tiny.py"), "text_encoder": {"model": str(folder / "bert")}, "device": "cpu"}
    return OriginalDetector(HasBatch(1), OriginalDetector.Options(model=str(folder), **options))


@pytest.mark.parametrize("entries", SWITCHES, ids=lambda entries: next(iter(entries)))
def test_the_text_encoder_of_a_released_detector_runs_no_code(checkpoint, tmp_path, marker, entries):
    folder = planted(shutil.copytree(checkpoint("original_grounding_dino"), tmp_path / "original"), marker)
    changed(folder / "bert" / "config.json", **entries)
    changed(folder / "bert" / "tokenizer_config.json", auto_map=CODE, tokenizer_class="Evil")
    with pytest.raises(BackendError):
        original("original_grounding_dino", folder)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('touch {marker}')",
        "enc_layers = __import__('os').system('touch {marker}')",
        "x = [" * 900,
    ],
)
def test_a_detector_s_configuration_is_not_run(checkpoint, tmp_path, marker, text):
    folder = shutil.copytree(checkpoint("original_grounding_dino"), tmp_path / "original")
    (folder / "evil_cfg.py").write_text(text.replace("{marker}", str(marker)))
    options = {"config": str(folder / "evil_cfg.py"), "text_encoder": {"model": str(folder / "bert")}}
    chosen = OriginalDetector.Options(model=str(folder), device="cpu", file="none.pth", **options)
    with pytest.raises(BackendError):
        OriginalDetector(HasBatch(1), chosen)


def test_a_gguf_file_runs_no_code_and_its_layers_are_limited(made, marker):
    gguf = pytest.importorskip("gguf")
    folder = made("language")
    writer = gguf.GGUFWriter(folder / "model.gguf", "llama")
    writer.add_block_count(10**7)
    writer.add_embedding_length(16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    changed(folder / "config.json", auto_map=CODE)
    with pytest.raises(BackendError):
        captioner(folder, gguf_file="model.gguf")
    (folder / "model.gguf").write_bytes(pickle.dumps(Payload(marker)))
    with pytest.raises(BackendError):
        captioner(folder, gguf_file="model.gguf")


@pytest.mark.parametrize("name", ["/etc/x.gguf", "../x.gguf", "a/../../x.gguf", "model.pt"])
def test_a_gguf_file_outside_its_folder_is_refused(name):
    with pytest.raises(ValueError, match=r"\.gguf file inside"):
        TransformersCaptioner.Options(model="/folder", gguf_file=name)


def test_a_text_cache_with_a_pickle_is_recomputed(tmp_path, marker):
    key = {"format": 1}
    cached_texts(key, lambda: torch.ones(1, 2), folder=tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    for content in (pickle.dumps(Payload(marker)), b"", b"\xff" * 64, (1 << 40).to_bytes(8, "little") + b"{}"):
        file.write_bytes(content)
        assert cached_texts(key, lambda: torch.ones(1, 2), folder=tmp_path).tolist() == [[1, 1]]


def test_a_training_checkpoint_with_a_pickle_is_not_unpickled(tmp_path, marker):
    file = tmp_path / "step-00000002.safetensors"
    file.write_bytes(pickle.dumps(Payload(marker)))
    torch.save({"weight": Payload(marker)}, tmp_path / "step-00000004.safetensors")
    with contextlib.suppress(MagicsegError):
        assert newest_checkpoint(tmp_path) is None


def test_a_valid_folder_with_planted_files_loads_without_running_them(made):
    for kind in ("language", "sam", "clip", "saved", "sd15"):
        LOADERS[kind](made(kind))


@pytest.mark.slow
def test_predict_never_runs_code_of_a_saved_model_even_if_the_user_consents(made, marker, tmp_path):
    folder = made("saved")
    card = json.loads((folder / "model.json").read_text())
    card["encoder"]["config"]["text_cfg"]["tokenizer_kwargs"] = {"trust_remote_code": True}
    (folder / "model.json").write_text(json.dumps(card))
    changed(folder / "tokenizer" / "tokenizer_config.json", auto_map=CODE, tokenizer_class="Evil")
    from PIL import Image

    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    command = ["predict", "a.png", "--model", str(folder), "--labels", "cat", "--out", "out"]
    done = subprocess.run(
        [sys.executable, "-m", "magicseg", *command],
        input="y\n" * 9,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "tokenizer_kwargs.trust_remote_code" in done.stderr
    assert "[y/N]" not in done.stdout + done.stderr


def test_every_loading_call_passes_trust_remote_code_false():
    package = Path(magicseg.__file__).parent
    calls = 0
    for file in package.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute | ast.Name):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
            where = f"{file.relative_to(package)}:{node.lineno}"
            given = {keyword.arg: keyword.value for keyword in node.keywords}
            if (name == "from_pretrained" and isinstance(node.func, ast.Attribute)) or name == "HFTokenizer":
                calls += 1
                for key, value in (("trust_remote_code", False), ("local_files_only", True)):
                    assert isinstance(given.get(key), ast.Constant), f"{where} does not say {key}"
                    assert given[key].value is value, f"{where} says another {key}"
            if name == "load" and isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) == "torch":
                calls += 1
                assert ast.unparse(given["weights_only"]) == "True", where
            assert name not in {"create_model", "create_model_and_transforms", "get_tokenizer", "loads"} or (
                name == "loads" and ast.unparse(node.func) == "json.loads"
            ), f"{where}: {ast.unparse(node.func)}"
    assert calls >= 5
