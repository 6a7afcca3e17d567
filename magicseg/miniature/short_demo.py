"""Settings of ``demo --short``: all stages run within seconds, but the model learns almost nothing."""

SHORT = (
    *(
        "plan.samples=16",
        "plan.shard_size=8",
        "generate.batch_size=8",
        "generate.options.steps=4",
        "evaluate.scenes=8",
    ),
    *("train.steps=6", "train.batch_size=4", "train.warmup_steps=2", "train.log_every=2", "train.checkpoint_every=3"),
)
