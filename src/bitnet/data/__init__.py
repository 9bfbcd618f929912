"""Batches. Nothing here prints, logs or touches a run directory."""
