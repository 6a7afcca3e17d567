"""An ordinary user's jobs in the real image on a real Slurm give the same data as without an image."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from helpers.clusters import require_slurm, started
from helpers.ordinary_user import NOBODY, python_for_everybody, readable_libraries
from helpers.tiny_runs import TINY, do, make_run
from magicseg.container.image import identify
from magicseg.run import Run
from magicseg.run.digest import logical_digest

SETTINGS = (
    *("train.steps=6", "train.batch_size=8", "train.warmup_steps=2", "train.loader_workers=0", "evaluate.scenes=8"),
)


@pytest.fixture(scope="module")
def cluster():
    """A cluster on whose nodes ordinary users have no privileges."""
    require_slurm()
    with started(ACCT="0", ISOLATE="pid") as running:
        yield running


def test_stages_and_training_on_two_nodes_run_in_the_image(image, cluster, tmp_path):
    python = python_for_everybody()
    home = Path(cluster.folder) / "home"
    home.mkdir()
    shutil.chown(home, "nobody", "nogroup")
    environment = {
        **cluster.environment,
        "PYTHONPATH": os.pathsep.join(map(str, readable_libraries(Path(cluster.folder)))),
        "HOME": str(home),
        "COLUMNS": "200",
        "NO_COLOR": "1",
    }
    environment.pop("XDG_CACHE_HOME", None)
    profile = home / "site.yaml"
    profile.write_text(
        "cpus: 1\nmemory: 1900M\nstages:\n  train: {nodes: 2, processes: 1}\n"
        f"container:\n  image: {image}\n  cache: {home}/caches\n"
    )

    def magicseg(*arguments):
        command = [*NOBODY, python, "-m", "magicseg", *map(str, arguments)]
        return subprocess.run(
            command, cwd=home, env=environment, capture_output=True, text=True, timeout=600, check=False
        )

    def submitted(stage, *more):
        done = magicseg("submit", stage, "run", "--profile", profile, "--wait", *more)
        assert done.returncode == 0, done.stderr + magicseg("logs", "run", stage, "--failed").stdout

    sets = [word for setting in (*TINY, *SETTINGS) for word in ("--set", setting)]
    assert magicseg("init", "run", "--preset", "painted", *sets).returncode == 0
    assert magicseg("describe", "run", "--workers", "1").returncode == 0
    for stage in ("generate", "mask"):
        submitted(stage, "--shards-per-task", 3)
    submitted("train")
    run, digest = Run.open(home / "run"), identify(image).digest
    local = make_run(tmp_path / "local", *SETTINGS)
    do(local)
    assert logical_digest(run) == logical_digest(local)
    for stage in ("generate", "mask"):
        assert {record.versions["image"] for record in run.ledger(stage).commits().values()} == {digest}
    card = json.loads((run.path / "model/model.json").read_bytes())["provenance"]
    assert card["world_size"] == 2
    assert card["versions"]["image"] == digest
    assert {path.owner() for path in run.path.rglob("*")} == {"nobody"}
    assert (home / "caches").is_dir()
