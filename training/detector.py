"""Train the small GroundingDINO, with transformers' model and loss, on painted scenes and their objects' boxes.

    python -m training.detector FOLDER --data FOLDER
    python -m training.detector FOLDER --data FOLDER --export DIRECTORY

The text names the ten classes in random order (Liu et al. 2023, arXiv 2303.05499); the loss matches queries to boxes.
"""

import functools
import string
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from torch import Tensor, nn
from transformers.loss.loss_grounding_dino import GroundingDinoHungarianMatcher, GroundingDinoImageLoss
from transformers.models.grounding_dino.modeling_grounding_dino import build_label_maps, build_text_mask

from training import arguments, scenes
from training.loop import Plan, chosen, export_averaged, torch_rng, train
from training.painted import Painted
from training.roughen import roughened

SCENES = 16_384
PLAN = Plan(steps=8000, batch_size=32, learning_rate=5e-4, warmup=300, cooldown=2000, weight_decay=1e-4)
SIDE = 128  # images of 64 pixels are enlarged to this size
# The ids of BERT's vocabulary. transformers' GroundingDINO detects the end of a phrase by them.
_SPECIAL = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, ".": 1012, "?": 1029}


def tokenizer() -> Any:
    """Return a BERT tokenizer with the ten nouns as whole tokens and single letters for all other text."""
    letters = string.ascii_lowercase + string.digits
    pieces = [*"!\"#$%&'()*+,-/:;<=>@[]_{|}~", *letters, *(f"##{letter}" for letter in letters), *scenes.nouns()]
    free = [number for number in range(1030) if number not in _SPECIAL.values()]
    pieces += [f"[unused{number}]" for number in range(len(free) - len(pieces))]
    vocabulary = {**_SPECIAL, **dict(zip(pieces, free, strict=True))}
    ordered = dict(sorted(vocabulary.items(), key=lambda item: item[1]))
    return tf.BertTokenizerFast(vocab=ordered, do_lower_case=True)


def processor() -> Any:
    """Return the processor. It enlarges images to `SIDE` and tokenizes the text."""
    images = tf.GroundingDinoImageProcessor(size={"shortest_edge": SIDE, "longest_edge": SIDE})
    return tf.GroundingDinoProcessor(images, tokenizer())


def build() -> Any:
    """Return a small `GroundingDinoForObjectDetection` with a small Swin and a small BERT."""
    swin = tf.SwinConfig(
        image_size=SIDE,
        patch_size=4,
        embed_dim=20,
        depths=[1, 1, 2, 1],
        num_heads=[1, 2, 4, 8],
        window_size=4,
        drop_path_rate=0.0,
        out_features=["stage2", "stage3", "stage4"],
    )
    bert = tf.BertConfig(
        vocab_size=1030,
        hidden_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=96,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    config = tf.GroundingDinoConfig(
        backbone_config=swin,
        text_config=bert,
        d_model=64,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=192,
        decoder_ffn_dim=192,
        num_queries=20,
        num_feature_levels=3,
        max_text_len=64,
        dropout=0.0,
        fusion_dropout=0.0,
        fusion_droppath=0.0,
        auxiliary_loss=True,
        two_stage=True,
        disable_custom_kernels=True,
    )
    model = tf.GroundingDinoForObjectDetection(config)
    with torch.no_grad():  # otherwise the initial scores are all 0 or 1
        model.model.decoder.layer_norm.weight *= 0.2
        model.model.enc_output_norm.weight *= 0.2
    model.model.backbone.conv_encoder.model.swin.layernorm.requires_grad_(
        False
    )  # the detector does not use its output
    return model


def boxes_of(mask: Tensor) -> tuple[list[int], list[list[float]]]:
    """Return the objects of a mask, uint8 (size, size): noun indices, and boxes (centre and size, 0 to 1)."""
    found, boxes = [], []
    size = len(mask)
    for number in torch.unique(mask).tolist():
        if number:
            rows, columns = (mask == number).any(dim=1).nonzero(), (mask == number).any(dim=0).nonzero()
            top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
            found.append(number - 1)
            boxes.append(
                [(left + right) / 2 / size, (top + bottom) / 2 / size, (right - left) / size, (bottom - top) / size]
            )
    return found, boxes


def loss_of(model: Any, step: int, *, data: Painted, objects: list[Any], words: Any, plan: Plan) -> Tensor:
    """Return the model's loss on roughened images, plus the loss of the encoder's box proposals.

    transformers computes the proposals but does not train them. The batch has one text, because the library's loss
    assigns wrong classes to batches of several texts.
    """
    picked = chosen(plan, len(data), step)
    order = scenes.counter_rng(plan.seed, "detector text", step).permutation(len(scenes.nouns())).tolist()
    text = " ".join(f"{scenes.nouns()[noun]}." for noun in order)
    labels = []
    for number in picked.tolist():
        there, boxes = objects[number]
        class_labels = torch.tensor([order.index(noun) for noun in there], dtype=torch.int64, device=plan.device)
        found = torch.tensor(boxes, dtype=torch.float32, device=plan.device).reshape(-1, 4)
        labels.append({"class_labels": class_labels, "boxes": found})
    tokens = words([text] * len(picked), return_token_type_ids=True, return_tensors="pt").to(plan.device)
    images = roughened(data.images[picked].float(), torch_rng(plan, "detector noise", step))
    output = model(pixel_values=pixels_of(images), **tokens, labels=labels)
    proposed = {
        "logits": output.enc_outputs_class,
        "pred_boxes": output.enc_outputs_coord_logits.sigmoid(),
        "label_maps": build_label_maps(output.enc_outputs_class, tokens.input_ids),
        "text_mask": build_text_mask(output.enc_outputs_class, tokens.attention_mask),
    }
    config = model.config
    matcher = GroundingDinoHungarianMatcher(config.class_cost, config.bbox_cost, config.giou_cost)
    losses = GroundingDinoImageLoss(matcher, config.focal_alpha, ["labels", "boxes"])(proposed, labels)
    weights = {"loss_ce": 2.0, "loss_bbox": config.bbox_loss_coefficient, "loss_giou": config.giou_loss_coefficient}
    loss: Tensor = output.loss + torch.stack([weight * losses[name] for name, weight in weights.items()]).sum()
    return loss


def pixels_of(images: Tensor) -> Tensor:
    """Return images, float (B, 3, size, size), 0 to 255, in the form of `processor`."""
    large = nn.functional.interpolate(images, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    mean, std = (
        torch.tensor(value, device=images.device).view(3, 1, 1)
        for value in (tf.image_utils.IMAGENET_DEFAULT_MEAN, tf.image_utils.IMAGENET_DEFAULT_STD)
    )
    return (large / 255 - mean) / std


def fit(folder: Path, data: Painted, plan: Plan = PLAN) -> Any:
    """Train, or resume from the folder's checkpoint. Returns: the averaged model."""
    torch.manual_seed(plan.seed)
    objects = [boxes_of(mask) for mask in data.masks]
    step = functools.partial(loss_of, data=data.to(plan.device), objects=objects, words=tokenizer(), plan=plan)
    return train(build(), step, plan, folder)


def export(folder: Path, target: Path) -> None:
    """Write the checkpoint's model in half precision, and its processor."""
    export_averaged(build(), processor(), folder, target)


def main() -> None:
    """Run the training program."""
    given = arguments.parser(__doc__, PLAN, SCENES, exports=True).parse_args()
    plan = arguments.plan_of(given, PLAN)
    if given.export:
        export(given.folder, given.export)
    else:
        arguments.fit_painted(given, plan, fit)


if __name__ == "__main__":
    main()
