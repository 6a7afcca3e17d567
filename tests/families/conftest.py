"""Settings of all tests in this folder: no network, a temporary cache, torch's number of threads restored."""

import os

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported


@pytest.fixture(autouse=True)
def _apart(models_apart: None) -> None:
    """Apply `models_apart` to all tests of this folder."""
