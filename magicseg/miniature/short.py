"""The miniature's short form: every step of the chain is taken, in seconds; the model learns next to nothing."""

SHORT = (
    *("plan.samples=64", "plan.shard_size=16", "generate.size=32", "evaluate.scenes=8"),
    *("train.steps=12", "train.batch_size=8", "train.warmup_steps=2", "train.log_every=2"),
    *("train.checkpoint_every=6", "train.loader_workers=0"),
)
