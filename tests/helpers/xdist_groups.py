"""Which tests share a process when ``pytest -n 3`` runs them in three."""

from xdist.scheduler import LoadScopeScheduling

# Slurm's daemons and the image are made once, and mostly waited for; every start of torchrun keeps all cores busy;
# the example package gets an environment of its own; tiny models are made and loaded once.
TOGETHER = (
    *("tests/plugins/", "tests/mask/", "tests/generate/"),
    *("tests/container/test_real", "tests/train/test_distributed.py"),
    *(
        "tests/slurm/test_sites.py",
        "tests/slurm/test_scale.py",
        "tests/slurm/",
    ),  # the first two have their own daemons
)


class KeptTogether(LoadScopeScheduling):
    """Each test goes to the process that is free, but those of `TOGETHER` go as one, the largest group first.

    So do those in which torch compiles: its own processes, headers and more are then made once.

    (xdist's own ``loadgroup`` puts groups into the tests' names, which pytest 9.2 no longer lets it do.)
    """

    def _split_scope(self, nodeid: str) -> str:
        if "::test_a_compiled_" in nodeid:
            return "compiled"
        return next((place for place in TOGETHER if nodeid.startswith(place)), nodeid)
