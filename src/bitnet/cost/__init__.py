"""What a run will take before it starts: arithmetic on its configuration. Nothing here trains or measures."""
