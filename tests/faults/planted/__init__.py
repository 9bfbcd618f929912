"""Faults, each a few lines that break one thing, and what an examination should make of them.

`plant` changes the modules of the process that it runs in, so each fault belongs in a process of its own
(`examined` forks one). There is one module for each part that can be at fault; importing it enters its faults
in the list. Not here: the checks. They know nothing of these faults.
"""

from planted import checkpoint, data, decoding, engine, evaluation, gradients, optimizer, plan, quantization
from planted.examine import examined
from planted.fault import FAULTS, Fault
from planted.healthy import HEALTHY

__all__ = [
    "FAULTS",
    "HEALTHY",
    "Fault",
    "checkpoint",
    "data",
    "decoding",
    "engine",
    "evaluation",
    "examined",
    "gradients",
    "optimizer",
    "plan",
    "quantization",
]
