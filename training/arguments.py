"""The command line that all trainings share."""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from training.loop import Plan
from training.painted import Painted, painted
from training.tokens import write_tokenizer

_OF_PLAN = ("steps", "cooldown", "batch_size", "learning_rate", "precision", "device", "seed", "save_seconds")


def parser(doc: str, plan: Plan, scenes: int, *, exports: bool = False) -> argparse.ArgumentParser:
    """Args: doc: the module's. plan: gives the defaults. scenes: painted to learn from. exports: has ``--export``."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("folder", type=Path, help="checkpoint and curve; a run goes on from what it finds here")
    made.add_argument("--data", type=Path, required=True, help="folder of painted scenes, shared by all trainings")
    made.add_argument("--scenes", type=int, default=scenes, help="painted to learn from (%(default)s)")
    made.add_argument("--workers", type=int, default=0, help="processes that paint; they change no bit")
    made.add_argument("--threads", type=int, default=1, help="of the CPU; another number may change last bits")
    for name in _OF_PLAN:
        default = getattr(plan, name)
        made.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default, help="(%(default)s)")
    if exports:
        made.add_argument("--export", type=Path, help="write the checkpoint's model here, and do nothing else")
    return made


def plan_of(given: argparse.Namespace, plan: Plan) -> Plan:
    """The plan as the command line has it; sets the number of threads."""
    torch.set_num_threads(given.threads)
    return replace(plan, **{name: getattr(given, name) for name in _OF_PLAN})


def fit_painted(given: argparse.Namespace, plan: Plan, fit: Callable[[Path, Painted, Plan], Any]) -> None:
    """``fit`` in the folder of the command line, on its painted scenes."""
    words = write_tokenizer(given.data / "tokenizer")
    fit(given.folder, painted(given.data, words, count=given.scenes, seed=plan.seed, workers=given.workers), plan)
