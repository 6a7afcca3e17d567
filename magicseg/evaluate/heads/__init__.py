"""Heads: everything that gives each pixel one score per class name, the trained model and the baselines."""
