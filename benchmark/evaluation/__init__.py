"""Running metrics on a model, shard by shard, and keeping the evidence with which others verify the result."""
