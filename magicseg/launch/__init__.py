"""Slurm: submit stages as job arrays and training as a multi-node job, and follow their state.

Importing this package loads neither torch nor submitit.
"""
