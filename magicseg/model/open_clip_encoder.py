"""An open_clip vision transformer as an `Encoder`, run layer by layer.

Without prompts it is open_clip's own forward pass: the class token's embedding is ``encode_image``, and the patches
get the same last norm and projection (as in MaskCLIP, Zhou et al. 2022, arXiv 2112.01071, but with the last attention
unchanged). Images' sides are multiples of the patch; the positional embedding is resized to the image's grid.
"""

import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer, default_bpe
from torch import Tensor, nn

from magicseg.config.model import OpenClipSettings
from magicseg.core.errors import BackendError, ConfigError, DataError
from magicseg.core.text import printable
from magicseg.labels.distinct import known_tokens
from magicseg.model.clip_checkpoint import CONFIG, ClipBlueprint, build_clip, pretrained_clip

PositionResize = Literal["bicubic", "bilinear"]

_TEXTS = 256  # per call of the text tower


class OpenClipEncoder(nn.Module):
    """Both towers of an open_clip model.

    Args: clip: the model. blueprint: builds it without its weights. position_resize: see `resize_positions`.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, clip: nn.Module, blueprint: ClipBlueprint, *, position_resize: PositionResize = "bicubic"
    ) -> None:
        super().__init__()
        self.clip = clip
        self.blueprint = blueprint
        self.position_resize: PositionResize = position_resize
        visual: Any = clip.visual
        self.stride: int = visual.patch_size[0]
        if visual.patch_size[0] != visual.patch_size[1]:
            raise ConfigError(f"patches of {visual.patch_size} pixels are not square")
        self.layers = len(self.blocks)
        self.width: int = visual.transformer.width
        self.embed_dim: int = visual.proj.shape[1]
        self.register_buffer("mean", torch.tensor(blueprint.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(blueprint.std).view(3, 1, 1), persistent=False)
        for name, parameter in clip.named_parameters():  # of the contrastive loss, which is not used
            if name in {"logit_scale", "logit_bias"}:
                parameter.requires_grad_(False)

    @functools.cached_property
    def tokenize(self) -> Any:
        """The tokenizer: texts to int64 (K, context length). Raises BackendError if it cannot be loaded."""
        return _tokenizer(self.blueprint)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width that the positional embedding is made for, pixels."""
        visual: Any = self.clip.visual
        height, width = visual.image_size
        return int(height), int(width)

    @property
    def blocks(self) -> nn.ModuleList:
        """The image tower's layers."""
        visual: Any = self.clip.visual
        return cast("nn.ModuleList", visual.transformer.resblocks)

    def embed(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        if height % self.stride or width % self.stride:
            raise DataError(f"an image of {height} x {width} pixels does not fit the stride {self.stride}")
        visual: Any = self.clip.visual
        pixels = (images.to(visual.conv1.weight.dtype) / 255 - self.mean) / self.std
        patches = visual.conv1(pixels).flatten(2).transpose(1, 2)
        classes = visual.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
        positions = resize_positions(
            visual.positional_embedding,
            visual.grid_size,
            (height // self.stride, width // self.stride),
            mode=self.position_resize,
        )
        tokens = torch.cat([classes, patches], dim=1) + positions.to(patches.dtype)
        return cast("Tensor", visual.ln_pre(tokens))

    def block(self, layer: int, tokens: Tensor) -> Tensor:
        return cast("Tensor", self.blocks[layer](tokens))

    def head(self, tokens: Tensor) -> Tensor:
        visual: Any = self.clip.visual
        normal = visual.ln_post(tokens)
        if visual.pool_type == "avg":
            patches = normal[:, 1:]
            pooled = (
                visual.ln_post(tokens[:, 1:].mean(1, keepdim=True))
                if visual.final_ln_after_pool
                else patches.mean(1, keepdim=True)
            )
            normal = torch.cat([pooled, patches], dim=1)
        return cast("Tensor", normal @ visual.proj)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        clip: Any = self.clip
        device = self.mean.device
        parts = [
            clip.encode_text(self.tokenize(list(texts[start : start + _TEXTS])).to(device))
            for start in range(0, len(texts), _TEXTS)
        ]
        return torch.cat(parts) if parts else torch.zeros(0, self.embed_dim, device=device)

    def text_tokens(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        rows = self.tokenize(list(texts)).tolist() if texts else []
        inner = getattr(
            self.tokenize, "tokenizer", None
        )  # of transformers; open_clip's own tokenizer has a token for every byte
        unknown = getattr(inner, "unk_token_id", None)
        return [known_tokens(row, unknown=unknown, special=()) for row in rows]

    def text_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Return names (in this module) and parameters of the text tower."""
        return (
            (f"clip.{name}", parameter)
            for name, parameter in self.clip.named_parameters()
            if not name.startswith(("visual.", "logit_"))
        )

    def text_identity(self) -> dict[str, str]:
        """Return digests of the text tower's weights and of the tokenizer, and the text configuration."""
        weights = hashlib.sha256()
        for name, parameter in self.text_parameters():
            value = parameter.detach().cpu().contiguous()
            weights.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
            weights.update(value.view(torch.uint8).numpy().data)
        text = dict(self.blueprint.config["text_cfg"])
        return {
            "weights": f"sha256:{weights.hexdigest()}",
            "tokenizer": _tokenizer_digest(self.blueprint.tokenizer),
            "text_cfg": repr(sorted(text.items())),
            "quick_gelu": str(bool(self.blueprint.config.get("quick_gelu"))),
        }

    def save_tokenizer(self, folder: Path) -> bool:
        """Write the tokenizer's files, unless it is open_clip's own; return whether files were written."""
        if not isinstance(self.tokenize, HFTokenizer):
            return False
        self.tokenize.save_pretrained(str(folder))
        return True


def open_clip_encoder(settings: OpenClipSettings) -> OpenClipEncoder:
    """Return the encoder that the settings name, with its weights on the CPU in float32.

    Raises: ConfigError, BackendError, as `magicseg.model.clip_checkpoint.pretrained_clip`.
    """
    clip, blueprint = pretrained_clip(settings)
    visual: Any = clip.visual
    size = settings.image_size
    if size is not None:
        patch = visual.patch_size[0]
        if size % patch:
            raise ConfigError(f"encoder.image_size is {size}, not a multiple of the patch of {patch} pixels")
        grid = (size // patch, size // patch)
        resized = resize_positions(
            visual.positional_embedding.detach(), visual.grid_size, grid, mode=settings.position_resize
        )
        visual.positional_embedding = nn.Parameter(
            resized.clone(), requires_grad=visual.positional_embedding.requires_grad
        )
        visual.grid_size, visual.image_size = grid, (size, size)
        config = dict(blueprint.config)
        config["vision_cfg"] = {**config["vision_cfg"], "image_size": size}
        blueprint = ClipBlueprint(
            config=config, mean=blueprint.mean, std=blueprint.std, tokenizer=blueprint.tokenizer
        )
    encoder = OpenClipEncoder(clip, blueprint, position_resize=settings.position_resize)
    _ = encoder.tokenize
    return encoder


def empty_encoder(
    settings: OpenClipSettings, blueprint: Mapping[str, Any], tokenizer: Path | None
) -> OpenClipEncoder:
    """Return a saved model's encoder before its weights are loaded. Raises: ConfigError, KeyError, TypeError."""
    made = ClipBlueprint.from_dict(blueprint, tokenizer=tokenizer)
    return OpenClipEncoder(build_clip(made), made, position_resize=settings.position_resize)


def resize_positions(
    positions: Tensor, old: tuple[int, int], new: tuple[int, int], *, mode: PositionResize = "bicubic"
) -> Tensor:
    """Resize a positional embedding to another grid. The class token's entry stays.

    Args: positions: float (1 + h * w, C), the class token's first. old, new: (h, w) in patches. mode: "bicubic" with
    antialiasing, as open_clip's ``resize_pos_embed``, or "bilinear" without, as the paper's release.
    Returns: float (1 + new h * new w, C).
    """
    if tuple(old) == tuple(new):
        return positions
    grid = positions[1:].reshape(1, *old, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=new, mode=mode, antialias=mode == "bicubic", align_corners=False)
    return torch.cat([positions[:1], grid.flatten(2)[0].T])


def _tokenizer(blueprint: ClipBlueprint) -> Any:
    text = dict(blueprint.config["text_cfg"])
    length = text.get("context_length", 77)
    options = dict(text.get("tokenizer_kwargs") or {})  # checked by `check_clip_config`
    try:
        if blueprint.tokenizer is None:
            return SimpleTokenizer(context_length=length, **options)
        return HFTokenizer(
            str(blueprint.tokenizer),
            context_length=length,
            tokenizer_mode=text.get("tokenizer_mode"),
            local_files_only=True,
            trust_remote_code=False,
            **options,
        )
    except Exception as error:  # the libraries raise whatever their parsers raise
        raise BackendError(
            f"{blueprint.tokenizer or 'the model'}: its tokenizer cannot be loaded: {printable(str(error), 300)}"
        ) from error


def _tokenizer_digest(folder: Path | None) -> str:
    files = [Path(default_bpe())] if folder is None else _tokenizer_files(folder)
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\n".encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return f"sha256:{digest.hexdigest()}"


def _tokenizer_files(folder: Path) -> list[Path]:
    kinds = {".json", ".model", ".txt"}
    return sorted(file for file in folder.iterdir() if file.suffix in kinds and file.name != CONFIG)
