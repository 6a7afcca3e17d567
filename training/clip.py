"""Train the small CLIP: open_clip's vision transformer and text tower, on painted scenes and their captions.

    python -m training.clip FOLDER --data FOLDER
    python -m training.clip FOLDER --data FOLDER --export DIRECTORY

The loss has three terms. None of them uses masks:

- captions against images (Radford et al. 2021, arXiv 2103.00020);
- the segmenter's class texts, and a text of the empty scene, against images;
- the same texts against patches, using the object's place and size in the caption (`patch_loss`).

Until the cooldown, only half of the patches are used (Li et al. 2022, arXiv 2212.00794), which takes less than half
of the time.
"""

import functools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from training import arguments, scenes
from training.loop import Plan, averaged, chosen, torch_rng, train
from training.painted import Answers, Painted
from training.roughen import roughened
from training.tokens import LENGTH, token_ids, write_tokenizer

SCENES = 16_384
PLAN = Plan(
    steps=18_000,
    batch_size=32,
    learning_rate=2e-3,
    warmup=200,
    cooldown=3000,
    weight_decay=0.05,
    muon="resblocks",
)
TEMPLATE = "a photo of a {}"
NOTHING = "empty scene"  # inserted into the template for a scene without objects
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
_PATCH_WEIGHT = 3.0
_RANKED_WEIGHT = 4.0


@dataclass(frozen=True)
class Sizes:
    """The sizes of both towers."""

    width: int = 96
    layers: int = 4
    text_layers: int = 2
    embed_dim: int = 96
    patch: int = 4
    head_width: int = 48


class Towers(nn.Module):
    """An open_clip model with additional parameters for training: the scales of the class terms."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.clip: Any = open_clip.CLIP(**config)
        self.class_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.patch_scale = nn.Parameter(torch.tensor(math.log(10.0)))

    def images(self, pixels: Tensor, kept: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return unit embeddings of images (B, D) and of patches (B, N, D).

        Args: pixels: float (B, 3, H, W), 0 to 255. kept: int64 (B, N), the indices of the patches to use; None for
        all patches in order.
        """
        visual = self.clip.visual
        mean, std = (torch.tensor(value).to(pixels.device).view(3, 1, 1) for value in (MEAN, STD))
        tokens = visual._embeds((pixels / 255 - mean) / std)
        if kept is not None:
            chosen = tokens[:, 1:].gather(1, kept[..., None].expand(-1, -1, tokens.shape[2]))
            tokens = torch.cat([tokens[:, :1], chosen], dim=1)
        tokens = visual.transformer(tokens)
        joint = F.normalize((visual.ln_post(tokens) @ visual.proj).float(), dim=-1)
        return joint[:, 0], joint[:, 1:]

    def texts(self, tokens: Tensor) -> Tensor:
        """Return unit embeddings (K, D) of tokens, int64 (K, L)."""
        return F.normalize(self.clip.encode_text(tokens).float(), dim=-1)


def config_of(sizes: Sizes, vocabulary: int) -> dict[str, Any]:
    """Return open_clip's ``model_cfg``."""
    return {
        "embed_dim": sizes.embed_dim,
        "vision_cfg": {
            "image_size": scenes.SIZE,
            "layers": sizes.layers,
            "width": sizes.width,
            "head_width": sizes.head_width,
            "patch_size": sizes.patch,
        },
        "text_cfg": {
            "context_length": LENGTH,
            "vocab_size": vocabulary,
            "width": sizes.width,
            "heads": sizes.width // sizes.head_width,
            "layers": sizes.text_layers,
            "hf_tokenizer_name": ".",
        },
    }


def loss_of(towers: Any, step: int, *, data: Painted, plan: Plan, classes: Tensor) -> Tensor:
    """Return the sum of the three terms.

    Args: classes: int64 (nouns + 1, L), the tokens of the class texts, with the text of the empty scene last.
    """
    picked = chosen(plan, len(data), step)
    pixels = roughened(data.images[picked].float(), torch_rng(plan, "clip noise", step))
    side = scenes.SIZE // towers.clip.visual.patch_size[0]
    kept = None if plan.cools(step) else _half(len(picked), side**2, plan, step)
    image, patches = towers.images(pixels, kept)
    tokens, present = data.tokens[picked].long(), data.answers.present[picked]
    text, named = towers.texts(tokens), towers.texts(classes)

    # Samples with equal captions are positives of each other.
    same = (tokens[:, None] == tokens[None]).all(dim=2).float()
    wanted = same / same.sum(dim=1, keepdim=True)
    logits = towers.clip.logit_scale.clamp(max=math.log(100)).exp() * image @ text.T
    contrast = (F.cross_entropy(logits, wanted) + F.cross_entropy(logits.T, wanted.T)) / 2

    answers = torch.cat([present, (present.sum(dim=1, keepdim=True) == 0).to(present)], dim=1)
    shares = answers / answers.sum(dim=1, keepdim=True)
    of_image = F.cross_entropy(towers.class_scale.exp() * image @ named.T, shares)

    indices = torch.arange(side**2, device=pixels.device)[None] if kept is None else kept
    dense = patch_loss(towers.patch_scale.exp() * patches @ named.T, data.answers.pick(picked), indices % side, side)
    return contrast + of_image + _PATCH_WEIGHT * dense


def _half(batch: int, patches: int, plan: Plan, step: int) -> Tensor:
    """Return a random half of each image's patches, as indices: int64 (batch, patches / 2)."""
    order = torch.rand(batch, patches, generator=torch_rng(plan, "kept patches", step), device=plan.device)
    return order.argsort(dim=1)[:, : patches // 2]


def patch_loss(logits: Tensor, answers: Answers, column: Tensor, side: int) -> Tensor:
    """Return the loss of patch classification, with labels from captions: one class or the empty scene per patch.

    First term: a patch may show the caption's objects whose place contains it, or the empty scene. The loss is the
    negative logarithm of the total probability of these classes (Jin and Ghahramani 2002: learning with multiple
    labels). So all patches of an empty scene have a known label.

    Second term: among the patches where an object may be, the most likely patches show it. Their number is unknown.
    The logarithm of the object's area is taken as uniform between the smallest and the largest area for its size
    word. Then the k-th most likely patch shows the object with the fraction of areas above k as probability, and the
    empty scene otherwise. The loss is the cross-entropy with these probabilities. The empty scene counts only if no
    other object may be in the patch.

    Args: logits: (B, N, nouns + 1), with the empty scene last. answers: of B scenes. column: int64 (B or 1, N), the
    column of each patch. side: number of columns.
    """
    likely = logits.log_softmax(dim=-1)
    count = logits.shape[1]
    across = ((column + 0.5) / side)[..., None]
    low, high = answers.columns[:, None, :, 0], answers.columns[:, None, :, 1]
    there = answers.present > 0
    inside = there[:, None] & (across > low) & (across < high)  # (B, N, nouns)
    may = torch.cat([inside, torch.ones_like(inside[..., :1])], dim=2)
    partial = -likely.masked_fill(~may, -math.inf).logsumexp(dim=2).mean()

    shown, order = likely[..., :-1].masked_fill(~inside, -math.inf).sort(dim=1, descending=True)
    empty = likely[..., -1:].expand_as(shown).gather(1, order)
    rank = (torch.arange(count, device=logits.device)[None, :, None] + 0.5).log()
    least, most = (answers.areas.clamp(min=1 / count) * count).log().transpose(1, 2)[:, :, None].unbind(dim=1)
    shares = ((most - rank) / (most - least).clamp(min=1e-3)).clamp(0, 1)  # fraction of areas above this rank
    alone = (there.sum(dim=1) == 1)[:, None, None]
    ranked = -torch.where(inside.gather(1, order), shares * shown + alone * (1 - shares) * empty, 0).sum() / count
    return partial + _RANKED_WEIGHT * ranked / there.sum().clamp(min=1)


def build(sizes: Sizes, tokenizer: Any) -> Towers:
    """Return the model with initial weights from torch's global generator."""
    return Towers(config_of(sizes, len(tokenizer)))


def fit(folder: Path, data: Painted, plan: Plan = PLAN, *, sizes: Sizes | None = None) -> nn.Module:
    """Train, or resume from the folder's checkpoint. Returns: the averaged model."""
    tokenizer = write_tokenizer(folder / "tokenizer")
    names = [*scenes.nouns(), NOTHING]
    classes = token_ids(tokenizer, [TEMPLATE.format(name) for name in names]).to(plan.device)
    torch.manual_seed(plan.seed)
    model = build(sizes or Sizes(), tokenizer)
    loss = functools.partial(loss_of, data=data.to(plan.device), plan=plan, classes=classes)
    return train(model, loss, plan, folder)


def load(folder: Path, sizes: Sizes | None = None) -> tuple[Towers, Any, int]:
    """Return the averaged model of a folder, its tokenizer, and its number of steps."""
    tokenizer = write_tokenizer(folder / "tokenizer")
    towers = build(sizes or Sizes(), tokenizer)
    step = averaged(towers, folder)
    return towers.eval().requires_grad_(False), tokenizer, step


def export(towers: Towers, tokenizer: Any, target: Path, sizes: Sizes | None = None) -> None:
    """Write the model in open_clip's ``local-dir:`` format, weights in half precision."""
    write_tokenizer(target)
    state = {name: value.half().contiguous() for name, value in towers.clip.cpu().state_dict().items()}
    save_file(state, target / "open_clip_model.safetensors")
    stored = {
        "model_cfg": config_of(sizes or Sizes(), len(tokenizer)),
        "preprocess_cfg": {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "squash"},
    }
    (target / "open_clip_config.json").write_text(json.dumps(stored, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Run the training program."""
    given = arguments.parser(__doc__, PLAN, SCENES, exports=True).parse_args()
    plan = arguments.plan_of(given, PLAN)
    if given.export:
        towers, tokenizer, steps = load(given.folder)
        export(towers, tokenizer, given.export)
        print(f"{given.export}: after {steps} steps")
    else:
        arguments.fit_painted(given, plan, fit)


if __name__ == "__main__":
    main()
