"""Evaluation: metrics, benchmark protocols and the scoring of predicted class maps."""
