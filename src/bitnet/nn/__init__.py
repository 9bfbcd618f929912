"""Tensors: the ternary transformer and its numerics. Nothing here prints, logs or opens a file."""
