"""Token ids out of a model. Nothing here prints."""
