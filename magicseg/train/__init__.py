"""Training: the step, the loop, the optimizer, checkpoints, the log. Importing this package loads no torch."""
