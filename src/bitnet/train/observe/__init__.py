"""What watches training: metrics, alarms, samples, probes, checkpoints, trackers."""
