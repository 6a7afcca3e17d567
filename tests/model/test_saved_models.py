"""Saved models: what a folder holds, that it needs nothing else, and that older ones stay readable."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from helpers.tiny_models import TINY_DECODER
from magicseg.config.model import EncoderSettings, ModelSettings
from magicseg.core.errors import BackendError, DataError
from magicseg.model.saved_model import load_segmenter, save_segmenter, weights_digest
from magicseg.model.segmenter import build_segmenter, frozen_names, load_trained_state, trained_state, untrained_like

FORMAT_1 = Path(__file__).parent / "format1"
SMALL = TINY_DECODER | {"decoder_layers": 2}


def pictures():
    return torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def clip_model(folder, seed=0, **options):
    encoder = {"name": "open-clip", "weights": {"model": str(folder)}, **options}
    return build_segmenter(ModelSettings(encoder=encoder, **SMALL), seed=seed).eval()


@pytest.fixture(autouse=True)
def _apart(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_a_model_of_format_1_gives_what_it_gave_when_it_was_saved():
    model = load_segmenter(FORMAT_1)
    assert json.loads((FORMAT_1 / "model.json").read_text())["format"] == 1
    images = torch.arange(8 * 8 * 3, dtype=torch.uint8).view(1, 3, 8, 8)
    with torch.no_grad():
        logits = model(images, model.encode_classes(["car", "house"])).logits
    corners = torch.tensor(  # printed by the version that saved it
        [
            [[-0.8363621234893799, -0.8621392250061035], [-0.7719099521636963, -1.008685827255249]],
            [[-1.2817976474761963, -1.248512864112854], [-1.1759306192398071, -1.4975193738937378]],
        ]
    )
    torch.testing.assert_close(logits[0, :, ::7, ::7], corners)


@pytest.mark.parametrize("name", ["open_clip", "open_clip_custom_text", "open_clip_late_norm"])
def test_a_saved_clip_needs_nothing_but_its_folder(checkpoint, tmp_path, name):
    base = shutil.copytree(checkpoint(name), tmp_path / "base")
    model = clip_model(base, image_size=48)
    digest = save_segmenter(model, tmp_path / "model")
    names = ["cat", "fire hydrant"]
    expected = model(pictures(), model.encode_classes(names)).logits
    shutil.rmtree(base)
    moved = (tmp_path / "model").rename(tmp_path / "elsewhere")
    again = load_segmenter(moved)
    assert torch.equal(again(pictures(), again.encode_classes(names)).logits, expected)
    assert weights_digest(again) == digest
    assert frozen_names(again) == frozen_names(model)
    resaved = tmp_path / "resaved"
    save_segmenter(again, resaved)
    assert (resaved / "model.safetensors").read_bytes() == (moved / "model.safetensors").read_bytes()


def test_a_tokenizer_that_the_encoder_needs_is_saved_with_it(checkpoint, tmp_path):
    from transformers import CLIPTokenizerFast

    base = shutil.copytree(checkpoint("open_clip"), tmp_path / "base")
    small_clip_tokenizer().save_pretrained(base)
    config = json.loads((base / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "owner/on-the-hub"
    (base / "open_clip_config.json").write_text(json.dumps(config))
    model = clip_model(base)
    expected = model.encode_classes(["cat"])
    save_segmenter(model, tmp_path / "model")
    shutil.rmtree(base)
    assert isinstance(CLIPTokenizerFast.from_pretrained(tmp_path / "model" / "tokenizer"), CLIPTokenizerFast)
    assert torch.equal(load_segmenter(tmp_path / "model").encode_classes(["cat"]), expected)


def small_clip_tokenizer():
    """A tokenizer of transformers whose vocabulary is a few letters."""
    from transformers import CLIPTokenizerFast

    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizerFast(vocab={word: place for place, word in enumerate(words)}, merges=[])


def test_the_card_says_what_is_known_and_what_is_not(checkpoint, tmp_path):
    model = clip_model(checkpoint("open_clip"), freeze="text")
    training = {"classes": ["cat", "dog"], "data": "abc123", "seed": 7, "train": {"steps": 20, "learning_rate": 1e-4}}
    save_segmenter(
        model, tmp_path, provenance={"samples": 64, "training": training}, figures={"voc21 mIoU": 12.34567}
    )
    text = (tmp_path / "README.md").read_text()
    for expected in (
        "2 classes: cat, dog",
        "samples: 64",
        "`abc123`",
        "steps: 20",
        "voc21 mIoU: 12.35",
        "except the text tower",
        "magicseg does not know it",
        weights_digest(model),
    ):
        assert expected in text
    shipped = tmp_path / "shipped"
    save_segmenter(clip_model("shipped:clip"), shipped)
    text = (shipped / "README.md").read_text()
    assert "`shipped:clip` come with magicseg and are under its licence, Apache-2.0" in text
    assert "magicseg does not know it" not in text
    bare = tmp_path / "bare"
    save_segmenter(build_segmenter(ModelSettings(encoder=EncoderSettings(width=16, heads=2)), seed=0), bare)
    text = (bare / "README.md").read_text()
    assert "None were given" in text
    assert "No pretrained weights" in text


@pytest.mark.parametrize("freeze", [True, "text", False])
def test_loading_the_trained_state_restores_a_model(checkpoint, freeze):
    folder = checkpoint("open_clip")
    model, fresh = clip_model(folder, freeze=freeze), clip_model(folder, seed=1, freeze=freeze)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1
    state = trained_state(model)
    prefixes = {
        True: ("prompts.", "decoder."),
        "text": ("prompts.", "decoder.", "encoder.clip.visual."),
        False: ("",),
    }
    assert all(name.startswith(prefixes[freeze]) for name in state)
    load_trained_state(fresh, state)
    assert all(torch.equal(value, fresh.state_dict()[name]) for name, value in model.state_dict().items())
    state.popitem()
    with pytest.raises(DataError, match="not the tensors of this model"):
        load_trained_state(fresh, state)


def test_untrained_like_returns_the_initial_weights(checkpoint, tmp_path):
    base = shutil.copytree(checkpoint("open_clip"), tmp_path / "base")
    begun = clip_model(base, seed=5, image_size=48)
    trained = clip_model(base, seed=6, image_size=48)
    save_segmenter(trained, tmp_path / "model")
    shutil.rmtree(base)
    assert weights_digest(untrained_like(load_segmenter(tmp_path / "model"), seed=5)) == weights_digest(begun)


def test_open_clip_is_asked_for_where_it_is_not_installed(checkpoint, tmp_path, monkeypatch):
    save_segmenter(clip_model(checkpoint("open_clip")), tmp_path)
    monkeypatch.setitem(sys.modules, "magicseg.model.open_clip_encoder", None)
    with pytest.raises(BackendError, match="needs open_clip") as caught:
        load_segmenter(tmp_path)
    assert "magicseg[models]" in caught.value.hint


def test_a_frozen_miniatures_batch_statistics_are_no_part_of_what_is_trained():
    encoder = EncoderSettings(width=16, heads=2, layers=1, freeze=True)
    model = build_segmenter(ModelSettings(encoder=encoder, **SMALL), seed=0)
    assert not any(name.startswith("encoder.") for name in trained_state(model))
    free = build_segmenter(ModelSettings(encoder=encoder.model_copy(update={"freeze": False}), **SMALL), seed=0)
    assert trained_state(free).keys() == free.state_dict().keys()
