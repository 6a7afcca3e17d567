"""Where the real data lie that scores are checked on; they are not part of the repository."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data: `MAGICSEG_TEST_DATA`, else `../shared/data` beside the repository."""
    given = os.environ.get("MAGICSEG_TEST_DATA")
    folder = Path(given) if given else Path(__file__).resolve().parents[3] / "shared" / "data"
    if not (folder / "VOCdevkit" / "VOC2012").is_dir():
        pytest.skip(f"no real data at {folder}: set MAGICSEG_TEST_DATA")
    return folder
