"""The models as their authors released them: equal to their own libraries, and to transformers on equal weights."""

import json
import re
import shutil

import groundingdino.datasets.transforms as transforms
import numpy as np
import pytest
import torch
import transformers as tf
from groundingdino.models.GroundingDINO.bertwarper import generate_masks_with_special_tokens_and_transfer_map
from groundingdino.util.inference import load_image, predict
from PIL import Image
from safetensors.torch import load_file, save_file

from helpers.mask_requests import labels, picture, segment_request
from helpers.tiny_detectors import bert_tokenizer
from magicseg.backends import DetectRequest
from magicseg.vision.original_detector import _Bert

NAMES = ("cat", "dining table")
CAPTION = "cat. dining table."


def request(image, *names):
    return DetectRequest(image=image, labels=labels(*names or NAMES))


def library_boxes(backend, pixels, image, monkeypatch):
    """Boxes in pixels and confidences by the library's own path."""
    model = backend._model._model
    monkeypatch.setattr(model, "tokenizer", backend._model._tokenizer)  # without padding
    boxes, confidence, _ = predict(model, pixels, CAPTION, 0.0, 0.0, device="cpu")
    height, width = image.shape[:2]
    centre, size = (boxes * torch.tensor([width, height] * 2)).numpy().reshape(-1, 2, 2).swapaxes(0, 1)
    corners = np.concatenate([centre - size / 2, centre + size / 2], axis=1)
    return np.clip(corners, 0, [width, height] * 2), confidence.numpy()


@pytest.mark.parametrize(
    "size", [(48, 64), (64, 96), (50, 33), (200, 150)], ids=lambda size: "x".join(map(str, size))
)
def test_boxes_and_confidences_are_those_of_the_library(size, detector, monkeypatch):
    image = picture(1, *size)
    backend = detector("original_grounding_dino")
    (found,) = backend.detect([request(image)])
    prepare = transforms.Compose(
        [
            transforms.RandomResize([64], max_size=96),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    pixels, _ = prepare(Image.fromarray(image), None)
    boxes, confidence = library_boxes(backend, pixels, image, monkeypatch)
    assert len(boxes) == 20
    np.testing.assert_allclose(found.boxes, boxes, atol=1e-3)
    np.testing.assert_allclose(found.confidence, confidence, atol=1e-5)
    assert confidence.std() > 0.01


@pytest.mark.slow
def test_images_are_prepared_as_the_library_prepares_its_files(detector, monkeypatch, tmp_path):
    image = picture(4, 48, 64)
    Image.fromarray(image).save(tmp_path / "image.png")
    _, pixels = load_image(str(tmp_path / "image.png"))
    assert pixels.shape == (3, 800, 1066)
    backend = detector("original_grounding_dino", batch_size=1, shortest_edge=800, longest_edge=1333)
    (found,) = backend.detect([request(image)])
    boxes, confidence = library_boxes(backend, pixels, image, monkeypatch)
    np.testing.assert_allclose(found.boxes, boxes, atol=1e-3)
    np.testing.assert_allclose(found.confidence, confidence, atol=1e-5)


def test_a_labels_score_is_the_best_of_its_own_tokens(detector):
    backend = detector("original_grounding_dino", batch_size=1)
    image = picture(2, 64, 96)
    (found,) = backend.detect([request(image, "wombat", "dining table", "dog")])
    inner = backend._model
    with torch.inference_mode():
        pixels = inner._prepare(Image.fromarray(image), None)[0]
        output = inner._model(pixels[None], captions=["wombat. dining table. dog."])
    probabilities = output["pred_logits"][0].sigmoid().numpy()
    # [CLS] w o m b a t . dining table . dog . [SEP]
    for place, tokens in enumerate([slice(1, 7), slice(8, 10), slice(11, 12)]):
        np.testing.assert_allclose(found.scores[:, place], probabilities[:, tokens].max(axis=1), atol=1e-6)
    assert (probabilities[:, :14] > 0).all()
    assert (probabilities[:, 14:] == 0).all()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_stand_in_for_bert_is_bert(attention):
    tokenizer = bert_tokenizer()
    config = tf.BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    torch.manual_seed(0)
    config._attn_implementation = attention
    bert = tf.BertModel(config).eval()
    tokens = tokenizer([CAPTION, "wombat. hot dog."], padding="max_length", max_length=20, return_tensors="pt")
    special = tokenizer.convert_tokens_to_ids(["[CLS]", "[SEP]", ".", "?"])
    mask, positions, _ = generate_masks_with_special_tokens_and_transfer_map(tokens, special, tokenizer)
    assert mask.shape == (2, 20, 20)
    assert positions.max() == 6
    given = {"input_ids": tokens["input_ids"], "token_type_ids": tokens["token_type_ids"], "position_ids": positions}
    with torch.inference_mode():
        found = _Bert(bert)(attention_mask=mask, **given)["last_hidden_state"]
        hidden = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)[:, None]
        expected = bert(attention_mask=hidden, **given).last_hidden_state
        unmasked = bert(attention_mask=torch.zeros_like(hidden), **given).last_hidden_state
        unplaced = bert(attention_mask=hidden, **given | {"position_ids": None}).last_hidden_state
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert (found - unmasked).abs().max() > 1e-3
    assert (found - unplaced).abs().max() > 1e-3


def renamed(name, rules):
    """A tensor's name after all rules, in their order."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


SAM_RULES = [
    (r"^image_encoder\.", "vision_encoder."),
    (r"patch_embed\.proj\.", "patch_embed.projection."),
    (r"encoder\.blocks\.", "encoder.layers."),
    (r"neck\.0\.", "neck.conv1."),
    (r"neck\.1\.", "neck.layer_norm1."),
    (r"neck\.2\.", "neck.conv2."),
    (r"neck\.3\.", "neck.layer_norm2."),
    (r"\.norm(\d)\.", r".layer_norm\1."),
    (r"\.norm_final_attn\.", ".layer_norm_final_attn."),
    (
        r"^prompt_encoder\.pe_layer\.positional_encoding_gaussian_matrix$",
        "shared_image_embedding.positional_embedding",
    ),
    (r"\.point_embeddings\.", ".point_embed."),
    (r"mask_downscaling\.0\.", "mask_embed.conv1."),
    (r"mask_downscaling\.1\.", "mask_embed.layer_norm1."),
    (r"mask_downscaling\.3\.", "mask_embed.conv2."),
    (r"mask_downscaling\.4\.", "mask_embed.layer_norm2."),
    (r"mask_downscaling\.6\.", "mask_embed.conv3."),
    (r"output_upscaling\.0\.", "upscale_conv1."),
    (r"output_upscaling\.1\.", "upscale_layer_norm."),
    (r"output_upscaling\.3\.", "upscale_conv2."),
    (r"(iou_prediction_head|output_hypernetworks_mlps\.\d)\.layers\.0\.", r"\1.proj_in."),
    (r"(iou_prediction_head|output_hypernetworks_mlps\.\d)\.layers\.1\.", r"\1.layers.0."),
    (r"(iou_prediction_head|output_hypernetworks_mlps\.\d)\.layers\.2\.", r"\1.proj_out."),
]


@pytest.fixture
def converted_sam(checkpoint, tmp_path):
    """The tiny original SAM's weights under the names of transformers, whose tiny SAM has the same shapes."""
    folder = shutil.copytree(checkpoint("sam"), tmp_path / "sam")
    weights = torch.load(checkpoint("original_sam") / "sam_vit_h_4b8939.pth")
    weights = {renamed(name, SAM_RULES): value.contiguous() for name, value in weights.items()}
    expected = load_file(folder / "model.safetensors")
    assert {name: value.shape for name, value in weights.items()} == {
        name: value.shape for name, value in expected.items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["mask_decoder_config"]["layer_norm_eps"] = 1e-5  # segment-anything's; transformers' is 1e-6
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_both_forms_of_sam_draw_the_same_outlines(converted_sam, segmenter):
    requests = [segment_request(seed, size) for seed, size in enumerate([(64, 64), (48, 64), (64, 40)])]
    for original, other in zip(
        segmenter("original_sam").segment(requests), segmenter(converted_sam).segment(requests), strict=True
    ):
        scale = np.abs(original.logits).max()
        np.testing.assert_allclose(other.logits, original.logits, atol=1e-5 * scale)
        np.testing.assert_allclose(other.quality, original.quality, atol=1e-5)
        decided = np.abs(original.logits) > 1e-5 * scale
        assert np.array_equal((other.logits > 0)[decided], (original.logits > 0)[decided])
        assert decided.mean() > 0.99


def test_both_forms_of_sam_resize_images_nearly_alike(converted_sam, segmenter):
    requests = [segment_request(seed, size) for seed, size in enumerate([(100, 150), (33, 50)])]
    for original, other in zip(
        segmenter("original_sam").segment(requests), segmenter(converted_sam).segment(requests), strict=True
    ):
        scale = np.abs(original.logits).max()
        np.testing.assert_allclose(other.logits, original.logits, atol=0.01 * scale)
        np.testing.assert_allclose(other.quality, original.quality, atol=0.01)
        assert ((other.logits > 0) == (original.logits > 0)).mean() > 0.99


LAYER = r"layers\.(\d)\."
DINO_RULES = [
    # The image's features.
    (r"^backbone\.0\.norm1\.", "VISION.hidden_states_norms.stage2."),
    (r"^backbone\.0\.norm2\.", "VISION.hidden_states_norms.stage3."),
    (r"^backbone\.0\.norm3\.", "VISION.hidden_states_norms.stage4."),
    (r"^backbone\.0\.patch_embed\.proj\.", "VISION.swin.embeddings.patch_embeddings.projection."),
    (r"^backbone\.0\.patch_embed\.norm\.", "VISION.swin.embeddings.norm."),
    (r"^backbone\.0\.layers\.", "VISION.swin.encoder.layers."),
    (r"(VISION.*)\.norm1\.", r"\1.layernorm_before."),
    (r"(VISION.*)\.norm2\.", r"\1.layernorm_after."),
    (r"(VISION.*)\.attn\.proj\.", r"\1.attention.o_proj."),
    (r"(VISION.*)\.attn\.qkv\.", r"\1.attention.qkv_proj."),
    (r"(VISION.*)\.attn\.(relative_position_bias_table)", r"\1.attention.relative_position_bias.\2"),
    (r"VISION", "model.backbone.conv_encoder.model"),
    # The text's, and what joins them.
    (r"^bert\.", "model.text_backbone."),
    (r"^feat_map\.", "model.text_projection."),
    (r"^input_proj\.", "model.input_proj_vision."),
    (r"^transformer\.tgt_embed\.", "model.query_position_embeddings."),
    (r"^transformer\.enc_out_bbox_embed\.", "model.encoder_output_bbox_embed."),
    (r"^transformer\.decoder\.norm\.", "model.decoder.layer_norm."),
    (r"^transformer\.decoder\.ref_point_head\.", "model.decoder.reference_points_head."),
    (rf"^transformer\.encoder\.{LAYER}norm1\.", r"model.encoder.layers.\1.deformable_layer.self_attn_layer_norm."),
    (rf"^transformer\.encoder\.{LAYER}norm2\.", r"model.encoder.layers.\1.deformable_layer.final_layer_norm."),
    (rf"^transformer\.encoder\.{LAYER}", r"model.encoder.layers.\1.deformable_layer."),
    (
        rf"^transformer\.encoder\.text_{LAYER}norm1\.",
        r"model.encoder.layers.\1.text_enhancer_layer.layer_norm_before.",
    ),
    (
        rf"^transformer\.encoder\.text_{LAYER}norm2\.",
        r"model.encoder.layers.\1.text_enhancer_layer.layer_norm_after.",
    ),
    (rf"^transformer\.encoder\.text_{LAYER}", r"model.encoder.layers.\1.text_enhancer_layer."),
    (rf"^transformer\.encoder\.fusion_{LAYER}", r"model.encoder.layers.\1.fusion_layer."),
    (r"(fusion_layer)\.gamma_v$", r"\1.vision_param"),
    (r"(fusion_layer)\.gamma_l$", r"\1.text_param"),
    (r"(fusion_layer.*)layer_norm_v\.", r"\1layer_norm_vision."),
    (r"(fusion_layer.*)layer_norm_l\.", r"\1layer_norm_text."),
    (r"(fusion_layer.*)(\.|_)v_proj\.", r"\1\2vision_proj."),
    (r"(fusion_layer.*)(\.|_)l_proj\.", r"\1\2text_proj."),
    (rf"^transformer\.decoder\.{LAYER}norm1\.", r"model.decoder.layers.\1.encoder_attn_layer_norm."),
    (rf"^transformer\.decoder\.{LAYER}norm2\.", r"model.decoder.layers.\1.self_attn_layer_norm."),
    (rf"^transformer\.decoder\.{LAYER}norm3\.", r"model.decoder.layers.\1.final_layer_norm."),
    (rf"^transformer\.decoder\.{LAYER}cross_attn\.", r"model.decoder.layers.\1.encoder_attn."),
    (rf"^transformer\.decoder\.{LAYER}ca_text\.", r"model.decoder.layers.\1.encoder_attn_text."),
    (rf"^transformer\.decoder\.{LAYER}catext_norm\.", r"model.decoder.layers.\1.encoder_attn_text_layer_norm."),
    (r"^transformer\.", "model."),
    (r"(layers\.\d\..*)linear(\d)\.", r"\1fc\2."),
]


def dino_weights(original):
    """The original's tensors under transformers' names; those of three projections in one are split."""
    weights = {}
    for old, value in original.items():
        if "relative_position_index" in old or "pooler" in old:
            continue
        name = renamed(old.removeprefix("module."), DINO_RULES)
        if match := re.search(r"qkv_proj\.|in_proj_", name):
            parts = ("q_proj.", "k_proj.", "v_proj.") if match[0] == "qkv_proj." else ("query.", "key.", "value.")
            for part, third in zip(parts, value.chunk(3), strict=True):
                weights[name.replace(match[0], part)] = third.clone()
        else:
            weights[name] = value
    return weights


@pytest.fixture(scope="session")
def converted_dino(checkpoint, tmp_path_factory):
    """The tiny original GroundingDINO's weights in transformers' form."""
    source, folder = checkpoint("original_grounding_dino"), tmp_path_factory.mktemp("dino")
    swin = tf.SwinConfig(
        image_size=224,
        embed_dim=96,
        depths=[2, 2, 6, 2],
        num_heads=[3, 6, 12, 24],
        window_size=7,
        out_features=["stage2", "stage3", "stage4"],
    )
    config = tf.GroundingDinoConfig(
        backbone_config=swin,
        text_config=tf.BertConfig.from_pretrained(source / "bert"),
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        num_queries=20,
    )
    model = tf.GroundingDinoForObjectDetection(config)
    weights = dino_weights(torch.load(source / "groundingdino_swint_ogc.pth")["model"])
    lacking, unknown = model.load_state_dict(weights, strict=False)
    assert unknown == []
    # The backbone ends before its last norm.
    assert {re.sub(r".*swin\.layernorm\.\w+", "norm", name) for name in lacking} == {"norm"}
    model.save_pretrained(folder)
    images = tf.GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    tf.GroundingDinoProcessor(images, bert_tokenizer()).save_pretrained(folder)
    return folder


# The first three need no resizing. Where the longer side's limit decides, the two forms may round by a pixel.
SIZES = [(64, 96), (64, 80), (96, 64), (48, 64), (200, 150), (30, 90)]


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
def test_both_forms_of_grounding_dino_find_the_same(size, converted_dino, detector):
    one = request(picture(3, *size), "wombat", "dining table", "hot dog")
    (original,) = detector("original_grounding_dino").detect([one])
    (other,) = detector(converted_dino).detect([one])
    np.testing.assert_allclose(other.boxes, original.boxes, atol=1e-3)
    np.testing.assert_allclose(other.confidence, original.confidence, atol=1e-5)
    np.testing.assert_allclose(other.scores, original.scores, atol=1e-5)
    assert original.scores.std() > 0.01
