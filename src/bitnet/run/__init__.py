"""The run directory: the only place that knows file names inside a run."""
