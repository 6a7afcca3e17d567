"""One stand-in base and one image built from Apptainer.def, for all tests in this folder that need a real image."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.real_images import Base, make_base, make_image

NEEDED = ("apptainer", "mmdebstrap", "docker-registry", "unshare")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that need a real image. Their time limit is long, because the first test builds the image."""
    for item in items:
        if item.path.parent == Path(__file__).parent and item.path.name.startswith("test_real"):
            item.add_marker(pytest.mark.apptainer)
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.timeout(1800))


@pytest.fixture(scope="session")
def workshop() -> Iterator[Path]:
    """A folder that ordinary users may read, with space for gigabytes; removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="magicseg-images-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def images(workshop: Path) -> Path:
    """Where base and image are or will be: the folder that MAGICSEG_TEST_IMAGES names has them from `real_images`."""
    missing = [name for name in NEEDED if not shutil.which(name)]
    if missing or os.geteuid() != 0:
        reason = f"a real Apptainer is not to be had: {', '.join(missing) or 'its tests build as root'}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(f"{reason} (tests/container/install.sh)")
    return Path(os.environ.get("MAGICSEG_TEST_IMAGES") or workshop)


@pytest.fixture(scope="session")
def base(images: Path) -> Base:
    """The stand-in for the slim Python image."""
    return make_base(images)


@pytest.fixture(scope="session")
def image(images: Path) -> Path:
    """The image, built by ``magicseg container build``."""
    return make_image(images)
