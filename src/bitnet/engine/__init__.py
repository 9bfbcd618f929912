"""Packed inference: a Decoder whose prefill and step are one call into C each. Nothing here needs torch."""
