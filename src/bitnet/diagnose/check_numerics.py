"""The numbers of the forward pass: what the model computes against what the papers say it computes. Suspect:
quantization.

Every part is judged on the very input it was given, by an independent float64 computation (reference.py), so
that a fault is found where it is and does not spread to what comes after. Tolerances: float32 arithmetic
leaves 1e-6 to 1e-5; a value that sits on the edge between two int8 codes may fall to either side and moves a
layer's output by about 1e-4; leaving out the int8 step moves it by 5e-3 and more. Hence EXACT for parts
without quantization and ROUNDED for those with it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from bitnet.diagnose import reference
from bitnet.diagnose.finding import STRONG, Check, Part, below, worst
from bitnet.diagnose.subject import Subject, copy_of
from bitnet.diagnose.trace import Passed, made_loud, multiplied_by, off, random_ids, traced, weights_of
from bitnet.nn.bitlinear import BitLinear
from bitnet.nn.config import BitNetConfig
from bitnet.nn.transformer import BitNetTransformer

EXACT, ROUNDED, WHOLE = 1e-4, 1e-3, 2e-2
"""Relative errors allowed: of a part without rounding, of one ternary layer, of all layers one after another
(where values on the edge of a code add up; measured below 1e-2 on healthy models)."""
EDGE = 0.02  # of a code's width
ROWS, TOKENS = 2, 128
STORED = Part("quantization", "the configuration; b1.58 training tips: latent weights stay in high precision")
TERNARY = Part("quantization", "arXiv:2402.17764, section 2; the matrix is measured from outside")
FORMULA = Part("quantization", "independent float64 computation")
ORDER = Part("quantization", "definition of next-token prediction; arXiv:2104.09864")


def numerics(subject: Subject) -> Iterator[Check]:
    """All checks of this file, from the stored weights outwards."""
    model = subject.model
    yield from stored(model)
    ids = random_ids(model.config.vocab_size, ROWS, min(TOKENS, model.config.max_seq_length), subject.device)
    yield from layers(model)
    logits, passed = traced(model, ids)
    loud = made_loud(copy_of(subject, model))
    yield from parts([(model, logits, passed), (loud, *traced(loud, ids))], ids)
    yield from whole(model, ids, logits)
    yield from order_of_tokens(model, ids, logits)


def stored(model: BitNetTransformer) -> Iterator[Check]:
    """The latent weights: there, finite, in full precision, and as many as the configuration says."""
    weights = dict(model.named_parameters())
    broken = [name for name, weight in weights.items() if not bool(torch.isfinite(weight).all())]
    yield STORED("weights are finite", "not finite").none(broken, "parameters with NaN or infinity")

    low = [name for name, weight in weights.items() if weight.dtype != torch.float32 or _is_coarse(weight)]
    yield STORED("latent weights have full precision", "stored or rounded to fewer bits").none(
        low, "parameters coarser than float32"
    )

    count = sum(weight.numel() for weight in weights.values())
    yield STORED("parameter count", "parts are missing, doubled, or a tied head is not tied").equal(
        count, model.config.total_params
    )
    tied = model.lm_head.weight is model.token_embeddings.weight
    yield STORED("head tied as configured", "the output head is not the embedding, or should not be").equal(
        tied, model.config.embeddings_tied
    )


def _is_coarse(weight: Tensor) -> bool:
    """Whether all values happen to be bfloat16 or float16 numbers, which float32 values are once in 65,536;
    norms begin as all ones.
    """
    if weight.dim() < 2:
        return False
    values = weight.detach().flatten()[:4096].float()
    values = values[values != 0]
    return len(values) > 0 and any(
        float((values.to(kind).float() == values).float().mean()) > 0.5
        for kind in (torch.bfloat16, torch.float16)
    )


def layers(model: BitNetTransformer) -> Iterator[Check]:
    """The matrices that really multiply: three values, the right ones, the right scale; and the int8 step of
    the inputs.
    """
    config = model.config
    found: dict[str, dict[str, float]] = defaultdict(dict)
    generator = torch.Generator().manual_seed(7)
    for name, layer in model.bit_linears().items():
        x = torch.randn(16, layer.in_features, generator=generator) * torch.logspace(-1, 1, 16)[:, None]
        rows = list(reference.matrix_rows(config, name))
        for kind, value in _measured(layer, off_the_edges(x).to(layer.weight.device), rows, config).items():
            found[kind][name] = value
    if config.weights == "ternary":
        yield from _ternary(found)
    yield _activations(found["int8 inputs"], found["plain inputs"], config.activations == "int8")


@torch.no_grad()
def _measured(layer: BitLinear, x: Tensor, rows: list[int], config: BitNetConfig) -> dict[str, float]:
    """Errors and figures of one layer by kind. x: inputs (N, in)."""
    used = multiplied_by(layer, layer.in_features, layer.weight).double()
    right = reference.effective(layer.weight, tuple(rows), config)
    matrices = list(zip(torch.split(used, rows), torch.split(right, rows), strict=True))
    stale = (used.sign() != right.sign()).double() + (layer.weight_quantized != right.sign()).double()

    # Inputs are judged by the matrix that really multiplies: a weight on the edge of a code is the codes'
    # matter.
    y = layer(x)
    plain = off(y, x.double() @ used.T)
    int8 = off(y, reference.int8_values(x.double()) @ used.T)
    return {
        "magnitudes": max(_distinct(mine) for mine, _ in matrices),
        "scale": max(_scale_error(mine, true) for mine, true in matrices),
        "codes": float(stale.mean()),
        "zeros": float((used == 0).double().mean()),
        "plain inputs": plain,
        "int8 inputs": int8 if config.activations == "int8" else plain,
    }


def off_the_edges(x: Tensor) -> Tensor:
    """The same inputs, but none within a fiftieth of the edge between two int8 codes, where float32 may round
    either way. x: (N, in).
    """
    step = x.double().abs().amax(dim=-1, keepdim=True) / 127
    units = x.double() / step
    over = units - torch.floor(units) - 0.5  # 0 on an edge
    moved = torch.where(over.abs() < EDGE, units + EDGE * torch.where(over < 0, -1.0, 1.0), units)
    return (moved * step).float()


def _distinct(matrix: Tensor) -> float:
    """How many magnitudes other than zero a logical matrix has, up to a millionth of the largest."""
    magnitudes = matrix.abs()
    largest = float(magnitudes.max())
    if not math.isfinite(largest):
        return math.inf
    return float(
        len(torch.unique((magnitudes / max(largest, 1e-30) * 1e4).round())) - bool((magnitudes == 0).any())
    )


def _scale_error(used: Tensor, right: Tensor) -> float:
    """Relative error of the one magnitude of a logical matrix."""
    return (
        abs(float(used.abs().max() / right.abs().max()) - 1) if bool(right.any()) else float(used.abs().max())
    )


def _ternary(found: Mapping[str, Mapping[str, float]]) -> Iterator[Check]:
    """Checks of the matrices. found: figures by kind and layer."""
    yield TERNARY("weights in the forward pass are ternary", "multiplies by more than one magnitude").below(
        found["magnitudes"], 1, "magnitudes besides 0 of a logical matrix"
    )
    yield TERNARY("scale is the mean magnitude", "its scale is not the mean of |W|").below(
        found["scale"], EXACT
    )
    yield TERNARY(
        "codes are those of the present weights", "its codes are stale, or follow another rule"
    ).below(found["codes"], 1e-3, "share of other codes (ties)")
    zeros = found["zeros"]
    odd = [name for name, share in zeros.items() if not 0.005 < share < 0.995]
    extremes = [round(min(zeros.values()), 4), round(max(zeros.values()), 4)]
    note = "" if extremes[0] >= 0.2 and extremes[1] <= 0.6 else "; outside 20-60%, unusual"
    yield TERNARY("zeros among the codes", f"dead or saturated: {', '.join(odd[:3])}").holds(
        not odd, extremes, f"no layer all zero or without zeros; published models have 0.30-0.47{note}"
    )


def _activations(inputs: Mapping[str, float], plain: Mapping[str, float], int8: bool) -> Check:
    """Whether inputs are quantized as configured. inputs, plain: errors by layer, with and without int8."""
    error, where = worst(inputs)
    unquantized = int8 and not below(error, ROUNDED) and plain[where] < error
    name = "inputs quantized to int8 per token" if int8 else "inputs left unquantized"
    wrong = "inputs are not quantized at all" if unquantized else "its product is not codes * step * scale"
    return TERNARY(name, wrong).below(inputs, ROUNDED, "relative error of a layer's output")


def parts(
    runs: Sequence[tuple[BitNetTransformer, Tensor, dict[str, Passed]]], ids: Tensor
) -> Iterator[Check]:
    """Embedding, norms, attention with its rotary positions, feed-forward, residual stream and head, each on
    its own input.

    runs: models with their logits and what passed in them: the one under examination, and its loud twin.
    """
    errors: dict[str, dict[str, float]] = defaultdict(dict)
    for twin, (model, logits, passed) in zip(("", ", loud attention"), runs, strict=False):
        for kind, found in _part_errors(model, ids, logits, passed).items():
            errors[kind] |= {f"{name}{twin}": error for name, error in found.items()}
    for kind, found in errors.items():
        other = "computes something else than its formula on the input that it was given"
        yield FORMULA(f"{kind} as in the papers", other).below(found, EXACT)


def _part_errors(
    model: BitNetTransformer, ids: Tensor, logits: Tensor, passed: dict[str, Passed]
) -> dict[str, dict[str, float]]:
    """Relative errors by kind of part and name."""
    config, weights = model.config, weights_of(model)
    errors: dict[str, dict[str, float]] = defaultdict(dict)
    stream = passed["token_embeddings"].left.double()
    errors["embedding"]["token_embeddings"] = off(stream, weights["token_embeddings.weight"].double()[ids])
    for name, (entered, left) in passed.items():
        if name.endswith("norm"):
            right = reference.norm(entered, weights[f"{name}.weight"], config.norm_eps)
            errors["norms"][name] = off(left, right)

    for layer in range(config.num_layers):
        at = f"blocks.{layer}"
        attention, feedforward = f"{at}.attention.", f"{at}.feedforward."

        # what follows on attention and on the gate, which are no modules: a norm, or the next projection
        mixed = passed[attention + ("sub_norm" if config.sub_norm else "out_proj")].entered
        gated = passed[feedforward + ("sub_norm" if config.sub_norm else "down")].entered
        right = reference.attend(passed[attention + "qkv_proj"].left, config)
        errors["attention and rotary"][at] = off(mixed, right)
        right = reference.gate(passed[feedforward + "gate_up"].left, config)
        errors["feed-forward"][at] = off(gated, right)

        middle = stream + passed[attention + "out_proj"].left.double()
        end = middle + passed[feedforward + "down"].left.double()
        residual = errors["residual stream"]
        residual[f"{at} (before attention)"] = off(passed[f"{at}.pre_attn_norm"].entered, stream)
        residual[f"{at} (after attention)"] = off(passed[f"{at}.pre_ffn_norm"].entered, middle)
        residual[at] = off(passed[at].left, end)
        stream = passed[at].left.double()

    errors["residual stream"]["into the final norm"] = off(passed["final_norm"].entered, stream)
    head = weights["token_embeddings.weight" if config.embeddings_tied else "lm_head.weight"].double()
    errors["head"]["lm_head"] = off(logits, passed["final_norm"].left.double() @ head.T)
    return errors


def whole(model: BitNetTransformer, ids: Tensor, logits: Tensor) -> Iterator[Check]:
    """All of it at once: nothing may happen between the parts either; and twice the same."""
    with torch.no_grad():
        right = reference.logits(weights_of(model), model.config, ids)
    between = "the whole forward pass differs although it may be right in its parts"
    yield FORMULA("logits as in the papers", between, weight=STRONG).below(off(logits, right), WHOLE)

    again, _ = traced(model, ids, grad=True)
    random = "something in the forward pass is random or keeps a memory"
    yield FORMULA("the same input gives the same logits", random, weight=STRONG).below(
        off(again, logits), 1e-4
    )


@torch.no_grad()
def order_of_tokens(model: BitNetTransformer, ids: Tensor, logits: Tensor) -> Iterator[Check]:
    """No position sees the future, and the order of the past matters."""
    cut = ids.shape[1] // 2
    future = ids.clone()
    future[:, cut:] = (future[:, cut:] + 1) % model.config.vocab_size
    changed, _ = traced(model, future)
    leak = "earlier positions see later tokens: the loss falls to nothing and generation is garbage"
    yield ORDER("causal mask holds", leak).below(
        off(changed[:, :cut], logits[:, :cut]), 1e-4, "change of earlier logits by later tokens"
    )

    swapped = ids.clone()
    swapped[:, [0, cut]] = ids[:, [cut, 0]]
    _, first = traced(model, ids)
    _, second = traced(model, swapped)
    name = "blocks.0.attention.sub_norm" if model.config.sub_norm else "blocks.0.attention.out_proj"
    moved = off(second[name].entered[:, -1], first[name].entered[:, -1])
    unlike = bool((ids[:, 0] != ids[:, cut]).any())
    blind = "the attention of the first layer does not see positions"
    yield ORDER("positions matter", blind, weight=STRONG).holds(
        not unlike or moved > 1e-5, moved, "two earlier tokens swapped change the attention (> 1e-5)"
    )
