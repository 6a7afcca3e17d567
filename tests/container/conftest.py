"""One stand-in base and one image of the definition at the top for all tests in this folder that need a real one."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from real_images import Base, build, make_base, require_apptainer


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The first of the real ones waits for the image."""
    for item in items:
        if item.path.parent == Path(__file__).parent and item.path.name.startswith("test_real"):
            item.add_marker(pytest.mark.apptainer)
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.timeout(1800))


@pytest.fixture(scope="session")
def workshop() -> Iterator[Path]:
    """A folder that ordinary users may look into, with room for gigabytes; removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="magicseg-images-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def base(workshop: Path) -> Base:
    """The stand-in for the slim Python image."""
    require_apptainer()
    return make_base(workshop)


@pytest.fixture(scope="session")
def image(request: pytest.FixtureRequest, workshop: Path) -> Path:
    """The image by the command of the contract; or, to save minutes, the one that MAGICSEG_TEST_IMAGE names."""
    require_apptainer()
    given = os.environ.get("MAGICSEG_TEST_IMAGE")
    if given:
        return Path(given)
    made: Base = request.getfixturevalue("base")
    path = workshop / "magicseg.sif"
    binds = [word for bind in made.binds for word in ("--bind", bind)]
    arguments = ("BOOTSTRAP=localimage", f"BASE={made.sif}", "VARIANT=cpu")
    done = build(path, *binds, *(word for each in arguments for word in ("--build-arg", each)))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Running testscript" in done.stderr
    return path
