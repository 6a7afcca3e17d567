"""Load open_clip models from local files: architecture, pixel normalisation, and weights that fit exactly.

The hub is never queried and nothing is unpickled. A mismatch that would load without an error and spoil results is
refused. The main one is the activation: OpenAI's weights need QuickGELU, and also load into a model with GELU.
"""

import copy
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast

import open_clip
import torch
from open_clip.model import CLIP, CustomTextCLIP, convert_to_custom_text_state_dict
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import load_file
from torch import Tensor, nn

from magicseg.config.model import ModelSettings, OpenClipSettings, encoder_weights
from magicseg.core.documents import read_json
from magicseg.core.errors import BackendError, ConfigError
from magicseg.model.clip_config import check_clip_config
from magicseg.weights import Weights
from magicseg.weights.cache import location
from magicseg.weights.hashing import path_identity

CONFIG = "open_clip_config.json"

# OpenAI's own files hold these beside the weights; other checkpoints do not.
_OPENAI_KEYS = ("input_resolution", "context_length", "vocab_size")
# open_clip_model.safetensors of timm/vit_base_patch16_clip_224.openai
_OPENAI_FILES = {"sha256:4b8699299b1e8997753c64b052ba32031449d5d853f55a039148560ee02b820f"}
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json", "spiece.model")


@dataclass(frozen=True, kw_only=True)
class ClipBlueprint:
    """An open_clip model without its weights.

    ``config``: open_clip's ``model_cfg``. ``mean`` and ``std``: of pixels in [0, 1], RGB. ``tokenizer``: a folder
    with a tokenizer's files; None: open_clip's own tokenizer.
    """

    config: Mapping[str, Any]
    mean: tuple[float, float, float] = open_clip.OPENAI_DATASET_MEAN
    std: tuple[float, float, float] = open_clip.OPENAI_DATASET_STD
    tokenizer: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, without the tokenizer's path."""
        return {"config": dict(self.config), "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, tokenizer: Path | None) -> "ClipBlueprint":
        """Reverse `to_dict`. Raises KeyError or TypeError if ``data`` has another form."""
        mean, std = (cast("tuple[float, float, float]", tuple(map(float, data[key]))) for key in ("mean", "std"))
        return cls(config=dict(data["config"]), mean=mean, std=std, tokenizer=tokenizer)


def pretrained_clip(settings: OpenClipSettings) -> tuple[nn.Module, ClipBlueprint]:
    """Return the model that the settings name, with its weights, or with random ones from torch's global generator.

    Raises: ConfigError if the architecture does not exist, is not supported, or does not fit the weights;
    BackendError if a file is missing or cannot be read.
    """
    found = encoder_weights(ModelSettings(encoder=settings))
    place = location(found[0]) if found else None
    blueprint = _blueprint(settings, place)
    if place is None:
        return build_clip(blueprint), blueprint
    assert settings.weights is not None
    file = place if settings.weights.is_one_file else place / settings.weights.file
    tensors, is_openai = _read(file)
    _refuse_wrong_activation(settings, blueprint, file, is_openai=is_openai)
    tensors = _fitting(blueprint, tensors, file, settings.architecture or CONFIG)
    clip = build_clip(blueprint)
    clip.load_state_dict(tensors)
    return clip, blueprint


def build_clip(blueprint: ClipBlueprint) -> nn.Module:
    """Return the blueprint's model with random weights. Raises ConfigError if this kind is not supported."""
    check_clip_config(blueprint.config, CONFIG)
    config = copy.deepcopy(dict(blueprint.config))
    config["vision_cfg"]["patch_dropout"] = 0.0  # dropped patches would have no mask
    kind = CustomTextCLIP if config.pop("custom_text", False) else CLIP
    try:
        return cast("nn.Module", kind(**config))
    except (TypeError, ValueError, AssertionError, RuntimeError, ArithmeticError) as error:
        raise ConfigError(f"open_clip cannot build this model: {error}") from error


def _blueprint(settings: OpenClipSettings, place: Path | None) -> ClipBlueprint:
    folder = place if place is not None and place.is_dir() else None
    file = folder / CONFIG if folder else None
    stored = _read_config(file) if file is not None and file.is_file() else None
    config = stored.model_cfg if stored else None
    if settings.architecture:
        named = open_clip.get_model_config(settings.architecture)
        if named is None:
            near = difflib.get_close_matches(settings.architecture, open_clip.list_models(), n=5, cutoff=0.3)
            raise ConfigError(
                f"encoder.architecture: open_clip {open_clip.__version__} knows no {settings.architecture!r}",
                hint=f"similar names: {', '.join(near)}",
            )
        if config is not None and _is_quick(config) != _is_quick(named):
            raise _wrong_activation(settings.architecture, f"{file} says so", quick=_is_quick(config))
        config = named
    assert config is not None  # settings require an architecture, or a folder with a configuration
    name = config.get("text_cfg", {}).get("hf_tokenizer_name")
    if name and not (folder and any((folder / each).is_file() for each in _TOKENIZER_FILES)):
        raise ConfigError(
            f"this open_clip model needs the tokenizer {name!r}, which is on the hub",
            hint=f"put the weights, {CONFIG} and the tokenizer's files into one folder; set encoder.weights to it",
        )
    kept = stored.preprocess_cfg.model_dump(exclude_none=True) if stored else {}
    normal = {key: tuple(value) for key, value in kept.items()}
    return ClipBlueprint(config=config, tokenizer=folder if name else None, **normal)


class _Preprocessing(BaseModel):
    mean: Annotated[list[float], Field(min_length=3, max_length=3)] | None = None
    std: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=3, max_length=3)] | None = None


class _ConfigFile(BaseModel):
    """open_clip_config.json."""

    model_config = ConfigDict(protected_namespaces=(), allow_inf_nan=False)

    model_cfg: dict[str, Any]
    preprocess_cfg: _Preprocessing = _Preprocessing()


def _read_config(file: Path) -> _ConfigFile:
    stored = read_json(file, _ConfigFile, error=BackendError, hint="fetch the checkpoint again")
    check_clip_config(stored.model_cfg, file)
    return stored


def _read(file: Path) -> tuple[dict[str, Tensor], bool]:
    """Return a checkpoint's tensors, and whether its other keys are those of OpenAI's files."""
    try:
        data: Any = (
            load_file(file)
            if file.suffix == ".safetensors"
            else torch.load(file, map_location="cpu", weights_only=True)
        )
    except FileNotFoundError as error:
        raise BackendError(f"{file}: there is no such file", hint="correct encoder.weights") from error
    except Exception as error:  # pickles and archives fail in many ways
        raise _unreadable(file, error) from error
    if isinstance(data, Mapping) and isinstance(data.get("state_dict"), Mapping):
        data = data["state_dict"]
    if not isinstance(data, Mapping) or not data:
        raise BackendError(f"{file}: holds {type(data).__name__}, not tensors by name")
    tensors = {str(key).removeprefix("module."): value for key, value in data.items()}
    is_openai = any(key in tensors for key in _OPENAI_KEYS)
    return {key: value for key, value in tensors.items() if key not in _OPENAI_KEYS}, is_openai


def _unreadable(file: Path, error: Exception) -> BackendError:
    if "TorchScript" in str(error):
        new = file.with_name(f"{file.stem}-state.pt")
        return BackendError(
            f"{file}: is a TorchScript archive (OpenAI's own files are), which is a program and not only weights",
            hint='if you trust it: python -c "import torch; torch.save(torch.jit.load('
            f"'{file}', map_location='cpu').state_dict(), '{new}')\", then name {new.name}",
        )
    return BackendError(
        f"{file}: cannot be read as weights alone: {type(error).__name__}: {str(error).partition(chr(10))[0]}",
        hint="save its state_dict() again, as .safetensors or with torch.save",
    )


def _is_quick(config: Mapping[str, Any]) -> bool:
    return bool(config.get("quick_gelu"))


def _refuse_wrong_activation(
    settings: OpenClipSettings, blueprint: ClipBlueprint, file: Path, *, is_openai: bool
) -> None:
    """Raise ConfigError if the weights are known to need another activation than the model's."""
    assert settings.weights is not None
    known: tuple[bool, str] | None = None
    if is_openai:
        known = True, f"{file} holds {', '.join(_OPENAI_KEYS)}, as OpenAI's own files do"
    elif settings.weights.revision is not None:
        for name, tag in open_clip.list_pretrained():
            one = open_clip.get_pretrained_cfg(name, tag)
            if str(one.get("hf_hub", "")).rstrip("/") == settings.weights.model:
                known = _is_quick(one), f"open_clip lists {settings.weights.model} as {name}'s {tag!r}"
                break
    elif settings.weights.is_one_file:
        found = Weights(setting="encoder.weights.model", model=str(file))
        if path_identity(found, found.setting) in _OPENAI_FILES:
            known = True, f"{file} is OpenAI's ViT-B/16, by its digest"
    if known and known[0] != _is_quick(blueprint.config):
        raise _wrong_activation(settings.architecture, known[1], quick=known[0])


def _wrong_activation(architecture: str | None, why: str, *, quick: bool) -> ConfigError:
    kinds = ("QuickGELU", "GELU") if quick else ("GELU", "QuickGELU")
    if architecture is None:
        hint = f'set "quick_gelu": {str(quick).lower()} in the model_cfg of {CONFIG}'
    else:
        plain = architecture.removesuffix("-quickgelu")
        hint = f"encoder.architecture={f'{plain}-quickgelu' if quick else plain}"
    return ConfigError(
        f"these weights were trained with {kinds[0]}, and {architecture or CONFIG} has {kinds[1]}: they would load, "
        f"and give wrong results ({why})",
        hint=hint,
    )


def _fitting(
    blueprint: ClipBlueprint, tensors: dict[str, Tensor], file: Path, architecture: str
) -> dict[str, Tensor]:
    """Return weights under the names of the blueprint's model, which is not allocated here.

    Raises ConfigError if a tensor is missing, unexpected or of another shape.
    """
    with torch.device("meta"):
        clip = build_clip(blueprint)
    wanted = clip.state_dict()
    if isinstance(clip, CustomTextCLIP):
        tensors = convert_to_custom_text_state_dict(tensors)  # files may be older than this kind of model
    scale = tensors.get("logit_scale")
    if scale is not None and scale.numel() == 1:  # a scalar in some files, one entry in others
        tensors = {**tensors, "logit_scale": scale.reshape(wanted["logit_scale"].shape)}
    missing = sorted(wanted.keys() - tensors.keys())
    unexpected = sorted(tensors.keys() - wanted.keys())
    shapes = [
        f"{name} is {tuple(tensors[name].shape)}, not {tuple(wanted[name].shape)}"
        for name in sorted(wanted.keys() & tensors.keys())
        if tensors[name].shape != wanted[name].shape
    ]
    if missing or unexpected or shapes:
        faults = [
            f"{len(found)} {what}: {', '.join(found[:3])}{', …' if len(found) > 3 else ''}"
            for what, found in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
            if found
        ]
        raise ConfigError(f"{file} does not fit {architecture}: {'; '.join(faults)}", hint=_remedy(tensors))
    return tensors


def _remedy(tensors: Mapping[str, Tensor]) -> str:
    if any(name.startswith(("vision_model.", "text_model.")) for name in tensors):
        return "this is a CLIP of transformers; take open_clip's file of the same weights"
    if not any(name.startswith("visual.") for name in tensors):
        return "this is not an open_clip checkpoint: it has no tensor named visual.*"
    likely = [name for name in open_clip.list_models() if _shape_of(tensors) == _shape_in(name)]
    return (
        f"architectures of this shape: {', '.join(likely)}"
        if likely
        else "no architecture of open_clip has this shape"
    )


def _shape_of(tensors: Mapping[str, Tensor]) -> tuple[int, ...] | None:
    """Return width, patch, layers and tokens of the image tower, joint width and text width; None if unknown."""
    try:
        width, _, _, patch = tensors["visual.conv1.weight"].shape
        blocks = {name.split(".")[3] for name in tensors if name.startswith("visual.transformer.resblocks.")}
        text = next(value for name, value in tensors.items() if name.endswith("ln_final.weight"))
        tokens = len(tensors["visual.positional_embedding"])
        return width, patch, len(blocks), tokens, tensors["visual.proj"].shape[1], len(text)
    except (KeyError, ValueError, IndexError, StopIteration):
        return None


def _shape_in(name: str) -> tuple[int, ...] | None:
    config = open_clip.get_model_config(name)
    vision = {"layers": 12, "width": 768, "patch_size": 16, "image_size": 224, **config["vision_cfg"]}
    if vision.get("timm_model_name") or not isinstance(vision["layers"], int):
        return None
    tokens = (vision["image_size"] // vision["patch_size"]) ** 2 + 1
    text = config["text_cfg"].get("width", 512)
    return vision["width"], vision["patch_size"], vision["layers"], tokens, config["embed_dim"], text
