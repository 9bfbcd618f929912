"""Do the ternary layers compute the same in every number format that a run may use? Suspect: quantization.

On a GPU most of a layer's inputs are bfloat16, and the product runs on int8 codes; a fault there is invisible
in float32. Each layer of a twin is given inputs in float32, bfloat16 and float16, multiplies them every way,
and every token's output is compared with float64: steps and codes are exact functions of the input, whatever
its format, so only the last rounding may differ. Rows differ because a fault may strike few of them: where
the largest input rounds to 128 and wraps to -128, one row of ten changes its sign. Then the whole forward
pass, under autocast. Not here: float32 by itself (check_numerics.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from bitnet.diagnose import reference
from bitnet.diagnose.finding import STRONG, Check, Part
from bitnet.diagnose.subject import Subject
from bitnet.diagnose.trace import multiplied_by, off, random_ids, weights_of
from bitnet.diagnose.twin import KINDS, VOCABULARY, twin_of
from bitnet.nn.bitlinear import BitLinear, Product
from bitnet.nn.transformer import BitNetTransformer

EXACT = Part("quantization", "arXiv:2402.17764, section 2; arXiv:1910.07467; independent float64 computation")
FORMATS = {torch.float32: 1e-3, torch.bfloat16: 0.01, torch.float16: 0.0065}
"""Error allowed of one token's output, in units of its norm: a code on an edge in float32; rounding of
inputs, products and sums to 8 and 11 bits in the others (measured 0.0055 and 0.0041). Steps computed in the
input's format cost 0.017 and 0.008; a code that wraps 0.3 and more."""
WHOLE_FORMATS = {torch.bfloat16: 0.1, torch.float16: 0.06}
"""Of a lively twin's logits, where codes near an edge fall to the other side in every layer (measured 0.022
and 0.014)."""
TOKENS, ONCE = 256, 0.05
PRODUCTS: tuple[Product, ...] = ("float", "int8", "packed")


@torch.no_grad()
def formats(subject: Subject) -> Iterator[Check]:
    """All checks of this file."""
    if subject.config.weights != "ternary" or subject.config.activations != "int8":
        return
    model = twin_of(subject, KINDS[0]).model
    for kind, limit in FORMATS.items() if subject.device.type != "mps" else ():
        errors: dict[str, float] = {}
        for product in PRODUCTS:
            model.set_product(product)
            for name, layer in model.bit_linears().items():
                errors[f"{name}, {product} product"] = worst_token(layer, kind)
        other = f"the output differs by more than rounding where inputs are {named(kind)}"
        yield EXACT(f"layers compute the same in {named(kind)}", other).below(
            errors, limit, "relative error of any token"
        )
    yield norms(model)
    yield from whole(model)
    yield small_inputs(model)


def named(kind: torch.dtype) -> str:
    """bfloat16 and so on."""
    return str(kind).removeprefix("torch.")


@torch.no_grad()
def worst_token(layer: BitLinear, kind: torch.dtype) -> float:
    """Largest relative error of one token's output. Inputs have every scale that norms and gates produce."""
    generator = torch.Generator().manual_seed(127)
    x = torch.randn(TOKENS, layer.in_features, generator=generator) * torch.logspace(-2, 2, TOKENS)[:, None]
    x = x.to(kind).to(layer.weight.device)
    used = multiplied_by(layer, layer.in_features, layer.weight).double()
    right = reference.int8_values(x.double()) @ used.T  # (N, out)
    found = _in_format(layer, x)
    if found.shape != right.shape:
        return math.inf
    lost = torch.linalg.vector_norm(found.double() - right, dim=-1) / torch.linalg.vector_norm(right, dim=-1)
    return float(lost.nan_to_num(math.inf).max())


def _in_format(layer: BitLinear, x: Tensor) -> Tensor:
    """The layer as training calls it: bfloat16 and float16 under autocast."""
    with torch.autocast(x.device.type, x.dtype, enabled=x.dtype != torch.float32):
        y: Tensor = layer(x)
    return y


def norms(model: BitNetTransformer) -> Check:
    """Norms compute in float32 whatever comes in: what comes out is the exact value, rounded once."""
    norm = model.final_norm
    x = torch.randn(TOKENS, len(norm.weight), generator=torch.Generator().manual_seed(3))
    x = x.to(norm.weight.device)
    other: dict[str, float] = {}
    for kind in (torch.bfloat16, torch.float16):
        right = reference.norm(x.to(kind), norm.weight, norm.eps).to(kind)
        other[named(kind)] = float((norm(x.to(kind)) != right).double().mean())
    return EXACT("norms round once", "the norm is computed in the input's format").below(
        other, ONCE, "share of values that are not the exact one rounded"
    )


def whole(model: BitNetTransformer) -> Iterator[Check]:
    """The twin's logits under autocast, by every product."""
    ids = random_ids(VOCABULARY, 4, 40, model.device)
    right = reference.logits(weights_of(model), model.config, ids)
    for kind, limit in WHOLE_FORMATS.items():
        errors = {}
        for product in PRODUCTS:
            model.set_product(product, kind)
            with torch.autocast(ids.device.type, kind):
                errors[f"{product} product"] = off(model(ids), right)
        other = "the forward pass differs by more than rounding"
        yield EXACT(f"logits under {named(kind)} autocast", other, weight=STRONG).below(errors, limit)
    model.set_product("float")


def small_inputs(model: BitNetTransformer) -> Check:
    """Inputs of nothing, and of nearly nothing, give nothing, in every format."""
    found: dict[str, float] = {}
    for name, layer in model.bit_linears().items():
        for kind in FORMATS:
            x = torch.zeros(2, layer.in_features, dtype=kind, device=layer.weight.device)
            x[1, 0] = 1e-7
            found[f"{name} in {named(kind)}"] = float(_in_format(layer, x).double().abs().max())
    return EXACT(
        "an input of zeros gives zeros", "its step is not bounded below by the epsilon of 1e-5"
    ).below(found, 1e-5, "largest output")
