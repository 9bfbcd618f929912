"""Numbers about a model. Nothing here prints or touches a run directory."""
