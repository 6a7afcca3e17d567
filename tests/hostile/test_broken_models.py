"""Broken models and checkpoints: they are refused by name, or the stage stops. No meaningless output is written."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from helpers import tiny_clip
from helpers.coloured_squares import SETTINGS as TRAIN
from helpers.coloured_squares import VOCABULARY, Squares
from helpers.tiny_models import tiny_settings
from helpers.tiny_runs import LIMITED, do, make_run
from magicseg import load_model
from magicseg.cli.output import print_json
from magicseg.config.model import ModelSettings, OpenClipSettings
from magicseg.core.documents import without_nan
from magicseg.core.errors import BackendError, DataError, LimitReached, StoreError
from magicseg.evaluate.heads.memory_bank import MemoryBank, MemoryBankHead
from magicseg.evaluate.heads.segmenter_head import SegmenterHead
from magicseg.labels import Label, Vocabulary
from magicseg.labels.distinct import known_tokens, refuse_alike, refuse_unknown
from magicseg.model.open_clip_encoder import open_clip_encoder
from magicseg.model.saved_model import save_segmenter
from magicseg.model.segmenter import Segmenter, build_segmenter
from magicseg.run.progress import run_status
from magicseg.train.loop import train
from magicseg.vision.batches import HasBatch
from magicseg.vision.shipped_models import ClipDetector
from magicseg.vision.transformers_detector import refuse_alike_names

SETTINGS = tiny_settings(image_size=16, stride=4, embed_dim=8, decoder_width=8)
IMAGE = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
# Texts that differ only after the 77 tokens of a text encoder.
LONG = " ".join(f"word{number}" for number in range(60))


# ------------------------------------------------------------------------------------------- non-finite numbers


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["encoder.class_token", "decoder", "prompts"])
def test_non_finite_weights_are_refused_when_a_model_is_loaded(tmp_path, value, name):
    model = build_segmenter(SETTINGS, seed=0)
    key = next(key for key in model.state_dict() if key.startswith(name))
    with torch.no_grad():
        model.state_dict()[key].view(-1)[0] = value
    save_segmenter(model, tmp_path / "model")
    with pytest.raises(DataError, match="not finite") as caught:
        load_model(tmp_path / "model")
    assert key in caught.value.message


@pytest.mark.slow
def test_predict_with_non_finite_weights_ends_with_an_error(magicseg, tmp_path):
    model = build_segmenter(SETTINGS, seed=0)
    with torch.no_grad():
        next(model.decoder.parameters()).fill_(math.nan)
    save_segmenter(model, tmp_path / "model")
    from PIL import Image

    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    words = ("--model", tmp_path / "model", "--labels", "cat, dog", "--out", tmp_path / "out")
    result = magicseg("predict", tmp_path / "a.png", *words)
    assert result.code == 2
    assert "values that are not finite numbers" in result.err
    assert "NaN" not in result.out


def test_overflowing_scores_are_refused_even_if_all_weights_are_finite(tmp_path):
    model = build_segmenter(SETTINGS, seed=0)
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.mul_(1e30)
    save_segmenter(model, tmp_path / "model")
    with pytest.raises(DataError, match="scores of an image are not finite"):
        load_model(tmp_path / "model").segment(IMAGE, ["cat", "dog"])


@pytest.mark.parametrize("value", [math.nan, math.inf, [math.nan], {"a": {"b": -math.inf}}, ({"x": math.nan},)])
def test_json_output_never_contains_nan_or_infinity(value, capsys):
    print_json({"found": value, "kept": 1.5})
    told = json.loads(capsys.readouterr().out, parse_constant=lambda word: pytest.fail(word))
    assert told["kept"] == 1.5
    assert "null" in json.dumps(without_nan(value))


# ------------------------------------------------------------------------------------- labels that are the same


@pytest.mark.parametrize(
    "pair",
    [("car house", "house car"), ("Car", "car"), ("tea  cup", "tea cup"), ("CUP tea", "tea cup")],
)
def test_labels_with_the_same_tokens_in_the_miniatures_encoder_are_refused_everywhere(pair, tmp_path):
    model = build_segmenter(SETTINGS, seed=0)
    save_segmenter(model, tmp_path / "model")
    both = [pair[0], "dog", pair[1]]
    with pytest.raises(BackendError) as caught:
        load_model(tmp_path / "model").segment(IMAGE, both)
    assert repr(pair[0]) in caught.value.message
    assert repr(pair[1]) in caught.value.message
    with pytest.raises(BackendError, match="cannot tell"):
        SegmenterHead(model, "digest").prepare([[name] for name in both])
    load_model(tmp_path / "model").segment(IMAGE, ["dog", pair[0]])


def test_training_refuses_labels_that_its_encoder_cannot_tell_apart(tmp_path):
    names = ("red sky", "sky red", "blue")
    vocabulary = Vocabulary(name="v", labels=tuple(Label(id=i, name=name) for i, name in enumerate(names, 1)))
    with pytest.raises(BackendError, match="'sky red' from 'red sky'"):
        train(Squares(np.arange(8)), vocabulary, TRAIN, tmp_path, seed=0, data_fingerprint="data")
    assert not (tmp_path / "model").exists()


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("clip")
    tiny_clip.build("open_clip", made)
    return made / "open_clip"


@pytest.fixture(scope="module")
def clip_segmenter(clip_folder):
    encoder = OpenClipSettings(name="open-clip", weights={"model": str(clip_folder)})
    settings = ModelSettings(encoder=encoder, decoder_layers=1, decoder_width=8, decoder_heads=2)
    return Segmenter(settings, encoder=open_clip_encoder(encoder))


@pytest.mark.parametrize("pair", [(f"{LONG} cat", f"{LONG} dog"), ("Cat", "cat"), ("fire  truck", "fire truck")])
def test_labels_that_clip_truncates_or_normalises_to_the_same_tokens_are_refused(clip_segmenter, pair):
    with pytest.raises(BackendError, match="text encoder cannot tell label"):
        clip_segmenter.check_classes(["dog", *pair])
    clip_segmenter.check_classes(["dog", pair[0]])


def test_synonyms_may_be_shared_as_long_as_not_all_of_them_are(clip_segmenter):
    clip_segmenter.check_classes([["sofa", "couch"], ["couch", "settee"]])
    with pytest.raises(BackendError, match="cannot tell"):
        clip_segmenter.check_classes([["sofa", "couch"], ["couch", "sofa"]])


def test_the_clip_judge_refuses_labels_and_rivals_with_the_same_tokens(clip_folder):
    options = ClipDetector.Options(model=str(clip_folder), device="cpu", against=[f"{LONG} dog", "dog"])
    judge = ClipDetector(HasBatch(1), options)
    judge.check_labels([Label(id=1, name="cat"), Label(id=2, name="dog")])
    with pytest.raises(BackendError, match="detector clip cannot tell"):
        judge.check_labels([Label(id=1, name=f"{LONG} cat")])


def test_the_memory_bank_refuses_two_classes_with_the_same_key():
    vocabulary = Vocabulary(name="v", labels=(Label(id=1, name="sofa", synonyms=("couch",)),))
    bank = MemoryBank(vocabulary=vocabulary, prototypes=torch.eye(2), classes=torch.tensor([0, 1]), samples=1)
    head = MemoryBankHead(bank, lambda pixels: pixels, stride=4, identity={})
    head.prepare([["sofa"], ["dog"]])
    with pytest.raises(BackendError, match="memory bank cannot tell label 'couch' from 'sofa'"):
        head.prepare([["sofa"], ["couch"]])


class Words:
    """A tokenizer with a few words, like a detector's."""

    unk_token_id, eos_token_id, all_special_ids = 1, 2, (1, 2)
    known = ("cat", "dog", "house")

    def __call__(self, text):
        words = [3 + self.known.index(word) if word in self.known else 1 for word in text.split()]
        return {"input_ids": [*words[:4], 2]}


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["кошка"], "knows no word of label 'кошка'"),
        (["cat", "большая кошка"], "knows no word"),
        (["cat кошка", "cat собака"], "cannot tell label 'cat собака' from 'cat кошка'"),
        (["cat мяу мяу", "cat мяу"], "cannot tell"),
        (["cat dog cat dog cat", "cat dog cat dog dog"], "cannot tell"),
    ],
)
def test_labels_that_a_detector_does_not_know_or_cannot_tell_apart_are_refused(names, told):
    with pytest.raises(BackendError, match=told):
        refuse_alike_names(names, Words())


def test_labels_that_differ_in_one_known_word_are_accepted():
    refuse_alike_names(["cat", "dog", "cat house", "cat кошка"], Words())
    refuse_alike(["a", "b"], [(1,), (2,)], "it")
    refuse_unknown(["a"], [(4,)], None, "it")
    assert known_tokens([9, 1, 1, 4, 1, 9], unknown=1, special=(9,)) == (1, 4, 1)


# --------------------------------------------------------------------------------------- back ends without answers


@pytest.mark.usefixtures("faulty")
@pytest.mark.parametrize("fault", ["empty", "nothing", "quality", "surrogate", "raise", "reject", "template"])
def test_a_captioner_without_usable_answers_stops_its_stage(tmp_path, fault):
    run = make_run(tmp_path / "run", *LIMITED, "describe.backend=faulty", f"describe.options.fault={fault}")
    with pytest.raises(LimitReached, match="32 of 32 samples"):
        do(run, "describe")
    assert len(run.ledger("describe").commits()) <= 1


@pytest.mark.usefixtures("faulty")
@pytest.mark.parametrize("fault", ["shape", "dtype", "raise"])
def test_a_generator_without_usable_images_stops_its_stage(tmp_path, fault):
    run = make_run(tmp_path / "run", *LIMITED, "generate.backend=faulty", f"generate.options.fault={fault}")
    do(run, "describe")
    with pytest.raises(LimitReached, match="generate stopped: 32 of 32 samples"):
        do(run, "generate")
    assert run_status(run)["stages"]["generate"]["shards"]["committed"] == 0


# ------------------------------------------------------------------------------------------------------ checkpoints


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return a training of 8 steps with a checkpoint of step 4."""
    out = tmp_path_factory.mktemp("trained")
    settings = TRAIN.model_copy(update={"checkpoint_every": 4, "ema_decay": 0.9})
    train(Squares(np.arange(12)), VOCABULARY, settings, out, seed=0, data_fingerprint="data")
    return out, settings


def without(tensors, *words):
    return {name: value for name, value in tensors.items() if not any(word in name for word in words)}


def changed(tensors, word, change):
    return {name: change(value) if word in name else value for name, value in tensors.items()}


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        (lambda tensors: without(tensors, "optimizer/"), "moments"),
        (lambda tensors: without(tensors, "/exp_avg_sq"), "moments"),
        (lambda tensors: without(tensors, "/step"), "moments"),
        (lambda tensors: without(tensors, "optimizer/encoder.class_token/"), "moments"),
        (lambda tensors: changed(tensors, "/exp_avg", lambda value: value.reshape(-1)[:1]), "does not fit"),
        (lambda tensors: without(tensors, "ema/"), "averages"),
        (lambda tensors: changed(tensors, "ema/", lambda value: value.reshape(-1)[:1]), "does not fit"),
        (lambda tensors: without(tensors, "model/decoder"), "does not fit the model"),
        (lambda tensors: changed(tensors, "model/", lambda value: value * math.nan), "not finite"),
        (lambda tensors: changed(tensors, "/exp_avg", lambda value: value * math.nan), "not finite"),
        (lambda tensors: changed(tensors, "model/encoder.class_token", lambda value: value[:1]), "does not fit"),
    ],
)
def test_an_incomplete_or_non_finite_checkpoint_is_refused(trained, tmp_path, broken, told):
    out, settings = trained
    path = out / "checkpoints" / "step-00000004.safetensors"
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    (tmp_path / "checkpoints").mkdir()
    tensors = {name: value.contiguous() for name, value in broken(load_file(path)).items()}
    save_file(tensors, tmp_path / "checkpoints" / path.name, metadata=metadata)
    with pytest.raises(StoreError, match=told) as caught:
        train(Squares(np.arange(12)), VOCABULARY, settings, tmp_path, seed=0, data_fingerprint="data")
    assert "magicseg reset train" in caught.value.hint


def test_training_resumes_from_a_complete_checkpoint(trained, tmp_path):
    out, settings = trained
    path = out / "checkpoints" / "step-00000004.safetensors"
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / path.name).write_bytes(path.read_bytes())
    done = train(Squares(np.arange(12)), VOCABULARY, settings, tmp_path, seed=0, data_fingerprint="data")
    assert done.weights_digest == json.loads((out / "model" / "model.json").read_text())["weights_digest"]


@pytest.fixture
def saved_model(tmp_path):
    save_segmenter(build_segmenter(SETTINGS, seed=0), tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(
    "make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")], ids=["pipe", "folder", "device"]
)
@pytest.mark.usefixtures("bounded")
def test_weights_that_are_not_a_regular_file_are_refused_by_name(saved_model, make):
    path = saved_model / "model.safetensors"
    path.unlink()
    make(path)
    with pytest.raises(DataError, match=r"model\.safetensors: is not a regular file"):
        load_model(saved_model)


@pytest.mark.usefixtures("bounded")
def test_an_unreadable_record_of_predictions_never_causes_a_traceback(saved_model, typed, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    words = ("predict", "a.png", "--model", saved_model, "--labels", "cat,dog", "--out", "out")
    assert typed(*words).code == 0
    record = tmp_path / "out" / "predictions.jsonl"
    with record.open("a") as file:
        file.write("[" * 200_000 + "\n\x00\n[1]\n")
    assert typed(*words).code == 0
    record.unlink()
    os.mkfifo(record)
    done = typed(*words)
    assert done.code == 2
    assert "predictions.jsonl: is not a regular file" in done.err
