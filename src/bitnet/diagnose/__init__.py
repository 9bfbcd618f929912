"""Is it healthy? Measurements of a model, and what is out of the ordinary."""
