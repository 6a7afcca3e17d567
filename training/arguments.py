"""The command line of all training programs."""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from training.loop import Plan
from training.painted import Painted, painted
from training.tokens import write_tokenizer

_PLAN_OPTIONS = ("steps", "cooldown", "batch_size", "learning_rate", "precision", "device", "seed", "save_seconds")


def parser(doc: str, plan: Plan, scenes: int, *, exports: bool = False) -> argparse.ArgumentParser:
    """Return the parser of a training program.

    Args: doc: the module's docstring. plan: the defaults. scenes: the default number of training scenes. exports: add
    the option ``--export``.
    """
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("folder", type=Path, help="folder for checkpoint and curve; resumes from a checkpoint in it")
    made.add_argument("--data", type=Path, required=True, help="folder of painted scenes, shared by all trainings")
    made.add_argument("--scenes", type=int, default=scenes, help="number of training scenes (%(default)s)")
    made.add_argument("--workers", type=int, default=0, help="processes that paint; the results do not depend on it")
    made.add_argument("--threads", type=int, default=1, help="CPU threads; they may affect the last bits of results")
    for name in _PLAN_OPTIONS:
        default = getattr(plan, name)
        made.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default, help="(%(default)s)")
    if exports:
        made.add_argument("--export", type=Path, help="only write the checkpoint's model to this folder")
    return made


def plan_of(given: argparse.Namespace, plan: Plan) -> Plan:
    """Return the plan with the command line's changes, and set the number of threads."""
    torch.set_num_threads(given.threads)
    return replace(plan, **{name: getattr(given, name) for name in _PLAN_OPTIONS})


def fit_painted(given: argparse.Namespace, plan: Plan, fit: Callable[[Path, Painted, Plan], Any]) -> None:
    """Call ``fit`` with the command line's folder, painted scenes and plan."""
    words = write_tokenizer(given.data / "tokenizer")
    fit(given.folder, painted(given.data, words, count=given.scenes, seed=plan.seed, workers=given.workers), plan)
