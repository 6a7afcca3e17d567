"""Train the small SAM, transformers' model, on painted scenes: from an object's rough box to its mask.

    python -m training.segmenter FOLDER --data FOLDER
    python -m training.segmenter FOLDER --data FOLDER --export DIRECTORY

The loss is focal and dice loss on the mask, twenty to one, plus the squared error of the predicted IoU (Kirillov et
al. 2023, arXiv 2304.02643). Each image has one box. Only the single mask of `multimask_output=False` is trained.
"""

import functools
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers as tf
from torch import Tensor

from training import arguments, scenes
from training.detector import boxes_of
from training.loop import Plan, chosen, export_averaged, torch_rng, train
from training.painted import Painted
from training.roughen import roughened

SCENES = 16_384
PLAN = Plan(steps=6000, batch_size=32, learning_rate=1e-3, warmup=200, cooldown=2000, weight_decay=0.01)
_SIZES = {"image_size": scenes.SIZE, "patch_size": 4}
_JITTER = 0.1  # relative to a box's sides
_MEAN, _STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def processor() -> Any:
    """Return the processor. It does not resize images of 64 pixels."""
    side = scenes.SIZE
    images = tf.SamImageProcessor(
        size={"longest_edge": side},
        pad_size={"height": side, "width": side},
        mask_size={"longest_edge": side},
        mask_pad_size={"height": side, "width": side},
    )
    return tf.SamProcessor(images)


def build() -> Any:
    """Return a small `SamModel`."""
    heads = {"num_attention_heads": 4, "hidden_size": 64}
    model = tf.SamModel(
        tf.SamConfig(
            vision_config=tf.SamVisionConfig(
                **_SIZES,
                hidden_size=96,
                num_hidden_layers=3,
                num_attention_heads=4,
                global_attn_indexes=[2],
                window_size=8,
                output_channels=64,
                mlp_dim=192,
                num_pos_feats=32,
            ).to_dict(),
            prompt_encoder_config=tf.SamPromptEncoderConfig(
                **_SIZES, hidden_size=64, mask_input_channels=16
            ).to_dict(),
            mask_decoder_config=tf.SamMaskDecoderConfig(
                **heads, num_hidden_layers=2, mlp_dim=128, iou_head_hidden_dim=32
            ).to_dict(),
        )
    )
    prompts = model.prompt_encoder  # masks and points are not used as prompts
    for part in (prompts.mask_embed, prompts.point_embed[0], prompts.point_embed[1], prompts.not_a_point_embed):
        part.requires_grad_(False)
    return model


def loss_of(model: Any, step: int, *, data: Painted, objects: list[Any], with_objects: Tensor, plan: Plan) -> Tensor:
    """Return the loss for one object of each image of the batch."""
    picked = with_objects[chosen(plan, len(with_objects), step)]
    rng = scenes.counter_rng(plan.seed, "segmenter box", step)
    wanted, boxes = [], []
    for number in picked.tolist():
        there, found = objects[number]
        which = int(rng.integers(len(there)))
        x, y, width, height = found[which]
        corners = torch.tensor([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
        shift = torch.from_numpy(rng.uniform(-_JITTER, _JITTER, 4)) * torch.tensor([width, height] * 2)
        boxes.append(((corners + shift) * scenes.SIZE).clamp(0, scenes.SIZE))
        wanted.append(there[which] + 1)
    truth = (data.masks[picked] == torch.tensor(wanted, device=plan.device)[:, None, None]).float()
    images = roughened(data.images[picked].float(), torch_rng(plan, "segmenter noise", step))
    mean, std = (torch.tensor(value, device=plan.device).view(3, 1, 1) for value in (_MEAN, _STD))
    prompts = torch.stack(boxes).float().to(plan.device)[:, None]
    output = model(pixel_values=(images - mean) / std, input_boxes=prompts, multimask_output=False)
    logits = output.pred_masks[:, 0, 0].float()
    chance = logits.sigmoid()
    error = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    focal = (error * (1 - torch.where(truth > 0, chance, 1 - chance)) ** 2).mean()
    dice = 1 - (2 * (chance * truth).sum((1, 2)) + 1) / (chance.sum((1, 2)) + truth.sum((1, 2)) + 1)
    shown = logits > 0
    overlap = (shown & (truth > 0)).sum((1, 2)) / (shown | (truth > 0)).sum((1, 2)).clamp(min=1)
    quality = F.mse_loss(output.iou_scores[:, 0, 0].float(), overlap.float())
    loss: Tensor = 20 * focal + dice.mean() + quality
    return loss


def fit(folder: Path, data: Painted, plan: Plan = PLAN) -> Any:
    """Train, or resume from the folder's checkpoint. Returns: the averaged model."""
    torch.manual_seed(plan.seed)
    objects = [boxes_of(mask) for mask in data.masks]
    with_objects = torch.tensor([index for index, (there, _) in enumerate(objects) if there], device=plan.device)
    step = functools.partial(
        loss_of, data=data.to(plan.device), objects=objects, with_objects=with_objects, plan=plan
    )
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
