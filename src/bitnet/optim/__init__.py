"""One update: the rates of a step, the optimizers, clipping. Nothing here prints, logs or opens a file."""
