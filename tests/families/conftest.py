"""As for the single back ends: no network, a cache of each test's own, torch's number of threads kept."""

import os

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported


@pytest.fixture(autouse=True)
def _apart(models_apart: None) -> None:
    """For all tests of this folder."""
