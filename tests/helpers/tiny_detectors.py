"""Detectors and segmenters with random weights, of at most a few megabytes, in the layouts of their releases."""

import string
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers as tf

WORDS = [
    "a",
    "an",
    "the",
    "of",
    "on",
    "in",
    "and",
    "with",
    "photo",
    "cat",
    "dog",
    "chair",
    "sofa",
    "person",
    "horse",
    "car",
    "bird",
    "dining",
    "table",
    "red",
    "hot",
]
CONFIG = """
modelname = "groundingdino"
enc_layers = 1
dec_layers = 2
num_queries = 20
dim_feedforward = 64
"""


# The ids of BERT's vocabulary. transformers' GroundingDINO detects the end of a phrase by them.
_SPECIAL = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, ".": 1012, "?": 1029}


def bert_tokenizer() -> tf.BertTokenizerFast:
    """Return a WordPiece tokenizer with some whole words and single letters for all other text."""
    letters = string.ascii_lowercase + string.digits
    words = [*"!\"#$%&'()*+,-/:;<=>@[]_{|}~", *letters, *(f"##{letter}" for letter in letters)]
    words += [word for word in WORDS if len(word) > 1]
    free = [number for number in range(1030) if number not in _SPECIAL.values()]
    words += [f"[unused{number}]" for number in range(len(free) - len(words))]
    vocabulary = {**_SPECIAL, **dict(zip(words, free, strict=True))}
    return tf.BertTokenizerFast(vocab=dict(sorted(vocabulary.items(), key=lambda item: item[1])), do_lower_case=True)


def shaken(model: torch.nn.Module) -> torch.nn.Module:
    """Add noise to weights that a library initializes with constants, so that tests notice mixed-up weights."""
    with torch.no_grad():
        for values in model.parameters():
            if values.numel() > 1 and (values == values.flatten()[0]).all():
                values += 0.1 * torch.randn_like(values)
    return model


def widened(model: torch.nn.Module) -> torch.nn.Module:
    """Scale weights so that signals pass narrow layers. The libraries' initialization suits wide layers."""
    with torch.no_grad():
        for values in model.parameters():
            if values.ndim > 1:
                values.normal_(std=max(values[0].numel(), 2) ** -0.5)
    return shaken(model)


def _bert_config(size: int, hidden: int = 32) -> tf.BertConfig:
    return tf.BertConfig(
        vocab_size=size, hidden_size=hidden, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )


def grounding_dino(folder: Path) -> None:
    """Write a GroundingDINO with thirty queries, for images of at least 64 pixels on their shorter side."""
    _grounding_dino(folder, tf.GroundingDinoConfig, tf.GroundingDinoForObjectDetection)


def mm_grounding_dino(folder: Path) -> None:
    """Write a model like `grounding_dino` in MMDetection's form."""
    _grounding_dino(folder, tf.MMGroundingDinoConfig, tf.MMGroundingDinoForObjectDetection)


def _grounding_dino(folder: Path, config_class: type, model_class: type) -> None:
    tokenizer = bert_tokenizer()
    swin = tf.SwinConfig(
        image_size=64,
        patch_size=4,
        embed_dim=16,
        depths=[1, 1, 1, 1],
        num_heads=[1, 2, 4, 8],
        window_size=4,
        out_features=["stage2", "stage3", "stage4"],
    )
    config = config_class(
        backbone_config=swin,
        text_config=_bert_config(len(tokenizer)),
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        num_queries=30,
        num_feature_levels=4,
        max_text_len=64,
    )
    model = shaken(model_class(config))
    model.model.decoder.layer_norm.weight.data *= 0.3  # scores spread over the range, not at its ends
    model.save_pretrained(folder)
    images = tf.GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    tf.GroundingDinoProcessor(images, tokenizer).save_pretrained(folder)


def _clip_tokenizer(folder: Path) -> tf.CLIPTokenizer:
    from helpers.tiny_pipelines import clip_tokenizer

    return clip_tokenizer(folder / "tokenizer")


def owlv2(folder: Path) -> None:
    """Write an OWLv2 with sixteen patches for images of 64 pixels."""
    _owl(folder, "Owlv2")


def owlvit(folder: Path) -> None:
    """Write an OWL-ViT with sixteen patches for images of 64 pixels."""
    _owl(folder, "OwlViT")


def _owl(folder: Path, name: str) -> None:
    tokenizer = _clip_tokenizer(folder)
    tokenizer.model_max_length = 32
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    text = _part(name, "TextConfig")(
        vocab_size=len(tokenizer), max_position_embeddings=32, eos_token_id=None, **tower
    )
    config = _part(name, "Config")(
        text_config=text.to_dict(),
        vision_config=_part(name, "VisionConfig")(image_size=64, patch_size=16, **tower).to_dict(),
        projection_dim=32,
    )
    widened(_part(name, "ForObjectDetection")(config)).save_pretrained(folder)
    images = _part(name, "ImageProcessor")(size={"height": 64, "width": 64})
    _part(name, "Processor")(images, tokenizer).save_pretrained(folder)


def omdet_turbo(folder: Path) -> None:
    """Write an OmDet-Turbo for images of 64 pixels."""
    tokenizer = _clip_tokenizer(folder)
    tokenizer.model_max_length = 77
    backbone = tf.SwinConfig(
        image_size=64, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=2, out_indices=[2, 3, 4]
    )
    text = tf.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=77,
        eos_token_id=tokenizer.eos_token_id,
    )
    config = tf.OmDetTurboConfig(
        backbone_config=backbone.to_dict(),
        text_config=text.to_dict(),
        image_size=64,
        apply_layernorm_after_vision_backbone=False,
        text_projection_in_dim=32,
        text_projection_out_dim=32,
        task_encoder_hidden_dim=32,
        class_embed_dim=32,
        num_queries=12,
        encoder_hidden_dim=16,
        vision_features_channels=[16, 16, 16],
        encoder_in_channels=[16, 32, 64],
        encoder_attention_heads=4,
        encoder_dim_feedforward=32,
        decoder_hidden_dim=16,
        decoder_num_heads=4,
        decoder_num_layers=2,
        decoder_dim_feedforward=32,
    )
    widened(tf.OmDetTurboForObjectDetection(config)).save_pretrained(folder)
    images = tf.DetrImageProcessor(size={"height": 64, "width": 64})
    tf.OmDetTurboProcessor(images, tokenizer).save_pretrained(folder)


def _part(name: str, suffix: str) -> Any:
    return getattr(tf, name + suffix)


_VISION = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 64,
    "patch_size": 16,
    "global_attn_indexes": [1],
    "window_size": 2,
    "output_channels": 32,
    "mlp_dim": 64,
    "num_pos_feats": 16,
}
_PROMPTS = {"hidden_size": 32, "image_size": 64, "patch_size": 16, "mask_input_channels": 16}
_DECODER = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "mlp_dim": 64,
    "iou_head_hidden_dim": 32,
}


def _sam_images() -> tf.SamImageProcessor:
    return tf.SamImageProcessor(
        size={"longest_edge": 64},
        pad_size={"height": 64, "width": 64},
        mask_size={"longest_edge": 16},
        mask_pad_size={"height": 16, "width": 16},
    )


def sam(folder: Path) -> None:
    """Write a SAM for 64 pixels."""
    config = tf.SamConfig(
        vision_config=tf.SamVisionConfig(**_VISION).to_dict(),
        prompt_encoder_config=tf.SamPromptEncoderConfig(**_PROMPTS).to_dict(),
        mask_decoder_config=tf.SamMaskDecoderConfig(**_DECODER).to_dict(),
    )
    widened(tf.SamModel(config)).save_pretrained(folder)
    tf.SamProcessor(_sam_images()).save_pretrained(folder)


def sam_hq(folder: Path) -> None:
    """Write a SAM-HQ for 64 pixels, with two layers of global attention: the decoder needs the first one's output."""
    vision = _VISION | {"global_attn_indexes": [0, 1]}
    config = tf.SamHQConfig(
        vision_config=tf.SamHQVisionConfig(**vision).to_dict(),
        prompt_encoder_config=tf.SamHQPromptEncoderConfig(**_PROMPTS).to_dict(),
        mask_decoder_config=tf.SamHQMaskDecoderConfig(**_DECODER, vit_dim=32).to_dict(),
    )
    widened(tf.SamHQModel(config)).save_pretrained(folder)
    tf.SamHQProcessor(_sam_images()).save_pretrained(folder)


def _sam2_parts() -> dict[str, Any]:
    backbone = tf.Sam2HieraDetConfig(
        hidden_size=16,
        num_attention_heads=1,
        image_size=[128, 128],
        blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=[16, 32, 64, 128],
        num_attention_heads_per_stage=[1, 2, 4, 8],
        window_size_per_stage=[8, 4, 4, 4],
        window_positional_embedding_background_size=[4, 4],
        global_attention_blocks=[3],
    )
    vision = tf.Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=[128, 64, 32, 16],
        backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]],
        fpn_hidden_size=32,
    )
    return {
        "vision_config": vision.to_dict(),
        "prompt_encoder_config": {"hidden_size": 32, "image_size": 128, "patch_size": 16, "mask_input_channels": 16},
        "mask_decoder_config": dict(_DECODER),
    }


def _sam2_images() -> tf.Sam2ImageProcessor:
    return tf.Sam2ImageProcessor(size={"height": 128, "width": 128}, mask_size={"height": 32, "width": 32})


def sam2(folder: Path) -> None:
    """Write a SAM 2 for 128 pixels."""
    widened(tf.Sam2Model(tf.Sam2Config(**_sam2_parts()))).save_pretrained(folder)
    tf.Sam2Processor(_sam2_images()).save_pretrained(folder)


_MEMORY = {
    "memory_attention_hidden_size": 32,
    "memory_attention_num_layers": 1,
    "memory_attention_feed_forward_hidden_size": 32,
    "memory_attention_rope_feat_sizes": [8, 8],
    "memory_encoder_hidden_size": 32,
    "memory_encoder_output_channels": 8,
    "mask_downsampler_embed_dim": 32,
    "memory_fuser_embed_dim": 32,
    "memory_fuser_intermediate_dim": 32,
    "memory_fuser_num_layers": 1,
}


def sam2_video(folder: Path) -> None:
    """Write a SAM 2.1 as it is released: the model for videos, whose memory a segmenter of images does not have."""
    config = tf.Sam2VideoConfig(**_sam2_parts(), image_size=128, **_MEMORY)
    widened(tf.Sam2VideoModel(config)).save_pretrained(folder)
    tf.Sam2VideoProcessor(_sam2_images(), tf.Sam2VideoVideoProcessor()).save_pretrained(folder)


def edgetam(folder: Path) -> None:
    """Write an EdgeTAM for 128 pixels. Its backbone is timm's smallest RepViT."""
    backbone = tf.TimmWrapperConfig(
        architecture="repvit_m0_9",
        model_args={"in_chans": 3, "features_only": True, "out_indices": [0, 1, 2, 3]},
    )
    vision = tf.EdgeTamVisionConfig(
        backbone_config=backbone,
        backbone_channel_list=[384, 192, 96, 48],
        backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]],
        fpn_hidden_size=32,
    )
    config = tf.EdgeTamConfig(**_sam2_parts() | {"vision_config": vision.to_dict()})
    widened(tf.EdgeTamModel(config)).save_pretrained(folder)
    tf.Sam2Processor(_sam2_images()).save_pretrained(folder)


def _sam3_vision() -> dict[str, Any]:
    backbone = tf.Sam3ViTConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=112,
        pretrain_image_size=56,
        window_size=4,
        global_attn_indexes=[1],
    )
    sizes = [[32, 32], [16, 16], [8, 8]]
    vision = tf.Sam3VisionConfig(backbone_config=backbone, fpn_hidden_size=32, backbone_feature_sizes=sizes)
    return dict(vision.to_dict())


def _sam3_images() -> tf.Sam3ImageProcessor:
    return tf.Sam3ImageProcessor(size={"height": 112, "width": 112}, mask_size={"height": 32, "width": 32})


def _sam3_tracker_parts() -> dict[str, Any]:
    prompts = {"hidden_size": 32, "image_size": 112, "patch_size": 14, "mask_input_channels": 16}
    return {
        "vision_config": _sam3_vision(),
        "prompt_encoder_config": prompts,
        "mask_decoder_config": dict(_DECODER),
    }


def sam3_tracker(folder: Path) -> None:
    """Write the part of SAM 3 that takes boxes, for 112 pixels."""
    widened(tf.Sam3TrackerModel(tf.Sam3TrackerConfig(**_sam3_tracker_parts()))).save_pretrained(folder)
    tf.Sam3TrackerProcessor(_sam3_images()).save_pretrained(folder)


def _sam3_parts(words: int) -> dict[str, Any]:
    head = {"hidden_size": 32, "num_attention_heads": 4}
    layers = head | {"num_layers": 2, "intermediate_size": 64}
    text = head | {"intermediate_size": 64, "num_hidden_layers": 1, "projection_dim": 32}
    return {
        "vision_config": _sam3_vision(),
        "text_config": text | {"vocab_size": words, "max_position_embeddings": 32},
        "geometry_encoder_config": layers,
        "detr_encoder_config": layers,
        "detr_decoder_config": layers | {"num_queries": 12},
        "mask_decoder_config": head,
    }


def sam3(folder: Path) -> None:
    """Write a SAM 3 for 112 pixels."""
    tokenizer = _clip_tokenizer(folder)
    tokenizer.model_max_length = 32
    widened(tf.Sam3Model(tf.Sam3Config(**_sam3_parts(len(tokenizer))))).save_pretrained(folder)
    tf.Sam3Processor(_sam3_images(), tokenizer).save_pretrained(folder)


def sam3_video(folder: Path) -> None:
    """Write a SAM 3 as it is released: the model for videos, with detector and tracker."""
    tokenizer = _clip_tokenizer(folder)
    tokenizer.model_max_length = 32
    config = tf.Sam3VideoConfig(
        detector_config=tf.Sam3Config(**_sam3_parts(len(tokenizer))).to_dict(),
        tracker_config=_sam3_tracker_parts() | _MEMORY,
    )
    widened(tf.Sam3VideoModel(config)).save_pretrained(folder)
    tf.Sam3Processor(_sam3_images(), tokenizer).save_pretrained(folder)


def original_grounding_dino(folder: Path) -> None:
    """Write the files of the original release: a configuration, a checkpoint with key prefixes, a BERT folder."""
    from magicseg.vision.original_detector import SLConfig, _with_bert, library, read_settings

    folder.mkdir(parents=True)
    tokenizer = bert_tokenizer()
    tokenizer.save_pretrained(folder / "bert")
    config = _bert_config(len(tokenizer))
    config.save_pretrained(folder / "bert")
    (folder / "tiny.py").write_text(CONFIG)
    with _with_bert(tokenizer, tf.BertModel(config)):
        model = library.build_groundingdino(SLConfig(read_settings(str(folder / "tiny.py")) | {"device": "cpu"}))
    shaken(model).transformer.decoder.norm.weight.data *= 0.1
    weights = {f"module.{name}": value for name, value in model.state_dict().items()}
    torch.save({"model": weights}, folder / "groundingdino_swint_ogc.pth")


def build_original_sam(checkpoint: str | None = None) -> torch.nn.Module:
    """Build the model like a function of segment-anything's registry."""
    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    assert checkpoint is None
    return Sam(
        image_encoder=ImageEncoderViT(
            depth=2,
            embed_dim=32,
            img_size=64,
            mlp_ratio=2,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            num_heads=4,
            patch_size=16,
            qkv_bias=True,
            use_rel_pos=True,
            global_attn_indexes=[1],
            window_size=2,
            out_chans=32,
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=32, image_embedding_size=(4, 4), input_image_size=(64, 64), mask_in_chans=16
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(depth=2, embedding_dim=32, mlp_dim=64, num_heads=4),
            transformer_dim=32,
            iou_head_depth=3,
            iou_head_hidden_dim=32,
        ),
        pixel_mean=[123.675, 116.28, 103.53],
        pixel_std=[58.395, 57.12, 57.375],
    ).eval()


def original_sam(folder: Path) -> None:
    """Write the single file of the original release."""
    folder.mkdir(parents=True)
    torch.save(widened(build_original_sam()).state_dict(), folder / "sam_vit_h_4b8939.pth")


MODELS: Mapping[str, Callable[[Path], None]] = {
    made.__name__: made
    for made in (
        *(grounding_dino, mm_grounding_dino, owlv2, owlvit, omdet_turbo, original_grounding_dino),
        *(sam, sam_hq, sam2, sam2_video, edgetam, sam3_tracker, sam3, sam3_video, original_sam),
    )
}


def build(name: str, folder: Path) -> Path:
    """Write a checkpoint with fixed random weights to ``folder / name``."""
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    try:
        MODELS[name](folder / name)
    finally:
        torch.random.set_rng_state(state)
    return folder / name
