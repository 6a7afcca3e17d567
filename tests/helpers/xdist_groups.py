"""Groups of tests that ``pytest -n`` runs in the same process."""

from xdist.scheduler import LoadScopeScheduling

# Groups share expensive setup: Slurm's daemons, the container image, the example package's environment, tiny models.
# Tests with torchrun are grouped because each start uses all cores.
TOGETHER = (
    *("tests/plugins/", "tests/mask/", "tests/generate/"),
    *("tests/container/test_real", "tests/train/test_distributed.py"),
    *(
        "tests/slurm/test_sites.py",
        "tests/slurm/test_scale.py",
        "tests/slurm/",
    ),  # the first two start separate daemons
)


class KeptTogether(LoadScopeScheduling):
    """Assign each test to a free process. Groups of `TOGETHER` are assigned as a unit, the largest first.

    Tests with torch.compile also form a group, so that its processes and headers are set up once.

    xdist's ``loadgroup`` is not used: it changes the tests' names, which pytest 9.2 no longer allows.
    """

    def _split_scope(self, nodeid: str) -> str:
        if "::test_a_compiled_" in nodeid:
            return "compiled"
        return next((place for place in TOGETHER if nodeid.startswith(place)), nodeid)
