"""Training: sample order and loading, optimiser, loop and checkpoints. Importing this package loads no torch."""
