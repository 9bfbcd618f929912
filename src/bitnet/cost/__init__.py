"""What a run will take before it starts: estimates from its configuration, and a short measurement."""
