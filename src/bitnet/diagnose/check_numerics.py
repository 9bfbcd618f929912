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
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from bitnet.diagnose import reference
from bitnet.diagnose.finding import HINT, STRONG, Check, Part, below, worst
from bitnet.diagnose.subject import Subject, copy_of
from bitnet.diagnose.trace import Passed, made_loud, multiplied_by, off, random_ids, traced
from bitnet.nn.transformer import BitNetTransformer

EXACT, ROUNDED, WHOLE = 1e-4, 1e-3, 2e-2
"""Relative errors allowed: of a part without rounding, of one ternary layer, of all layers one after another
(where values on the edge of a code add up; measured below 1e-2 on healthy models)."""
EDGE = 0.02  # of a code's width
STEP0_NATS = 0.5
"""How far the loss of a fresh model may be from ln(V). The seeds' broken start was 164; healthy ones here are
within 0.1."""
ROWS, TOKENS = 2, 128
SOURCE = "independent float64 computation"
QUANTIZATION = Part("quantization", SOURCE)


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
    yield from start(subject.model if subject.fresh else subject.new_model(model.config))


def stored(model: BitNetTransformer) -> Iterator[Check]:
    """The latent weights: there, finite, in full precision, and as many as the configuration says."""
    weights = dict(model.named_parameters())
    broken = [name for name, weight in weights.items() if not bool(torch.isfinite(weight).all())]
    yield QUANTIZATION("weights are finite", "not finite", source="definition").none(
        broken, "parameters with NaN or infinity"
    )
    low = [name for name, weight in weights.items() if weight.dtype != torch.float32 or _is_coarse(weight)]
    yield QUANTIZATION(
        "latent weights have full precision",
        "stored or rounded to fewer bits",
        source="b1.58 training tips: latent weights stay in high precision",
    ).none(low, "parameters coarser than float32")
    count = sum(weight.numel() for weight in weights.values())
    yield QUANTIZATION(
        "parameter count",
        "parts of the model are missing, doubled, or a tied head is not tied",
        source="exact sum of the configuration's shapes",
    ).equal(count, model.config.total_params)
    tied = model.lm_head.weight is model.token_embeddings.weight
    yield QUANTIZATION(
        "head tied as configured",
        "the output head is not the embedding, or should not be",
        source="model.embeddings_tied",
    ).equal(tied, model.config.embeddings_tied)


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
    values: dict[str, float] = {}
    scales: dict[str, float] = {}
    codes: dict[str, float] = {}
    inputs: dict[str, float] = {}
    plain: dict[str, float] = {}
    zeros: dict[str, float] = {}
    generator = torch.Generator().manual_seed(7)
    for name, layer in model.bit_linears().items():
        rows = reference.matrix_rows(config, _kind(name))
        used = multiplied_by(layer, layer.in_features, layer.weight).double()
        right = reference.effective(layer.weight.detach(), rows, config)
        values[name] = max(_distinct(part) for part in torch.split(used, list(rows)))
        scales[name] = max(
            _scale_error(mine, true)
            for mine, true in zip(torch.split(used, list(rows)), torch.split(right, list(rows)), strict=True)
        )
        codes[name] = float((used.sign() != right.sign()).double().mean()) + float(
            (layer.weight_quantized != right.sign()).double().mean()
        )
        zeros[name] = float((used == 0).double().mean())
        x = off_the_edges(
            torch.randn(16, layer.in_features, generator=generator) * torch.logspace(-1, 1, 16)[:, None]
        ).to(used.device)
        with torch.no_grad():
            y = layer(x)
        # by the matrix that it really multiplies by: a weight on the edge of a code is the codes' matter, not
        # the inputs'
        plain[name] = off(y, x.double() @ used.T)
        inputs[name] = (
            off(y, reference.int8_values(x.double()) @ used.T)
            if config.activations == "int8"
            else plain[name]
        )
    if config.weights == "ternary":
        yield from _ternary(values, scales, codes, zeros)
    yield _activations(inputs, plain, config.activations == "int8")


def off_the_edges(x: Tensor) -> Tensor:
    """The same inputs, but none within a fiftieth of the edge between two int8 codes, where float32 may round
    either way. x: (N, in).
    """
    step = x.double().abs().amax(dim=-1, keepdim=True) / 127
    units = x.double() / step
    over = units - torch.floor(units) - 0.5  # 0 on an edge
    moved = torch.where(over.abs() < EDGE, units + EDGE * torch.where(over < 0, -1.0, 1.0), units)
    return (moved * step).float()


def _kind(short_name: str) -> str:
    return {"qkv": "qkv_proj", "out": "out_proj", "up": "gate_up", "down": "down"}[
        short_name.rsplit("_", 1)[-1]
    ]


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


def _ternary(
    values: dict[str, float], scales: dict[str, float], codes: dict[str, float], zeros: dict[str, float]
) -> Iterator[Check]:
    most, where = worst(values)
    yield QUANTIZATION(
        "weights in the forward pass are ternary",
        f"{where} multiplies by {most:g} different magnitudes",
        source="arXiv:2402.17764, section 2; columns measured from outside",
    ).holds(most <= 1, most, "one magnitude besides 0 in each logical matrix")
    error, where = worst(scales)
    yield QUANTIZATION(
        "scale is the mean magnitude",
        f"the scale of {where} is off by a factor of {error:.3g}",
        source="arXiv:2402.17764, section 2",
    ).below(error, EXACT)
    share, where = worst(codes)
    yield QUANTIZATION(
        "codes are those of the present weights",
        f"{where} uses codes that do not belong to its weights: stale, or by another rule",
    ).holds(below(share, 1e-3), share, "share of other codes <= 0.001 (ties)")
    odd = {name: share for name, share in zeros.items() if not 0.005 < share < 0.995}
    lowest, highest = min(zeros.values()), max(zeros.values())
    note = "" if lowest >= 0.2 and highest <= 0.6 else "; outside 20-60%, unusual"
    yield QUANTIZATION(
        "zeros among the codes",
        f"dead or saturated: {', '.join(list(odd)[:3])}",
        source="a Gaussian has 0.31; published models 0.30-0.47",
    ).holds(
        not odd,
        [round(lowest, 4), round(highest, 4)],
        f"no layer all zero or without zeros; trained models have 0.20-0.60{note}",
    )


def _activations(inputs: dict[str, float], plain: dict[str, float], int8: bool) -> Check:
    error, where = worst(inputs)
    unquantised = int8 and not below(error, ROUNDED) and plain[where] < error
    return QUANTIZATION(
        "inputs quantized to int8 per token" if int8 else "inputs left unquantized",
        f"{where}: "
        + (
            "the inputs are not quantized at all"
            if unquantised
            else "the layer's product is not codes * step * scale"
        ),
        source=f"arXiv:2402.17764, section 2; {SOURCE}",
    ).below(error, ROUNDED, "relative error of a layer's output")


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
        error, where = worst(found)
        yield QUANTIZATION(
            f"{kind} as in the papers",
            f"{where} computes something else than its formula on the input it was given",
        ).below(error, EXACT)


def _part_errors(
    model: BitNetTransformer, ids: Tensor, logits: Tensor, passed: dict[str, Passed]
) -> dict[str, dict[str, float]]:
    """Relative errors by kind of part and name."""
    config, weights = model.config, {name: weight.detach() for name, weight in model.named_parameters()}
    errors: dict[str, dict[str, float]] = defaultdict(dict)
    stream = passed["token_embeddings"].left.double()
    errors["embedding"]["token_embeddings"] = off(stream, weights["token_embeddings.weight"].double()[ids])
    for name, (entered, left) in passed.items():
        if name.endswith("norm"):
            errors["norms"][name] = off(
                left, reference.norm(entered, weights[f"{name}.weight"], config.norm_eps)
            )
    inner = ("sub_norm",) if config.sub_norm else ()
    for layer in range(config.num_layers):
        at = f"blocks.{layer}"
        into_out = passed[f"{at}.attention." + (inner or ("out_proj",))[0]].entered
        errors["attention and rotary"][at] = off(
            into_out, reference.attend(passed[f"{at}.attention.qkv_proj"].left, config)
        )
        into_down = passed[f"{at}.feedforward." + (inner or ("down",))[0]].entered
        errors["feed-forward"][at] = off(
            into_down, reference.gate(passed[f"{at}.feedforward.gate_up"].left, config)
        )
        middle = stream + passed[f"{at}.attention.out_proj"].left.double()
        end = middle + passed[f"{at}.feedforward.down"].left.double()
        errors["residual stream"][f"{at} (before attention)"] = off(
            passed[f"{at}.pre_attn_norm"].entered, stream
        )
        errors["residual stream"][f"{at} (after attention)"] = off(
            passed[f"{at}.pre_ffn_norm"].entered, middle
        )
        errors["residual stream"][at] = off(passed[at].left, end)
        stream = passed[at].left.double()
    head = weights["token_embeddings.weight" if config.embeddings_tied else "lm_head.weight"].double()
    errors["residual stream"]["into the final norm"] = off(passed["final_norm"].entered, stream)
    errors["head"]["lm_head"] = off(logits, passed["final_norm"].left.double() @ head.T)
    return errors


def whole(model: BitNetTransformer, ids: Tensor, logits: Tensor) -> Iterator[Check]:
    """All of it at once: nothing may happen between the parts either; and twice the same."""
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    with torch.no_grad():
        right = reference.logits(weights, model.config, ids)
    error = off(logits, right)
    yield QUANTIZATION(
        "logits as in the papers",
        "the forward pass as a whole differs although it may be right in its parts",
        weight=STRONG,
    ).below(error, WHOLE)
    again, _ = traced(model, ids, grad=True)
    error = off(again, logits)
    yield QUANTIZATION(
        "the same input gives the same logits",
        "something in the forward pass is random or keeps a memory",
        source="the model has no random part",
        weight=STRONG,
    ).below(error, 1e-4)


@torch.no_grad()
def order_of_tokens(model: BitNetTransformer, ids: Tensor, logits: Tensor) -> Iterator[Check]:
    """No position sees the future, and the order of the past matters."""
    cut = ids.shape[1] // 2
    future = ids.clone()
    future[:, cut:] = (future[:, cut:] + 1) % model.config.vocab_size
    changed, _ = traced(model, future)
    leak = off(changed[:, :cut], logits[:, :cut])
    yield QUANTIZATION(
        "causal mask holds",
        "earlier positions see later tokens: the loss falls to nothing and generation is garbage",
        source="definition of next-token prediction",
    ).holds(below(leak, 1e-4), leak, "changed future tokens change no earlier logit (1e-4)")
    swapped = ids.clone()
    swapped[:, [0, cut]] = ids[:, [cut, 0]]
    _, first = traced(model, ids)
    _, second = traced(model, swapped)
    name = "blocks.0.attention.sub_norm" if model.config.sub_norm else "blocks.0.attention.out_proj"
    moved = off(second[name].entered[:, -1], first[name].entered[:, -1])
    unlike = bool((ids[:, 0] != ids[:, cut]).any())
    yield QUANTIZATION(
        "positions matter",
        "the attention of the first layer does not see positions",
        source="arXiv:2104.09864: without positions attention is blind to order",
        weight=STRONG,
    ).holds(not unlike or moved > 1e-5, moved, "two earlier tokens swapped change the attention (> 1e-5)")


@torch.no_grad()
def start(fresh: BitNetTransformer) -> Iterator[Check]:
    """How a new model begins: knowing nothing, and not sure of anything."""
    config = fresh.config
    ids = random_ids(config.vocab_size, 8, min(64, config.max_seq_length), fresh.final_norm.weight.device)
    logits = fresh(ids)[:, :-1]
    uniform = math.log(config.vocab_size)
    mask = torch.ones_like(ids[:, 1:], dtype=torch.bool)
    loss = float(reference.summed_loss(logits, ids[:, 1:], mask)) / mask.sum().item()
    yield QUANTIZATION(
        "step-0 loss is ln(V)",
        "the model begins sure of wrong answers: look at the initialisation of embeddings and head",
        source="a uniform guess; 164 was seen with embeddings of N(0, 1)",
    ).holds(abs(loss - uniform) < STEP0_NATS, loss, f"{uniform:.2f} +- {STEP0_NATS:g} nats/token")
    spread = float(logits.float().std(dim=-1).mean())
    yield QUANTIZATION(
        "logit spread at step 0",
        "logits begin too wide, or all equal",
        source="above 2 the start is far from uniform; at 0 no input gets through (ours)",
        weight=HINT,
    ).holds(below(spread, 2) and spread > 1e-4, spread, "standard deviation in 0.0001..2")
