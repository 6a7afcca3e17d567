"""Training: sample order and loading, optimiser, loop, checkpoints. Importing this package loads no torch."""
