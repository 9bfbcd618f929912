"""Rules that say a run has gone wrong, each a pure function of what was measured.

Four rules and their default thresholds are the seeds' (config-95m, section 5F); samples that are not finite
are a fifth. A loss spike must also exceed the average by half a nat: near zero, twice the average is noise.
Entropy and repetition thresholds suit vocabularies of about 2,000 and more; tasks over characters are
near-deterministic and switch them off.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bitnet.optim.update import LOSS_SCALE_OVERFLOW

WINDOW = 100  # updates in the moving average of the loss


@dataclass(frozen=True)
class Anomaly:
    """event: name of the rule; finding: the values that made it fire; look_first: where the cause may be
    seen.
    """

    event: str
    finding: str
    look_first: str


def loss_spike(loss: float, window: Sequence[float], factor: float, min_nats: float) -> Anomaly | None:
    """The loss against the mean of the last WINDOW losses before it; silent until the window is full."""
    if len(window) < WINDOW:
        return None
    average = sum(window) / len(window)
    if not (loss > factor * average and loss > average + min_nats):
        return None
    return Anomaly(
        "loss_spike",
        f"loss {loss:.4f} is above {factor:g} x {average:.4f}, the mean of the {len(window)} updates before, "
        f"and {loss - average:.4f} nats over it",
        "batch.json (is the text unusual?), then grad_norms.json (which layer reacts?), then the learning "
        "rate in metrics/scalars.jsonl",
    )


def not_finite(refused: str | None) -> Anomaly | None:
    """A refused update: its loss or gradient was NaN or infinite. An overflow of the loss scale is no
    anomaly.
    """
    if refused is None or refused == LOSS_SCALE_OVERFLOW:
        return None
    what = "loss" if refused == "nan_inf_loss" else "gradient norm"
    return Anomaly(
        refused,
        f"the {what} was NaN or infinite; the update was not applied",
        "grad_norms.json and L*_attn_activations.json: the first layer with non-finite values is where it "
        "begins",
    )


def broken_samples(samples: Sequence[Mapping[str, Any]]) -> Anomaly | None:
    """A sample that ended because the model's logits were NaN or infinite."""
    broken = [row for row in samples if row["non_finite"]]
    if not broken:
        return None
    return Anomaly(
        "nan_inf_logits",
        f"the logits of {len(broken)} of {len(samples)} samples were NaN or infinite, "
        f"first for {broken[0]['prompt']!r} ({broken[0]['mode']})",
        "L*_attn_activations.json: the first layer with non-finite values is where it begins",
    )


def entropy_collapse(samples: Sequence[Mapping[str, Any]], floor: float | None) -> Anomaly | None:
    """Mean entropy of the first positions, over all prompts and modes, below the floor (nats)."""
    entropies = [row["mean_entropy"] for row in samples if row["mean_entropy"] is not None]
    if floor is None or not entropies:
        return None
    mean = sum(entropies) / len(entropies)
    if mean >= floor:
        return None
    return Anomaly(
        "entropy_collapse",
        f"the mean entropy over {len(entropies)} samples is {mean:.4f} nats, below {floor:g}",
        "prompt_*_top20.json: if one token holds nearly everything, look at the learning rate and the logit "
        "scale",
    )


def repetition_surge(samples: Sequence[Mapping[str, Any]], limit: int | None) -> Anomaly | None:
    """One token more than `limit` times in a greedy sample."""
    greedy = [row for row in samples if row["mode"] == "greedy"]
    if limit is None or not greedy:
        return None
    worst = max(greedy, key=lambda row: row["max_repetition"])
    if worst["max_repetition"] <= limit:
        return None
    return Anomaly(
        "repetition_surge",
        f"the greedy sample of {worst['prompt']!r} has one token {worst['max_repetition']} times "
        f"among {worst['total_tokens']}, above {limit}",
        "samples/samples.jsonl of this step, then prompt_*_top20.json: is the model undertrained or has it "
        "just collapsed?",
    )
