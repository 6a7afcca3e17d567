"""Tests that need a GPU are skipped without one, and fail where the environment promises one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.gpus import promise_of_gpu


@pytest.mark.parametrize(
    ("environment", "promise"),
    [
        ({"CUDA_VISIBLE_DEVICES": ""}, None),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, None),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, "CUDA_VISIBLE_DEVICES=0,1"),
        ({"CUDA_VISIBLE_DEVICES": "MIG-1"}, "CUDA_VISIBLE_DEVICES=MIG-1"),
        ({"CUDA_VISIBLE_DEVICES": "", "MAGICSEG_GPU": "1"}, "MAGICSEG_GPU=1"),
        ({"CUDA_VISIBLE_DEVICES": "", "MAGICSEG_GPU": "0"}, None),
    ],
)
def test_variables_promise_a_gpu(environment, promise):
    assert promise_of_gpu(environment) == promise


def test_nvidia_smi_promises_the_gpu_that_it_lists(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA A100 (UUID: GPU-1)'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert promise_of_gpu({}) == "nvidia-smi"
    program.unlink()
    assert promise_of_gpu({}) is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "counts", "reason"),
    [
        ({}, "2 skipped", "no GPU"),
        ({"MAGICSEG_GPU": "1"}, "2 errors", "MAGICSEG_GPU=1 says that this machine has a GPU, but torch"),
    ],
    ids=["without a GPU", "with a promise"],
)
def test_the_gpu_tests_are_skipped_or_fail(changes, counts, reason):
    file = Path(__file__).parent / "gpu" / "test_runs_on_gpu.py"
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", str(file)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", **changes}
    root = Path(__file__).parents[1]
    done = subprocess.run(
        command, cwd=root, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert counts in done.stdout, done.stdout
    assert reason in done.stdout
    assert (done.returncode == 0) == (not changes)
