"""Class texts: templates and synonyms, constants of a frozen text tower, the cache on disk."""

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from helpers.tiny_models import TINY_DECODER
from magicseg.config.model import EncoderSettings, ModelSettings
from magicseg.labels.templates import load_templates
from magicseg.model.segmenter import build_segmenter
from magicseg.model.text_cache import cached_texts

ENCODER = EncoderSettings(image_size=16, width=8, heads=1, layers=1, embed_dim=16)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "magicseg" / "texts"


def model_with(class_prompt, encoder=ENCODER):
    return build_segmenter(ModelSettings(encoder=encoder, class_prompt=class_prompt, **TINY_DECODER), seed=0).eval()


def clip_model(folder, **options):
    settings = {"name": "open-clip", "weights": {"model": str(folder)}, **options}
    return model_with("ensemble", settings)


def test_one_template_is_the_plain_embedding():
    model = model_with("a photo of a {}")
    expected = F.normalize(model.encoder.encode_text(["a photo of a cat"]), dim=-1)
    assert torch.equal(model.encode_classes(["cat"]), expected)


def test_a_set_of_templates_and_several_names_are_averaged_on_the_sphere():
    model = model_with("ensemble")
    one_by_one = [
        F.normalize(model.encoder.encode_text([template.format(name)]), dim=-1)[0]
        for name in ("sofa", "couch")
        for template in load_templates("ensemble")
    ]
    expected = F.normalize(torch.stack(one_by_one).mean(0), dim=0)
    found = model.encode_classes([["cat"], ["sofa", "couch"]])
    torch.testing.assert_close(found[1], expected)
    torch.testing.assert_close(found[0], model.encode_classes(["cat"])[0])
    with pytest.raises(ValueError, match="class 1 has no name"):
        model.encode_classes([["cat"], []])


def test_a_class_prompt_that_is_neither_a_set_nor_a_template_is_refused():
    with pytest.raises(ValidationError, match="no set of templates 'fotos'"):
        ModelSettings(class_prompt="fotos")


def test_texts_of_a_frozen_tower_are_computed_once(checkpoint, monkeypatch):
    model = clip_model(checkpoint("open_clip"))
    calls = []
    original = type(model.encoder).encode_text
    monkeypatch.setattr(
        type(model.encoder), "encode_text", lambda self, texts: calls.append(len(texts)) or original(self, texts)
    )
    expected = model.encode_classes(["cat", "dog"]).detach()
    calls.clear()
    assert torch.equal(model.class_texts(["cat", "dog"]), expected)
    assert calls == [2 * len(load_templates("ensemble"))]
    model.class_texts(["cat", "dog"])
    again = clip_model(checkpoint("open_clip"))
    assert torch.equal(again.class_texts(["cat", "dog"]), expected)
    assert len(calls) == 1
    again.class_texts(["dog", "cat"])
    assert len(calls) == 2


def test_loading_weights_invalidates_the_class_texts(checkpoint):
    model = clip_model(checkpoint("open_clip"))
    before = model.class_texts(["cat"])
    state = model.state_dict()
    model.load_state_dict({name: value + 0.1 if "ln_final" in name else value for name, value in state.items()})
    after = model.class_texts(["cat"])
    assert not torch.equal(before, after)
    assert torch.equal(after, model.encode_classes(["cat"]))


def test_texts_of_a_trained_text_tower_are_never_cached(checkpoint, cache):
    model = clip_model(checkpoint("open_clip"), freeze=False)
    assert model.class_texts(["cat"]).requires_grad
    assert not cache.exists()


def test_a_damaged_or_foreign_entry_is_computed_anew(cache):
    values = torch.arange(6.0).view(2, 3)
    calls = []

    def compute():
        calls.append(1)
        return values

    key = {"names": [["cat"], ["dog"]]}
    assert torch.equal(cached_texts(key, compute), values)
    assert torch.equal(cached_texts(key, compute), values)
    assert len(calls) == 1
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    for damaged in (whole[:-3], whole[:-1] + bytes([whole[-1] ^ 1]), whole.replace(b"cat", b"cow"), b""):
        file.write_bytes(damaged)
        calls.clear()
        assert torch.equal(cached_texts(key, compute), values)
        assert len(calls) == 1
        assert file.read_bytes() == whole


def test_a_cache_that_cannot_be_written_costs_time_alone(tmp_path):
    (tmp_path / "file").write_text("")
    assert torch.equal(cached_texts({}, lambda: torch.ones(1, 2), folder=tmp_path / "file" / "x"), torch.ones(1, 2))
