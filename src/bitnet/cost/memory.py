"""Memory of one training process, term by term, from what bitnet.nn keeps for the backward pass.

Weights, optimizer state, and ternary codes with their dequantized copies are held at all times. The larger of
two moments is added to them and decides the peak:

    backward pass   everything that the forward pass kept (the ledgers below), and the work of the first
                    steps back: at the head two more tensors of tokens x vocabulary (three with
                    unlikelihood), or in the last feed-forward three of tokens x inner width. If micro-
                    batches accumulate, all gradients are held too.
    update          all gradients, and for Muon the directions and the stacked matrices of its iteration

Tensors are counted as autograd keeps them in eager mode with a fused attention kernel (which keeps queries,
keys, values, output and one number per head, never T x T). Tests compare the ledgers with the tensors that
autograd saves, byte for byte, and the peak with the allocator's.

Not here: torch.compile, which fuses and usually needs less; fragmentation; the memory of evaluation.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

import torch

from bitnet.nn.attend import LONG_ROW
from bitnet.nn.bitlinear import Product
from bitnet.nn.config import BitNetConfig
from bitnet.nn.packed_linear import InputGradient
from bitnet.optim.optimizer import OptimizerKind, muon_in_bf16
from bitnet.train.config import TrainConfig
from bitnet.train.device import choose_fused_blocks, choose_fused_loss, choose_input_gradient, choose_product
from bitnet.train.head_loss import PART_BYTES

DeviceType = Literal["cpu", "cuda"]
FLOAT = 4  # bytes of float32: weights, gradients, optimizer state, residual stream
INDEX = 8  # bytes of a token id
PACKED = 0.25  # bytes of a packed code


@dataclass(frozen=True, kw_only=True)
class Numerics:
    """How a device multiplies: the product of ternary layers, and whether autocast to bf16 runs."""

    device: DeviceType
    product: Product
    bf16: bool
    """Or fp16, which takes as much."""
    input_gradient: InputGradient = "float"
    fused_loss: bool = False
    fused_blocks: bool = False
    short_rows: bool = False
    """Whether attention keeps float32 under autocast where ternary layers return it (nn/attend.py)."""

    @property
    def on_codes(self) -> bool:
        """Whether products multiply codes, so that the backward pass keeps int8 inputs."""
        return self.product in ("packed", "int8")

    @property
    def code_bytes(self) -> float:
        """What is held of each ternary weight: its code, and what the input gradient multiplies by."""
        forward = {"packed": PACKED, "int8": 1.0}.get(self.product, 0.0)
        backward = PACKED if self.input_gradient == "int8" else self.half
        return forward + backward if self.on_codes else 0.0

    @property
    def half(self) -> int:
        """Bytes of a number that autocast touches."""
        return 2 if self.bf16 else FLOAT


def numerics_on(device: DeviceType, model: BitNetConfig, train: TrainConfig) -> Numerics:
    """What training chooses (train/device.py). A GPU is assumed to have capability 8.0 or newer."""
    bf16 = train.precision in ("bf16", "fp16") or (train.precision == "auto" and device == "cuda")
    fused_loss = choose_fused_loss(train, {}, model)
    short_rows = device == "cpu" and train.seq_len < LONG_ROW
    if "full" in (model.weights, model.activations):
        return Numerics(
            device=device, product="float", bf16=bf16, fused_loss=fused_loss, short_rows=short_rows
        )
    on_gpu = {"linear_product": "int8"} if device == "cuda" else {}
    product = choose_product(train, torch.device("cpu"), on_gpu)
    input_gradient = choose_input_gradient(train, product, on_gpu)
    return Numerics(
        device=device,
        product=product,
        bf16=bf16,
        input_gradient=input_gradient,
        fused_loss=fused_loss,
        fused_blocks=choose_fused_blocks(train, product, torch.device("cpu"), on_gpu),
        short_rows=short_rows,
    )


def ternary_shapes(model: BitNetConfig) -> Counter[tuple[int, int]]:
    """How often each logical matrix (out, in) that can be ternary occurs in the model."""
    width, inner, keys = model.hidden_size, model.ffn_hidden_size, model.num_kv_heads * model.head_dim
    attention = [(width, width), (keys, width), (keys, width), (width, width)]  # q, k, v, output
    feedforward = [(inner, width), (inner, width), (width, inner)]  # gate, up, down
    # multiplied afterwards, because a configuration may name a billion layers
    return Counter(
        {shape: count * model.num_layers for shape, count in Counter(attention + feedforward).items()}
    )


def ternary_weights(model: BitNetConfig) -> int:
    """The number of weights in these matrices."""
    return sum(out * width * count for (out, width), count in ternary_shapes(model).items())


def factor_bytes(model: BitNetConfig, numerics: Numerics) -> int:
    """Bytes of a number in the float product, which is float32 for quantized ones even inside autocast."""
    quantized = model.weights == "ternary" and model.activations == "int8"
    return FLOAT if quantized else numerics.half


def layer_ledger(model: BitNetConfig, numerics: Numerics) -> dict[str, int]:
    """Bytes that one layer keeps for each token until its backward pass, by kind."""
    width, inner, keys = model.hidden_size, model.ffn_hidden_size, model.num_kv_heads * model.head_dim
    integer, factor = numerics.on_codes, factor_bytes(model, numerics)
    # quantized products return the dtype of their input, which a norm made: float32
    wide = FLOAT if integer else factor
    half = wide if numerics.short_rows else numerics.half  # of what attention reads and returns
    cast = wide > half  # attention then casts q, k and v, and the originals are freed
    copied = model.activations == "int8" or model.sub_norm  # else the product shares the attention's output
    ledger = {
        "residual stream at both norms": 2 * (FLOAT * width + FLOAT),
        "input of q, k, v": width + FLOAT if integer else factor * width,
        "q, k, v": half * (width + 2 * keys) + (0 if cast else half * (width + keys)),
        "attention output": half * width + FLOAT * model.num_heads,
        "input of output projection": width + FLOAT if integer else factor * width * copied,
        "input of gate, up": width + FLOAT if integer else factor * width,
        "gate, up": wide * 2 * inner,
        "activation": wide * inner * (1 if model.activation == "silu" else 2),
        "input of down projection": inner + FLOAT if integer else factor * inner,
    }
    if numerics.fused_blocks:  # neither what rotary positions read nor what a gate makes is kept
        ledger["q, k, v"] = half * (width + 2 * keys)
        del ledger["activation"]
        if model.sub_norm:  # which reads the attention's output with the heads in order
            ledger["sub-norms"] = half * width + 2 * FLOAT
    elif model.sub_norm:  # float32 attention output is counted already
        ledger["sub-norms"] = FLOAT * inner + (FLOAT * width if half < FLOAT else 0) + 2 * FLOAT
    return ledger


def head_ledger(model: BitNetConfig, numerics: Numerics, unlikely: int = 0) -> dict[str, int]:
    """Bytes that final norm, head and loss keep for each token. unlikely: tokens with unlikelihood."""
    ledger = {
        "final norm": FLOAT * model.hidden_size + FLOAT,
        "input of head": numerics.half * model.hidden_size,
        "log-probabilities": FLOAT * model.vocab_size,
    }
    if numerics.fused_loss and not unlikely:
        del ledger["log-probabilities"]
        ledger["gradient of the head's input"] = numerics.half * model.hidden_size
    if unlikely:
        # logits and their normaliser; of each recent token its id, two numbers, and whether it counts
        ledger["unlikelihood"] = FLOAT * (model.vocab_size + 1) + (INDEX + 2 * FLOAT + 1) * unlikely
    return ledger


def kept_copies(model: BitNetConfig, numerics: Numerics, seq_len: int) -> int:
    """Bytes that a micro-batch of any size keeps: the weights of the float product, and bf16 casts."""
    changed = numerics.product == "float" and (model.weights == "ternary" or numerics.bf16)
    factor = factor_bytes(model, numerics)
    copies = factor * ternary_weights(model) if changed else 0
    if numerics.bf16:
        copies += 2 * model.vocab_size * model.hidden_size
        if not numerics.on_codes and factor != FLOAT:
            copies += 8 * model.num_layers * seq_len * model.head_dim  # rotary tables
    return copies


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes at one micro-batch size. The first three are always held; the module explains the rest."""

    weights: int
    optimizer: int
    ternary_codes: int
    gradients: int
    activations: int
    backward_work: int
    update_work: int
    accumulates: bool
    """Whether gradients of earlier micro-batches are held during the backward pass."""

    @property
    def peak(self) -> int:
        """The most that tensors take at once."""
        backward = self.activations + self.backward_work + (self.gradients if self.accumulates else 0)
        held = self.weights + self.optimizer + self.ternary_codes
        return held + max(backward, self.gradients + self.update_work)


def memory_of(model: BitNetConfig, train: TrainConfig, numerics: Numerics) -> Memory:
    """Memory of one process that trains this model in micro-batches of train.batch_size rows."""
    tokens = train.batch_size * train.seq_len
    unlikely = train.unlikelihood_tokens if max(train.stage1_unlikelihood, train.stage2_unlikelihood) else 0
    head = tokens * sum(head_ledger(model, numerics, unlikely).values())
    layers = tokens * model.num_layers * sum(layer_ledger(model, numerics).values())
    return Memory(
        weights=FLOAT * model.total_params,
        optimizer=optimizer_bytes(model, train.optimizer),
        ternary_codes=int(ternary_weights(model) * numerics.code_bytes),
        gradients=FLOAT * model.total_params,
        activations=layers + head + kept_copies(model, numerics, train.seq_len),
        backward_work=_backward_work(model, numerics, tokens, head, unlikely),
        update_work=_update_work(model, train, numerics),
        accumulates=train.grad_accumulation_steps > 1,
    )


def optimizer_bytes(model: BitNetConfig, kind: OptimizerKind) -> int:
    """AdamW keeps two float32 numbers for each parameter. Muon keeps one for each ternary weight."""
    return 2 * FLOAT * model.total_params - (FLOAT * ternary_weights(model) if kind == "muon" else 0)


def _backward_work(model: BitNetConfig, numerics: Numerics, tokens: int, head: int, unlikely: int) -> int:
    """Beyond what is kept: two gradients of the logits, or the last feed-forward's once the head's are freed.

    With unlikelihood there are three gradients of the logits, while a number and a mark of each recent token
    are freed already; if these tokens are many beside the vocabulary, their marks take more.
    """
    wide = FLOAT if numerics.on_codes else numerics.half
    tensors = 4 if model.sub_norm else 3  # the product's backward; that of a norm, which holds one more
    feedforward = tokens * (tensors * wide * model.ffn_hidden_size + FLOAT * model.hidden_size)
    logits = tokens * 2 * FLOAT * model.vocab_size
    if unlikely:
        each = max(3 * FLOAT * model.vocab_size - (FLOAT + 1) * unlikely, (2 * INDEX + 1) * unlikely)
        logits = tokens * each
    elif numerics.fused_loss:
        # As many as are made at a time. The head's gradient is held as well, and counted with the others.
        logits = min(tokens * numerics.half * model.vocab_size, PART_BYTES)
    return max(logits, feedforward + FLOAT * model.vocab_size * model.hidden_size - head)


def _update_work(model: BitNetConfig, train: TrainConfig, numerics: Numerics) -> int:
    """Muon: a direction for each weight; three copies and two Gram matrices of the largest group of shapes.

    Otherwise the sum of a tied embedding's two gradients, which is held just before the update.
    """
    summing = 2 * FLOAT * model.vocab_size * model.hidden_size if model.embeddings_tied else 0
    if train.optimizer == "adamw":
        return summing
    shapes = ternary_shapes(model).items()
    group = max(count * (3 * out * width + 2 * min(out, width) ** 2) for (out, width), count in shapes)
    directions = FLOAT * ternary_weights(model)
    in_bf16 = muon_in_bf16(train.muon_precision, numerics.device)
    return max(directions + (2 if in_bf16 else FLOAT) * group, summing)
