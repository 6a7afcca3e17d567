"""The preset with learned models: results do not depend on sharding, order or kills."""

import pytest

from helpers.tiny_runs import do
from magicseg.config.loading import load_config
from magicseg.run import STAGES, Run
from magicseg.run.digest import logical_digest

SMALL = ("plan.samples=8", "generate.options.steps=2", "generate.batch_size=2")


def _made(path, *overrides):
    return Run.create(path, load_config(preset="miniature", overrides=[*SMALL, *overrides]))


@pytest.mark.slow
def test_the_digest_does_not_depend_on_shards_order_and_kills(tmp_path, models_apart):
    one = _made(tmp_path / "one", "plan.shard_size=8")
    do(one)
    other = _made(tmp_path / "other", "plan.shard_size=2")
    do(other, "describe")
    do(other, "generate", shards=[3])
    (other.path / "ledger/generate/commits/00000003.json").unlink()  # like a kill right before the commit
    for shards in ([2, 0], [1, 3]):
        for stage in STAGES[1:]:
            do(other, stage, shards=shards)
    assert logical_digest(one) == logical_digest(other)
