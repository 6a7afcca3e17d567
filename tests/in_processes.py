"""Which tests share a process when ``pytest -n 3`` runs them in three."""

from xdist.scheduler import LoadScopeScheduling

# Slurm's daemons and the image are made once, and mostly waited for; every start of torchrun keeps all cores busy;
# the example package gets an environment of its own.
TOGETHER = (
    "tests/plugins/",
    *("tests/container/test_real", "tests/train/test_distributed.py"),
    *(
        "tests/slurm/test_sites.py",
        "tests/slurm/test_scale.py",
        "tests/slurm/",
    ),  # the first two have their own daemons
)


class KeptTogether(LoadScopeScheduling):
    """Each test goes to the process that is free, but those of `TOGETHER` go as one, the largest group first.

    (xdist's own ``loadgroup`` puts groups into the tests' names, which pytest 9.2 no longer lets it do.)
    """

    def _split_scope(self, nodeid: str) -> str:
        return next((place for place in TOGETHER if nodeid.startswith(place)), nodeid)
