"""The state of every random generator of the process, as JSON and back."""

from __future__ import annotations

import random
from base64 import b64decode, b64encode
from typing import Any

import numpy as np
import torch


def random_states() -> dict[str, Any]:
    """The state of every random generator, as JSON."""
    version, numbers, gauss = random.getstate()
    numpy_state: Any = np.random.get_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None
    return {
        "python": [version, list(numbers), gauss],
        "numpy": [numpy_state[0], numpy_state[1].tolist(), *numpy_state[2:]],
        "torch": _text(torch.get_rng_state()),
        "torch_cuda": [_text(state) for state in cuda] if cuda is not None else None,
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """Restore what `random_states` gave. GPU states only where there are as many GPUs."""
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(_bytes(states["torch"]))
    cuda = states["torch_cuda"]
    if cuda is not None and torch.cuda.is_available() and len(cuda) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([_bytes(text) for text in cuda])


def _text(state: torch.Tensor) -> str:
    return b64encode(state.numpy().tobytes()).decode("ascii")


def _bytes(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(b64decode(text)), dtype=torch.uint8)
