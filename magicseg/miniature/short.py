"""The miniature's short form: every step of the chain is taken, in seconds; the model learns next to nothing."""

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
