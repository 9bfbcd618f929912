"""The folder that an anomaly leaves: activations, weight codes, predictions, gradients, the batch, and a
README.

JSON always, PNG where matplotlib is installed. Gradients are computed again on the batch of the update, and
dropped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitnet.data.stream import Batch
from bitnet.files import finite
from bitnet.generate.snapshot import entropy_nats
from bitnet.nn.transformer import BitNetTransformer, Block
from bitnet.text.tokenizer import Tokenizer
from bitnet.train.observe.anomalies import Anomaly

BINS = 100
ROWS = 32  # of the batch, at most
TOP = 20  # tokens of each prediction
NOT_IN_A_FILE_NAME = re.compile(r"[\s\x00-\x1f\x7f<>:\"/\\|?*]")


def write_dump(
    folder: Path,
    anomaly: Anomaly,
    step: int,
    model: BitNetTransformer,
    batch: Batch,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
) -> None:
    """Fill anomalies/step_NNNNNN_<event>/. Weights and random states are left as they were."""
    folder.mkdir(parents=True, exist_ok=True)
    batch = batch.select(slice(ROWS))
    ids = batch.input_ids.tolist()
    _write(folder / "batch.json", {"input_ids": ids, "text": [tokenizer.decode(row) for row in ids]})

    activations, norms = _activations_and_gradients(model, batch)
    _write(folder / "grad_norms.json", norms)
    for index, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        _histogram(
            folder / f"L{index}_attn_activations", activations[index], f"Layer {index}: attention output"
        )
        codes = block.attention.qkv_proj.weight_quantized
        _shares(folder / f"L{index}_qkv_quant_dist", codes, f"Layer {index}: codes of q, k, v")

    for prompt, name in zip(prompts, prompt_files(prompts), strict=True):
        _write(folder / name, _predictions(model, tokenizer, prompt))
    (folder / "README.md").write_text(_readme(anomaly, step, norms), encoding="utf-8")


def _readme(anomaly: Anomaly, step: int, norms: dict[str, float]) -> str:
    worst = max(norms, key=lambda name: norms[name] if np.isfinite(norms[name]) else np.inf)
    return (
        f"At update {step} the rule `{anomaly.event}` fired: {anomaly.finding}. The largest gradient of the "
        f"batch, computed again at the weights after the update, is {norms[worst]:.4g} in `{worst}`. "
        f"Look first at {anomaly.look_first}. "
        f"The batch (its first {ROWS} rows, ids and text) is in `batch.json`; "
        "`L*_attn_activations` and `L*_qkv_quant_dist` show each layer's attention output and ternary codes; "
        "`prompt_*_top20.json` shows what the model would say next.\n"
    )


def prompt_files(prompts: Sequence[str]) -> list[str]:
    """File names of the prompts' predictions, as in the plan: the first 20 characters, `_` for each space.

    `_` also stands for characters that some file system forbids. Where prompts begin alike, the later ones
    get a number.
    """
    names = [NOT_IN_A_FILE_NAME.sub("_", prompt[:20]) for prompt in prompts]
    before = [names[:index].count(name) for index, name in enumerate(names)]
    return [
        f"prompt_{name}{f'_{count + 1}' if count else ''}_top20.json"
        for name, count in zip(names, before, strict=True)
    ]


def _activations_and_gradients(
    model: BitNetTransformer, batch: Batch
) -> tuple[list[Tensor], dict[str, float]]:
    """Attention outputs of every block, (B, T, C) each, and the gradient norm of every parameter."""
    outputs: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
        outputs.append(output.detach().float().cpu())

    handles = [
        block.attention.register_forward_hook(keep) for block in model.blocks if isinstance(block, Block)
    ]
    try:
        logits = model(batch.input_ids, **batch.context())
        losses = F.cross_entropy(logits.float().flatten(0, 1), batch.targets.flatten(), reduction="none")
        mask = batch.loss_mask.flatten()
        parameters = dict(model.named_parameters())
        gradients = torch.autograd.grad(
            (losses * mask).sum() / mask.sum().clamp(min=1), list(parameters.values()), allow_unused=True
        )
    finally:
        for handle in handles:
            handle.remove()

    norms = [0.0 if gradient is None else float(gradient.norm()) for gradient in gradients]
    return outputs, dict(zip(parameters, norms, strict=True))


@torch.no_grad()
def _predictions(model: BitNetTransformer, tokenizer: Tokenizer, prompt: str) -> dict[str, Any]:
    """The most likely next tokens after a prompt."""
    ids = torch.tensor([tokenizer.encode(prompt)], device=model.device)
    logits = model(ids)[0, -1]
    probs, best = logits.float().softmax(-1).topk(min(TOP, logits.shape[-1]))
    tokens = [tokenizer.decode([token]) for token in best.tolist()]
    return {
        "prompt": prompt,
        "tokens": tokens,
        "ids": best.tolist(),
        "probs": probs.tolist(),
        "entropy": entropy_nats(logits),
    }


def _histogram(stem: Path, values: Tensor, title: str) -> None:
    """JSON with counts and edges of the finite values, and a PNG."""
    flat = values.flatten().numpy()
    good = flat[np.isfinite(flat)].astype(np.float64)  # the range of a histogram may exceed that of float32
    if good.size:
        counts, edges = np.histogram(good, bins=BINS)
    else:
        counts, edges = np.zeros(BINS, dtype=int), np.linspace(0, 1, BINS + 1)
    facts = {
        "mean": float(good.mean()) if good.size else None,
        "std": float(good.std()) if good.size else None,
        "non_finite": int(flat.size - good.size),
    }
    _write(stem.with_suffix(".json"), {**facts, "counts": counts.tolist(), "edges": edges.tolist()})
    _bars(stem.with_suffix(".png"), edges[:-1], counts, edges[1] - edges[0], title)


def _shares(stem: Path, codes: Tensor, title: str) -> None:
    """JSON with how often each code occurs, and a PNG."""
    counts = [int((codes == value).sum()) for value in (-1, 0, 1)]
    row = {"-1": counts[0], "0": counts[1], "+1": counts[2], "total": codes.numel()}
    _write(stem.with_suffix(".json"), row)
    _bars(stem.with_suffix(".png"), [-1, 0, 1], counts, 0.8, title)


def _bars(path: Path, places: Any, heights: Any, width: float, title: str) -> None:
    """A bar chart, where matplotlib is installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axis = figure.add_subplot()
    axis.bar(places, heights, width=width, align="center" if width == 0.8 else "edge")
    axis.set_title(title, loc="left", fontsize=10)
    axis.set_ylabel("count")
    figure.savefig(path, dpi=90)


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(finite(value), indent=2) + "\n", encoding="utf-8")
