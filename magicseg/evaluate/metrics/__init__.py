"""Metrics of semantic segmentation, and their confidence intervals."""
