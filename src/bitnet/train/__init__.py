"""The loop that trains, what observes it, and how a run begins or continues."""
