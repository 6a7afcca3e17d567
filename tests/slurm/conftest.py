"""A real Slurm for the tests in this folder: one shared cluster with accounting, and others like various sites."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.clusters import PLUGINS, Cluster, ClusterCommands, commands, require_slurm, started


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all tests here as slow and in need of Slurm."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slurm)
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def session_cluster() -> Iterator[Cluster]:
    """A cluster of four nodes with accounting, where jobs are warned before preemption."""
    require_slurm()
    with started(ACCT="1", GRACE="15", EXTRA_CONF="SlurmctldParameters=preempt_send_user_signal") as cluster:
        yield cluster


@pytest.fixture
def slurm(session_cluster: Cluster) -> Iterator[Cluster]:
    """The cluster, idle before and after each test."""
    session_cluster.cancel_all()
    yield session_cluster
    session_cluster.cancel_all()


@pytest.fixture
def on_cluster(slurm: Cluster, tmp_path: Path, faulty: None) -> ClusterCommands:
    """The command line on the cluster's login node."""
    return commands(slurm, tmp_path, PLUGINS)
