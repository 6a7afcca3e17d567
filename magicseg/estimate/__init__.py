"""What a run will cost, before it is submitted: from shards that were really done."""
