"""Does the packed engine, which writes text and judges models, compute what the model computes?
Suspect: engine.

The model itself is the reference, so a fault of the forward pass shows here too and is explained by it. Three
questions: do the packed matrices multiply by the model's; are the logits the model's, however a text is read;
and do all ways of reading give the same bits, which the engine promises. A twin has every mechanism, and
every format of the head. Where the engine cannot be used, that is said instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from bitnet.diagnose.finding import Check, Part
from bitnet.diagnose.subject import Subject
from bitnet.diagnose.trace import multiplied_by, off, random_ids
from bitnet.diagnose.twin import KINDS, twin_of
from bitnet.engine.choose import choose_engine
from bitnet.engine.decoder import PackedDecoder
from bitnet.engine.from_torch import packed
from bitnet.engine.matrix import DenseFormat, Matrix
from bitnet.engine.weights import default_head
from bitnet.errors import ConfigError
from bitnet.kernels import arrays
from bitnet.kernels.arrays import Array
from bitnet.nn.transformer import BitNetTransformer

ENGINE = Part(
    "engine",
    "the model itself, computed by PyTorch",
    explained_by=frozenset({"quantization", "gradients", "evaluation"}),
)
SAME_BITS = Part("engine", "the engine's own logits of the whole prompt")
MATRIX = 1e-5
"""Relative error of a matrix of ternary codes and a scale: the last bit."""
LOGITS: dict[DenseFormat, float] = {"f32": 0.06, "bf16": 0.08, "int8": 0.1, "int4": 0.3}
"""Relative error of a token's logits by the format of the head; the median of the tokens counts. In f32 an
input on the edge of a code moves those of its token and of later ones (measured 0.02, on one of 14 trained
models); the other formats round the embeddings too, which moves many such inputs (measured on twins 0.03,
0.04 and 0.09)."""
TOKENS = 24


class WayOfReading(NamedTuple):
    """Logits after the later ids of a text, float32 (n, V). mixed: the text goes on as another one does."""

    way: str
    mixed: bool
    logits: Array


def engine(subject: Subject) -> Iterator[Check]:
    """All checks of this file."""
    model = subject.model
    head = default_head(model.config)
    try:
        choose_engine(model, "packed", None)
    except ConfigError as error:
        yield ENGINE("the packed engine can be used", "").holds(
            True, f"not examined: {error}", "a CPU with kernels"
        )
        return

    decoder = packed(model, head=head)
    yield from matrices(model, decoder)
    yield from readings(model, decoder, head, "")
    twin = twin_of(subject, KINDS[0]).model
    yield from readings(twin, packed(twin, head="f32"), "f32", ", AdamW twin")
    yield heads(twin)


@torch.no_grad()
def matrices(model: BitNetTransformer, decoder: PackedDecoder) -> Iterator[Check]:
    """Each packed ternary matrix multiplies by the codes and scales of its layer."""
    errors = {}
    for (name, layer), matrix in zip(model.bit_linears().items(), in_order(decoder), strict=True):
        if matrix.format == "ternary":
            right = multiplied_by(layer, layer.in_features, layer.weight)
            errors[name] = off(torch.from_numpy(multiplies(matrix)), right)
    if errors:
        wrong = "the packed matrix has other codes or scales than the model's"
        yield ENGINE("packed matrices are the model's", wrong).below(errors, MATRIX)


def in_order(decoder: PackedDecoder) -> list[Matrix]:
    """The matrices of all layers, in the order of BitNetTransformer.bit_linears."""
    layers = decoder.weights.layers
    return [part for layer in layers for part in (layer.qkv, layer.attn_out, layer.gate_up, layer.down)]


def multiplies(matrix: Matrix) -> Array:
    """The matrix (out, in) that a packed one multiplies by, found with unit vectors."""
    tiles = arrays.Packed(matrix.data, matrix.out_features, matrix.in_features)
    unit = np.eye(matrix.in_features, dtype=np.int8)
    return arrays.product(tiles, unit, np.ones(len(unit), np.float32), matrix.scale).T


@torch.no_grad()
def readings(
    model: BitNetTransformer, decoder: PackedDecoder, head: DenseFormat, kind: str
) -> Iterator[Check]:
    """Logits against the model's, and against each other, by the way that a text was read."""
    tokens = min(TOKENS, model.config.max_seq_length // 2)
    ids = random_ids(model.config.vocab_size, 3, tokens, model.device)
    half = max(tokens // 2, 1)
    mixed = torch.cat([ids[0, :half], ids[1, half:]])
    right = [model(text.unsqueeze(0))[0, half - 1 :] for text in (ids[0], mixed)]
    found = read_in_ways(decoder, ids.tolist(), half)

    errors = {one.way: usual_error(one.logits, right[one.mixed]) for one in found}
    other = f"the engine computes other logits than the model (head {head})"
    yield ENGINE(f"the engine's logits are the model's{kind}", other).below(
        errors, LOGITS[head], "relative error of the median token"
    )
    whole = {one.mixed: one.logits for one in found if one.way.endswith("as a prompt")}
    differ = [one.way for one in found if not np.array_equal(one.logits, whole[one.mixed])]
    yield SAME_BITS(
        f"every way of reading gives the same bits{kind}", "keys, values or positions are wrong"
    ).none(differ, "ways with other logits")


def usual_error(found: Array, right: Tensor) -> float:
    """The median over tokens of the relative error of their logits. found, right: (T, V)."""
    errors = [off(one, other) for one, other in zip(torch.from_numpy(found), right.cpu(), strict=True)]
    return sorted(errors)[len(errors) // 2]


def read_in_ways(decoder: PackedDecoder, ids: list[list[int]], half: int) -> list[WayOfReading]:
    """The first text, and the first that goes on as the second does, after `half` ids. ids: three texts of
    one length.
    """
    first, second, third = ids
    mixed = [*first[:half], *second[half:]]
    rows = decoder.new_rows(3, 2 * len(first))  # a fault may read more than it should

    def again() -> None:
        for row in range(3):
            rows.take_back(row, 0)

    found = []
    for is_mixed, text in enumerate((first, mixed)):
        again()
        logits = rows.read({0: text}, every=True)[half - 1 :]
        found.append(
            WayOfReading("another text as a prompt" if is_mixed else "as a prompt", bool(is_mixed), logits)
        )

    again()
    parts = [rows.read({0: first[:half]}), *(rows.read({0: [token]}) for token in first[half:])]
    found.append(WayOfReading("in single steps", False, np.concatenate(parts)))

    again()
    begun = rows.read({2: third, 1: second[:1], 0: first[:half]})[2:]
    parts = [
        begun,
        *(rows.read({1: [one], 0: [two]})[1:] for one, two in zip(second[1:], first[half:], strict=False)),
    ]
    found.append(WayOfReading("beside rows of other lengths", False, np.concatenate(parts)))

    again()
    begun = rows.read({0: first[:half]})
    rows.branch(0, 1)
    rows.read({0: first[half:] or first[:1]})
    parts = [begun, *(rows.read({1: [token]}) for token in second[half:])]
    found.append(WayOfReading("after branching", True, np.concatenate(parts)))

    again()
    begun = rows.read({0: first}, every=True)[half - 1 : half]
    rows.take_back(0, half)
    parts = [begun, *(rows.read({0: [token]}) for token in second[half:])]
    found.append(WayOfReading("after taking back", True, np.concatenate(parts)))
    return found


@torch.no_grad()
def heads(model: BitNetTransformer) -> Check:
    """Every format of the head gives the model's logits, as exactly as it can."""
    ids = random_ids(model.config.vocab_size, 1, TOKENS, model.device)
    right = model(ids)[0]
    shares = {}
    for form in get_args(DenseFormat):
        found = packed(model, head=form).new_rows(1).read({0: ids[0].tolist()}, every=True)
        shares[f"head {form}"] = usual_error(found, right) / LOGITS[form]
    return ENGINE("every format of the head, AdamW twin", "its codes or scales are wrong").below(
        shares, 1.0, "of the error that its format allows"
    )
