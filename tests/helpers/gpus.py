"""Tests that need a GPU are skipped without one. They fail where the environment has one that torch does not see."""

from collections.abc import Mapping

import pytest

from magicseg.core.gpus import CUDA, visible_gpus

DEVICE = "cuda"
PROMISE = "MAGICSEG_GPU"


def promise_of_gpu(environment: Mapping[str, str]) -> str | None:
    """Return what says that there is a GPU: a variable, or nvidia-smi. None if nothing does."""
    if environment.get(PROMISE) == "1":
        return f"{PROMISE}=1"
    visible = visible_gpus(environment)
    if not any(CUDA in gpu.environment for gpu in visible.gpus):
        return None
    return "nvidia-smi" if visible.limit is None else f"{visible.limit}={environment[visible.limit]}"


def require_gpu(environment: Mapping[str, str]) -> None:
    """Skip the test if there is no GPU. Fail if the environment says that there is one, but torch sees none."""
    import torch

    if torch.cuda.is_available():
        return
    promise = promise_of_gpu(environment)
    if promise is None:
        pytest.skip("no GPU")
    pytest.fail(
        f"{promise} says that this machine has a GPU, but torch {torch.__version__} sees none "
        f"(built for CUDA {torch.version.cuda}). To skip these tests: {CUDA}= pytest",
        pytrace=False,
    )
