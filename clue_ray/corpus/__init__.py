"""Event logs to a corpus: read, tokenize, shard, open."""
