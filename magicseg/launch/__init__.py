"""Slurm: submitting stages as job arrays and training as a multi-node job, and telling what became of them.

Importing this package loads neither torch nor submitit.
"""
