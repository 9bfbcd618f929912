"""Dynamic loss scaling for fp16 (Micikevicius et al., arXiv:1710.03740), around torch.amp.GradScaler.

fp16 holds no magnitude below 6e-8 and none above 65,504. The loss is multiplied by a scale before the
backward pass, so that small gradients survive; the gradients are divided by it before they are clipped. Where
they overflowed, the update is skipped and the scale halved; after 2,000 updates without an overflow it is
doubled. An overflow at a scale of 1 has another cause than the scale, and then counts as a gradient that is
not finite (update.py).

GradScaler.step is not used: it decides for each optimizer by itself, and AdamW must not move where Muon does
not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bitnet.optim.optimizer import Optimizers

INITIAL_SCALE = (
    2.0**16
)  # torch.amp.GradScaler's, like the growth of 2 every 2,000 updates and the backoff of 1/2
SMALLEST_SCALE = 1.0


class LossScale:
    """The scale of a run, and when it moves. State is two numbers, exact in JSON."""

    def __init__(self, device: torch.device) -> None:
        self.scaler = torch.amp.GradScaler(device.type, init_scale=INITIAL_SCALE)

    @property
    def value(self) -> float:
        """The present scale, a power of two of at least 1."""
        return float(self.scaler.get_scale())

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss to differentiate. loss: ()."""
        product: Tensor = self.scaler.scale(loss)
        return product

    def unscale(self, optimizers: Optimizers) -> None:
        """Divide every gradient by the scale, once an update."""
        for optimizer in optimizers.parts():
            self.scaler.unscale_(optimizer)  # type: ignore[arg-type] # reads param_groups only

    def move(self) -> bool:
        """Move the scale, after `unscale`. Returns whether a smaller scale could help against an overflow."""
        before = self.value
        self.scaler.update()
        if self.value < SMALLEST_SCALE:
            self.scaler.update(SMALLEST_SCALE)
        return before > SMALLEST_SCALE

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        stored = self.scaler.state_dict()
        return {"scale": stored["scale"], "good_updates": stored["_growth_tracker"]}

    def load(self, state: dict[str, Any]) -> None:
        """Restore what `state` gave."""
        stored = self.scaler.state_dict()
        self.scaler.load_state_dict(
            {**stored, "scale": float(state["scale"]), "_growth_tracker": int(state["good_updates"])}
        )
