"""Estimate a run's cost before it is submitted, from the measurements of its finished shards."""
