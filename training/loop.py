"""The training loop of all models here: deterministic, and resumable bit for bit after a kill at any time.

The batch and the random numbers of step i are functions of (seed, i), and all else that a step reads is in the
checkpoint: one safetensors file, replaced at once. So the curve of losses does not depend on where a run was cut.
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
STATE = "state.json"  # what of the checkpoint a reader may want to know: its step and plan

# What an optimiser knows of a parameter.
_MOMENTS: dict[type[torch.optim.Optimizer], tuple[str, ...]] = {
    torch.optim.AdamW: ("exp_avg", "exp_avg_sq"),
    torch.optim.Muon: ("momentum_buffer",),
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long and how fast. ``steps`` may be raised later as long as the run is not in its ``cooldown``."""

    steps: int
    batch_size: int
    learning_rate: float
    warmup: int = 200
    cooldown: int = 0  # last steps, in which the rate falls to zero in a line
    weight_decay: float = 0.01
    muon: str = ""  # a pattern in the names of the matrices that Muon steps; all else is AdamW's
    clip: float = 1.0  # largest norm of the gradient
    average: float = 0.999  # of the weights; what is exported is this moving average
    seed: int = 0
    precision: Literal["float32", "bfloat16"] = "float32"
    device: str = "cpu"
    save_seconds: float = 120.0
    log_every: int = 25

    def rate(self, step: int) -> float:
        """Of step ``step``, from 0."""
        down = (self.steps - step) / self.cooldown if self.cools(step) else 1.0
        return self.learning_rate * min(1.0, (step + 1) / max(self.warmup, 1)) * down

    def cools(self, step: int) -> bool:
        """Whether step ``step``, from 0, is one of the cooldown's."""
        return step >= self.steps - self.cooldown


def torch_rng(plan: Plan, stream: str, step: int) -> torch.Generator:
    """Random numbers of one step, on the plan's device."""
    number = int(counter_rng(plan.seed, stream, step).integers(0, 2**63))
    return torch.Generator(plan.device).manual_seed(number)


def chosen(plan: Plan, count: int, step: int) -> Tensor:
    """Which of ``count`` samples a step sees: int64 (batch), on the plan's device."""
    drawn = counter_rng(plan.seed, "batch", step).integers(0, count, plan.batch_size)
    return torch.from_numpy(drawn).to(plan.device)


def train(
    model: nn.Module,
    loss_of: Callable[[nn.Module, int], Tensor],
    plan: Plan,
    folder: Path,
) -> nn.Module:
    """Train ``model`` from the folder's checkpoint, or from its present weights, to the plan's last step.

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
        if now - saved >= plan.save_seconds and done % plan.log_every == 0:  # the curve's means begin anew there
            _save(model, named, optimisers, average, plan, done, folder / CHECKPOINT)
            saved = now
    if start < plan.steps:
        _save(model, named, optimisers, average, plan, plan.steps, folder / CHECKPOINT)
    model.load_state_dict(average)
    return model.eval()


def optimisers_of(named: Mapping[str, nn.Parameter], plan: Plan) -> list[torch.optim.Optimizer]:
    """AdamW, and Muon (Jordan et al. 2024, scaled as in arXiv 2502.16982) for the matrices named by ``plan.muon``."""
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
    """Load the averaged weights of a folder's checkpoint. Returns: the steps that they have seen."""
    with safetensors.safe_open(folder / CHECKPOINT, "pt") as file:
        model.load_state_dict({name: file.get_tensor(f"average.{name}") for name in model.state_dict()})
        return int(file.metadata()["step"])


def export_averaged(model: Any, processor: Any, folder: Path, target: Path) -> None:
    """Write the averaged weights of a folder's checkpoint in half precision, as transformers does, and the processor.

    Args: model: of that library, of the checkpoint's sizes.
    """
    averaged(model, folder)
    model.half().save_pretrained(target)
    processor.save_pretrained(target)


def steps_of(folder: Path) -> int:
    """Steps of the folder's checkpoint; 0 if there is none."""
    if not (folder / CHECKPOINT).is_file():
        return 0
    with safetensors.safe_open(folder / CHECKPOINT, "pt") as file:
        return int(file.metadata()["step"])


def seconds_of(folder: Path) -> float:
    """What the steps took, all runs together, by the curve."""
    total = last = 0.0
    for line in (folder / CURVE).read_text(encoding="utf-8").splitlines():
        seconds = float(json.loads(line)["seconds"])
        total += seconds - last if seconds >= last else seconds
        last = seconds
    return total


@torch.no_grad()
def _follow(average: Mapping[str, Tensor], model: nn.Module, keep: float) -> None:
    """Move the average towards the weights; what is no float (a count of batches) is copied."""
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
    """What a checkpoint holds of the optimisers: (optimiser, name of a parameter, key of its state)."""
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
    """Put a checkpoint into everything that a step reads. Returns: the steps done."""
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
    """Raises: ValueError if going on would give another curve than one run from the start."""
    free = {"device", "save_seconds", "steps", "cooldown"}
    old = asdict(Plan(**old))  # a setting that it did not have yet is at its default
    changed = [name for name, value in asdict(plan).items() if name not in free and old[name] != value]
    if changed:
        raise ValueError(f"the checkpoint was made with another {changed[0]}: {old[changed[0]]!r}; begin anew")
    if (old["steps"], old["cooldown"]) != (plan.steps, plan.cooldown):
        begins = min(old["steps"] - old["cooldown"], plan.steps - plan.cooldown)
        if step > begins:
            raise ValueError(f"the checkpoint of step {step} is in the cooldown, which began at {begins}")


def _cut(curve: Path, step: int) -> None:
    """Drop what a killed run noted after its last checkpoint."""
    if not curve.is_file():
        return
    lines = []
    for line in curve.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                lines.append(line)
        except ValueError:  # the kill cut it
            break
    write_atomic(curve, "".join(f"{line}\n" for line in lines).encode())


def _note(curve: Path, entry: Mapping[str, float]) -> None:
    with curve.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")
    print(json.dumps(entry), flush=True)
