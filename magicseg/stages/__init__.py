"""Doing the work of a stage: one shard, a list of shards in this process, or a pool of processes."""
