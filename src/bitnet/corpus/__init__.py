"""Before training: from documents to token shards."""
