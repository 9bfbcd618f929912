"""Loss on held-out batches: nats per token, and bits per byte, which does not depend on the vocabulary."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F

from bitnet.data.stream import Batch
from bitnet.generate.decoder import Decoder
from bitnet.text.tokenizer import Tokenizer


@torch.no_grad()
def held_out_loss(model: Decoder, batches: Iterable[Batch], tokenizer: Tokenizer) -> dict[str, float]:
    """nats_per_token over scored targets, bits_per_byte of the text that they decode to, and their count."""
    device = model.device
    bytes_of = torch.from_numpy(tokenizer.byte_lengths())  # (V,), 0 for special tokens
    nats, tokens, text_bytes = 0.0, 0, 0
    for batch in batches:
        on_device = batch.to(device)
        logits = model(on_device.input_ids, **on_device.context())
        losses = F.cross_entropy(logits.float().flatten(0, 1), on_device.targets.flatten(), reduction="none")
        mask = on_device.loss_mask.flatten()

        # Summed in float64: over a large set, float32 would lose the last digits.
        nats += float((losses.double() * mask).sum())
        tokens += int(mask.sum())
        text_bytes += int(bytes_of[batch.targets[batch.loss_mask]].sum())

    per_token = nats / tokens if tokens else math.nan
    per_byte = nats / math.log(2) / text_bytes if text_bytes else math.nan
    return {"nats_per_token": per_token, "bits_per_byte": per_byte, "tokens": float(tokens)}
