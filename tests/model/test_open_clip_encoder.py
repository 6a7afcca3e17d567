"""open_clip models as encoders: equal to open_clip's own at any size; weights that do not fit are refused."""

import json
import shutil

import open_clip
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from open_clip.model import resize_pos_embed
from safetensors.torch import load_file, save_file
from torch import nn

from helpers.tiny_clip import MEAN, STD, VARIANTS, config_of, stock
from magicseg.config.model import ModelSettings, OpenClipSettings
from magicseg.core.errors import BackendError, ConfigError, DataError
from magicseg.model.encoder import Encoder, build_encoder
from magicseg.model.open_clip_encoder import resize_positions
from magicseg.model.prompts import DeepPrompts, encode_with_prompts
from magicseg.model.segmenter import build_segmenter


def clip_settings(weights, **options):
    return OpenClipSettings(name="open-clip", weights=weights and {"model": str(weights)}, **options)


def pictures(height=32, width=32, count=2):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


def normalised(images):
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (MEAN, STD))
    return (images / 255 - mean) / std


@pytest.fixture(autouse=True)
def _apart(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(checkpoint):
    return checkpoint("open_clip")


@pytest.fixture
def own_folder(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "clip")


@pytest.mark.parametrize("name", VARIANTS)
def test_without_prompts_the_encoder_gives_open_clips_embeddings(checkpoint, name):
    encoder = build_encoder(clip_settings(checkpoint(name)))
    assert isinstance(encoder, Encoder)
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{checkpoint(name)}")
    model.eval()
    images, texts = pictures(), ["a photo of a cat", "zebra"]
    none = DeepPrompts(tokens=0, layers=2, width=16, stride=8, dropout=0.1)
    model.visual.output_tokens = True
    with torch.no_grad():
        cls, tokens = model.visual(normalised(images))
        if (
            model.visual.final_ln_after_pool
        ):  # open_clip leaves the patches without the norm that its class token gets
            tokens = model.visual.ln_post(tokens)
        expected = torch.cat([cls[:, None], tokens @ model.visual.proj], dim=1)
        for prompts in (None, none):
            torch.testing.assert_close(encode_with_prompts(encoder, images, prompts), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(encoder.encode_text(texts), model.encode_text(open_clip.tokenize(texts)))


@pytest.mark.parametrize(("size", "image_size"), [(48, None), (48, 48), (64, 48), (16, None)])
def test_images_of_other_sizes_get_open_clips_embeddings(folder, size, image_size):
    encoder = build_encoder(clip_settings(folder, image_size=image_size))
    config = config_of("open_clip")
    state = load_file(folder / "open_clip_model.safetensors")
    for side in filter(None, (image_size, size)):
        config["vision_cfg"]["image_size"] = side
        model = stock(config)
        resize_pos_embed(state, model)
    model.load_state_dict(state)
    images = pictures(size, size)
    with torch.no_grad():
        torch.testing.assert_close(
            encode_with_prompts(encoder, images, None)[:, 0],
            model.encode_image(normalised(images)),
            rtol=1e-4,
            atol=1e-5,
        )


@given(old=st.integers(1, 9), new=st.integers(1, 9))
def test_positions_are_resized_as_open_clip_does_it(old, new):
    positions = torch.randn(1 + old * old, 3, generator=torch.Generator().manual_seed(0))
    state = {"visual.positional_embedding": positions}
    visual = nn.Module()
    visual.grid_size = (new, new)
    holder = nn.Module()
    holder.visual = visual
    resize_pos_embed(state, holder)
    found = resize_positions(positions, (old, old), (new, new))
    torch.testing.assert_close(found, state["visual.positional_embedding"])


def test_images_need_not_be_square_but_must_fit_the_patch(folder):
    model = build_segmenter(ModelSettings(encoder=clip_settings(folder), decoder_width=16), seed=0).eval()
    text = model.encode_classes(["cat", "dog"])
    assert model(pictures(24, 56), text).logits.shape == (2, 2, 24, 56)
    with pytest.raises(DataError, match="30 x 32"):
        model(pictures(30, 32), text)
    with pytest.raises(ConfigError, match="image_size is 30"):
        build_encoder(clip_settings(folder, image_size=30))


def test_a_wide_image_has_the_positions_of_its_own_grid(folder):
    """Against interpolation at known points: a ramp along the columns stays one, whatever the grid's shape."""
    encoder = build_encoder(clip_settings(folder))
    visual = encoder.clip.visual
    with torch.no_grad():
        visual.conv1.weight.zero_()
        ramp = torch.arange(4.0).repeat(4)[:, None].expand(-1, 16)  # value = column
        visual.positional_embedding[1:] = ramp
        visual.ln_pre = nn.Identity()
        tokens = encoder.embed(pictures(32, 64))[0, 1:, 0].view(4, 8)
    assert (tokens == tokens[0]).all()
    assert (tokens[0].diff() > 0).all()


@pytest.mark.parametrize("file", ["weights.pt", "open_clip_model.safetensors"])
def test_a_weights_file_loads_with_a_named_architecture(folder, file, tmp_path, monkeypatch):
    (tmp_path / "Tiny-8.json").write_text(json.dumps(config_of("open_clip")))
    monkeypatch.setattr("open_clip.factory._MODEL_CONFIG_PATHS", [tmp_path])
    monkeypatch.setattr("open_clip.factory._MODEL_CONFIGS", {"Tiny-8": config_of("open_clip")})
    encoder = build_encoder(clip_settings(folder / file, architecture="Tiny-8"))
    expected = load_file(folder / "open_clip_model.safetensors")
    assert all(torch.equal(value, expected[name]) for name, value in encoder.clip.state_dict().items())
    assert tuple(encoder.mean.flatten().tolist()) == pytest.approx(open_clip.OPENAI_DATASET_MEAN)
    random = [
        build_segmenter(ModelSettings(encoder=clip_settings(None, architecture="Tiny-8")), seed=n) for n in (1, 1, 2)
    ]
    weights = [model.encoder.clip.visual.conv1.weight for model in random]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_openai_weights_with_the_wrong_activation_are_refused(folder, tmp_path, monkeypatch):
    configs = {"Tiny-8": config_of("open_clip"), "Tiny-8-quickgelu": config_of("open_clip_quickgelu")}
    monkeypatch.setattr("open_clip.factory._MODEL_CONFIGS", configs)
    state = load_file(folder / "open_clip_model.safetensors")
    telltale = {"input_resolution": torch.tensor(32), "context_length": torch.tensor(77)}
    torch.save({key: value.half() for key, value in state.items()} | telltale, tmp_path / "ViT.pt")
    with pytest.raises(ConfigError, match="QuickGELU") as refused:
        build_encoder(clip_settings(tmp_path / "ViT.pt", architecture="Tiny-8"))
    assert refused.value.hint == "encoder.architecture=Tiny-8-quickgelu"
    made = build_encoder(clip_settings(tmp_path / "ViT.pt", architecture="Tiny-8-quickgelu"))
    assert made.clip.visual.conv1.weight.dtype == torch.float32
    # A folder that says itself which activation it has.
    with pytest.raises(ConfigError, match="GELU") as refused:
        build_encoder(clip_settings(folder, architecture="Tiny-8-quickgelu"))
    assert refused.value.hint == "encoder.architecture=Tiny-8"


def test_a_name_on_the_hub_tells_the_activation(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    name, commit = "timm/vit_base_patch16_clip_224.openai", "a" * 40
    settings = OpenClipSettings(name="open-clip", weights={"model": name, "revision": commit})
    with pytest.raises(BackendError, match="not in this machine's cache"):
        build_encoder(settings)
    place = tmp_path / "models--timm--vit_base_patch16_clip_224.openai" / "snapshots" / commit
    shutil.copytree(folder, place)
    with pytest.raises(ConfigError, match="trained with QuickGELU") as refused:
        build_encoder(settings)
    assert '"quick_gelu": true' in refused.value.hint


@pytest.mark.parametrize(
    ("part", "change", "reason"),
    [
        ("vision_cfg", {"attentional_pool": True}, "attentional pooling"),
        ("vision_cfg", {"pool_type": "none"}, "'none'"),
        ("vision_cfg", {"timm_model_name": "vit_base_patch16_siglip_224"}, "timm"),
        ("vision_cfg", {"layers": [1, 1, 1, 1]}, "ResNet"),
        ("text_cfg", {"hf_model_name": "roberta-base"}, "roberta-base"),
        ("text_cfg", {"hf_tokenizer_name": "bert-base-uncased"}, "tokenizer 'bert-base-uncased'"),
        ("vision_cfg", {"no_such_key": 1}, "no_such_key"),
    ],
)
def test_unsupported_architectures_are_refused_with_the_reason(own_folder, part, change, reason):
    file = own_folder / "open_clip_config.json"
    stored = json.loads(file.read_text())
    stored["model_cfg"][part] |= change
    file.write_text(json.dumps(stored))
    with pytest.raises(ConfigError, match=reason):
        build_encoder(clip_settings(own_folder))


def test_weights_of_another_architecture_are_explained(own_folder):
    file = own_folder / "open_clip_model.safetensors"
    state = load_file(file)
    state["visual.extra"] = state.pop("visual.proj")
    state["ln_final.bias"] = torch.zeros(3)
    save_file(state, file)
    with pytest.raises(
        ConfigError, match=r"1 missing: visual\.proj; 1 unexpected: visual\.extra; 1 of another shape"
    ):
        build_encoder(clip_settings(own_folder))


def test_the_architecture_that_fits_is_named(folder, tmp_path):
    b32 = open_clip.get_model_config("ViT-B-32")
    shape = {"visual.conv1.weight": (768, 3, 32, 32), "visual.positional_embedding": (50, 768)}
    shape |= {f"visual.transformer.resblocks.{n}.ln_1.bias": (768,) for n in range(12)}
    shape |= {"visual.proj": (768, b32["embed_dim"]), "ln_final.weight": (512,)}
    save_file({name: torch.zeros(sides) for name, sides in shape.items()}, tmp_path / "x.safetensors")
    with pytest.raises(ConfigError, match="does not fit ViT-S-32") as refused:
        build_encoder(clip_settings(tmp_path / "x.safetensors", architecture="ViT-S-32"))
    assert "ViT-B-32" in refused.value.hint


def test_programs_and_pickles_are_refused(tmp_path, folder):
    options = {"architecture": "ViT-S-32-alt"}
    with pytest.warns(FutureWarning):
        torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "openai.pt")
    with pytest.raises(BackendError, match="TorchScript") as refused, pytest.warns(UserWarning, match="TorchScript"):
        build_encoder(clip_settings(tmp_path / "openai.pt", **options))
    assert "openai-state.pt" in refused.value.hint
    torch.save({"model": nn.Linear(2, 2)}, tmp_path / "pickle.pt")
    with pytest.raises(BackendError, match="weights alone"):
        build_encoder(clip_settings(tmp_path / "pickle.pt", **options))
    with pytest.raises(BackendError, match="no such file"):
        build_encoder(clip_settings(tmp_path / "none.pt", **options))
    with pytest.raises(ConfigError, match="ViT-B-61") as refused:
        build_encoder(clip_settings(None, architecture="ViT-B-61"))
    assert "ViT-B-16" in refused.value.hint


@pytest.mark.parametrize("freeze", [True, "text", False])
def test_frozen_parameters_get_no_gradient_and_all_others_do(folder, freeze):
    settings = ModelSettings(
        encoder=clip_settings(folder, freeze=freeze), decoder_width=16, drop_path=0, prompt_tokens=2
    )
    model = build_segmenter(settings, seed=0).train()
    names = ["cat", "dog"]
    logits = model(pictures(), model.encode_classes(names)).logits
    F.binary_cross_entropy_with_logits(logits, torch.rand_like(logits)).backward()
    learning = {name for name, value in model.named_parameters() if value.grad is not None and value.grad.any()}
    assert {name for name in learning if not name.startswith("encoder.")} == {
        name for name, _ in model.named_parameters() if not name.startswith("encoder.")
    }
    visual = {name for name in learning if name.startswith("encoder.clip.visual.")}
    text = {name for name in learning if name.startswith("encoder.clip.")} - visual
    assert bool(visual) == (freeze is not True)
    assert bool(text) == (freeze is False)
    assert model.text_is_frozen == (freeze is not False)
    assert model.class_texts(names).requires_grad == (freeze is False)
