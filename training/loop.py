"""The training loop of all models in this folder: deterministic, and resumable bit for bit after a kill.

The batch and the random numbers of step i depend only on (seed, i). All other state of a step is in the checkpoint,
one safetensors file that is replaced atomically. So interruptions do not affect the loss curve.
"""

import itertools
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor, nn

from magicseg.core.files import write_atomic
from training.scenes import counter_rng

CHECKPOINT = "checkpoint.safetensors"
CURVE = "curve.jsonl"
STATE = "state.json"  # the checkpoint's step and plan, for readers

# Keys of an optimiser's state per parameter.
_MOMENTS: dict[type[torch.optim.Optimizer], tuple[str, ...]] = {
    torch.optim.AdamW: ("exp_avg", "exp_avg_sq"),
    torch.optim.Muon: ("momentum_buffer",),
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The hyperparameters of a training. ``steps`` may be raised later, until the ``cooldown`` begins."""

    steps: int
    batch_size: int
    learning_rate: float
    warmup: int = 200
    cooldown: int = 0  # last steps, in which the learning rate decays linearly to zero
    weight_decay: float = 0.01
    muon: str = ""  # a pattern of names of matrices for Muon; AdamW updates all other parameters
    clip: float = 1.0  # maximum norm of the gradient
    average: float = 0.999  # decay of the moving average of the weights, which is exported
    seed: int = 0
    precision: Literal["float32", "bfloat16"] = "float32"
    device: str = "cpu"
    save_seconds: float = 120.0
    log_every: int = 25

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        down = (self.steps - step) / self.cooldown if self.cools(step) else 1.0
        return self.learning_rate * min(1.0, (step + 1) / max(self.warmup, 1)) * down

    def cools(self, step: int) -> bool:
        """Return whether a step, counted from 0, belongs to the cooldown."""
        return step >= self.steps - self.cooldown


def torch_rng(plan: Plan, stream: str, step: int) -> torch.Generator:
    """Return the random generator of one step, on the plan's device."""
    number = int(counter_rng(plan.seed, stream, step).integers(0, 2**63))
    return torch.Generator(plan.device).manual_seed(number)


def chosen(plan: Plan, count: int, step: int) -> Tensor:
    """Return the indices of a step's batch among ``count`` samples: int64 (batch), on the plan's device."""
    drawn = counter_rng(plan.seed, "batch", step).integers(0, count, plan.batch_size)
    return torch.from_numpy(drawn).to(plan.device)


def train(
    model: nn.Module,
    loss_of: Callable[[nn.Module, int], Tensor],
    plan: Plan,
    folder: Path,
) -> nn.Module:
    """Train ``model`` to the plan's last step, from the folder's checkpoint, or from its current weights.

    Args: loss_of: the loss of a step, from (model, step).
    Returns: the model with the averaged weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model.to(plan.device).train()
    named = {name: value for name, value in model.named_parameters() if value.requires_grad}
    weights = list(named.values())
    optimisers = optimisers_of(named, plan)
    average = {name: value.detach().clone() for name, value in model.state_dict().items()}
    start = _resume(model, named, optimisers, average, plan, folder / CHECKPOINT)
    _cut(folder / CURVE, start)
    began = saved = time.monotonic()
    losses: list[Tensor] = []
    for step in range(start, plan.steps):
        for group in itertools.chain.from_iterable(each.param_groups for each in optimisers):
            group["lr"] = plan.rate(step)
        with torch.autocast(torch.device(plan.device).type, torch.bfloat16, enabled=plan.precision == "bfloat16"):
            loss = loss_of(model, step)
        model.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(weights, plan.clip)
        for optimiser in optimisers:
            optimiser.step()
        _follow(average, model, min(plan.average, (1 + step) / (10 + step)))
        losses.append(loss.detach())
        done = step + 1
        if done % plan.log_every == 0 or done == plan.steps:
            mean = float(torch.stack(losses).double().mean())
            losses.clear()
            _note(folder / CURVE, {"step": done, "loss": mean, "seconds": round(time.monotonic() - began, 1)})
        now = time.monotonic()
        if now - saved >= plan.save_seconds and done % plan.log_every == 0:  # the curve's means restart there
            _save(model, named, optimisers, average, plan, done, folder / CHECKPOINT)
            saved = now
    if start < plan.steps:
        _save(model, named, optimisers, average, plan, plan.steps, folder / CHECKPOINT)
    model.load_state_dict(average)
    return model.eval()


def optimisers_of(named: Mapping[str, nn.Parameter], plan: Plan) -> list[torch.optim.Optimizer]:
    """Return AdamW, and Muon (Jordan et al. 2024, scaled as in arXiv 2502.16982) for matrices of ``plan.muon``."""
    matrices = {name for name, value in named.items() if plan.muon and value.ndim == 2 and re.search(plan.muon, name)}
    others = [value for name, value in named.items() if name not in matrices]
    groups = [
        {"params": [value for value in others if value.ndim > 1], "weight_decay": plan.weight_decay},
        {"params": [value for value in others if value.ndim <= 1], "weight_decay": 0.0},
    ]
    found: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=plan.learning_rate)]
    if matrices:
        moved = [value for name, value in named.items() if name in matrices]
        settings: dict[str, Any] = {"lr": plan.learning_rate, "weight_decay": plan.weight_decay}
        found.append(torch.optim.Muon(moved, **settings, adjust_lr_fn="match_rms_adamw"))
    return found


def averaged(model: nn.Module, folder: Path) -> int:
    """Load the averaged weights of a folder's checkpoint. Returns: the checkpoint's step."""
    with safetensors.safe_open(folder / CHECKPOINT, "pt") as file:
        model.load_state_dict({name: file.get_tensor(f"average.{name}") for name in model.state_dict()})
        return int(file.metadata()["step"])


def export_averaged(model: Any, processor: Any, folder: Path, target: Path) -> None:
    """Write a checkpoint's averaged weights in half precision, in transformers' format, and the processor.

    Args: model: a transformers model with the checkpoint's sizes.
    """
    averaged(model, folder)
    model.half().save_pretrained(target)
    processor.save_pretrained(target)


def steps_of(folder: Path) -> int:
    """Return the step of the folder's checkpoint; 0 without a checkpoint."""
    if not (folder / CHECKPOINT).is_file():
        return 0
    with safetensors.safe_open(folder / CHECKPOINT, "pt") as file:
        return int(file.metadata()["step"])


def seconds_of(folder: Path) -> float:
    """Return the seconds of all steps, from the curve."""
    total = last = 0.0
    for line in (folder / CURVE).read_text(encoding="utf-8").splitlines():
        seconds = float(json.loads(line)["seconds"])
        total += seconds - last if seconds >= last else seconds
        last = seconds
    return total


@torch.no_grad()
def _follow(average: Mapping[str, Tensor], model: nn.Module, keep: float) -> None:
    """Update the moving average of the weights. Integer values, such as a count of batches, are copied."""
    old, new = [], []
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            old.append(average[name])
            new.append(value)
        else:
            average[name].copy_(value)
    torch._foreach_lerp_(old, new, 1 - keep)


def _save(
    model: nn.Module,
    named: Mapping[str, nn.Parameter],
    optimisers: Sequence[torch.optim.Optimizer],
    average: Mapping[str, Tensor],
    plan: Plan,
    step: int,
    path: Path,
) -> None:
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"average.{name}": value for name, value in average.items()}
    for optimiser, name, key in _moments(named, optimisers):
        tensors[f"{key}.{name}"] = optimiser.state[named[name]][key]
    content = save(
        {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()},
        metadata={"step": str(step), "plan": json.dumps(asdict(plan))},
    )
    write_atomic(path, content)
    state = {"step": step, "plan": asdict(plan)}
    write_atomic(path.with_name(STATE), (json.dumps(state, indent=2) + "\n").encode())


def _moments(
    named: Mapping[str, nn.Parameter], optimisers: Sequence[torch.optim.Optimizer]
) -> Iterator[tuple[torch.optim.Optimizer, str, str]]:
    """Yield the optimiser states that a checkpoint contains: (optimiser, parameter name, key of its state)."""
    names = {parameter: name for name, parameter in named.items()}
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            for parameter, key in itertools.product(group["params"], _MOMENTS[type(optimiser)]):
                yield optimiser, names[parameter], key


def _resume(
    model: nn.Module,
    named: Mapping[str, nn.Parameter],
    optimisers: Sequence[torch.optim.Optimizer],
    average: Mapping[str, Tensor],
    plan: Plan,
    path: Path,
) -> int:
    """Load a checkpoint into model, optimisers and average. Returns: the number of completed steps."""
    if not path.is_file():
        return 0
    with safetensors.safe_open(path, "pt") as file:
        step = int(file.metadata()["step"])
        _refuse_other_plan(json.loads(file.metadata()["plan"]), plan, step)
        model.load_state_dict({name: file.get_tensor(f"model.{name}") for name in model.state_dict()})
        for name, value in average.items():
            value.copy_(file.get_tensor(f"average.{name}"))
        for optimiser, name, key in _moments(named, optimisers):
            state = optimiser.state[named[name]]
            state[key] = file.get_tensor(f"{key}.{name}").to(plan.device)
            if isinstance(optimiser, torch.optim.AdamW):
                state["step"] = torch.tensor(float(step))
    return step


def _refuse_other_plan(old: Mapping[str, Any], plan: Plan, step: int) -> None:
    """Raise ValueError if resuming with this plan would give another curve than training from the start."""
    free = {"device", "save_seconds", "steps", "cooldown"}
    old = asdict(Plan(**old))  # settings that older checkpoints lack have their defaults
    changed = [name for name, value in asdict(plan).items() if name not in free and old[name] != value]
    if changed:
        raise ValueError(
            f"the checkpoint was made with another {changed[0]}: {old[changed[0]]!r}; start in a new folder"
        )
    if (old["steps"], old["cooldown"]) != (plan.steps, plan.cooldown):
        begins = min(old["steps"] - old["cooldown"], plan.steps - plan.cooldown)
        if step > begins:
            raise ValueError(f"the checkpoint of step {step} is in the cooldown, which began at {begins}")


def _cut(curve: Path, step: int) -> None:
    """Remove the entries that a killed run wrote after its last checkpoint."""
    if not curve.is_file():
        return
    lines = []
    for line in curve.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                lines.append(line)
        except ValueError:  # truncated by the kill
            break
    write_atomic(curve, "".join(f"{line}\n" for line in lines).encode())


def _note(curve: Path, entry: Mapping[str, float]) -> None:
    with curve.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")
    print(json.dumps(entry), flush=True)
