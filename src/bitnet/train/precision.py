"""Whether bf16 pays on this CPU: measured at a run's own shape before it begins, and remembered.

A CPU with bf16 units (avx512_bf16, amx_bf16, Arm's bf16) multiplies bf16 two to three times as fast as
float32; one without takes two to three times as long. A small model may lose either way, since casts take
more than its products. So three pieces of an update are timed in both formats, forward and backward, with the
products, gradients and fused forms that the run will use: one block, attention over a whole row where the
block had to be shortened, and the head with the loss. Their times, multiplied by how much of them an update
has, are compared.

It takes two seconds at most. The result is kept in `$XDG_CACHE_HOME/bitnet/precision` (default ~/.cache), in
a file named by the processor, the versions and the shape. A file that is damaged, or that another user could
have written, is ignored. Not here: what a run that is continued does (device.py).
"""

from __future__ import annotations

import dataclasses
import math
import os
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor

from bitnet.data.stream import Batch
from bitnet.errors import BitnetError
from bitnet.files import read_json, sha256_of, write_json
from bitnet.kernels import library
from bitnet.nn.attend import LONG_ROW, attend
from bitnet.nn.bitlinear import Product
from bitnet.nn.config import BitNetConfig
from bitnet.nn.packed_linear import InputGradient, WeightGradient
from bitnet.nn.transformer import BitNetTransformer
from bitnet.run.provenance import cpu_model
from bitnet.train.config import TrainConfig
from bitnet.train.objective import NextToken, terms_of

LIMIT_SECONDS = 1.2
"""No round is begun after this time, but the first, which warms up, and one more."""
LEAST_FLOPS = 1e9
"""Of a micro-batch. Below, calls and casts take longer than products, and nothing is measured: a doubtful
round number, some 10 ms of one core."""
BLOCK_FLOPS, HEAD_FLOPS, HEAD_TOKENS = 20e9, 5e9, 512
"""The most of a piece, forward and backward. The block of 95M gets 400 tokens, and its head 512 tokens and a
part of its entries: with far fewer tokens, casts of weights would count for too much."""
GAIN = 1.03
"""How much faster bf16 has to be. Timings repeat to a few percent."""
MOST_ROUNDS = 8
MOST_FILES, MOST_BYTES = 256, 4096

Piece = tuple[Callable[[], Tensor], float]
"""A forward pass, and how many of it an update has."""


@dataclass(frozen=True)
class Measurement:
    """Estimated processor time of forward and backward of a micro-batch in both formats."""

    fp32_ms: float
    bf16_ms: float
    remembered: bool = False
    """Whether an earlier process measured it."""

    @property
    def bf16_pays(self) -> bool:
        """Whether to train in bf16."""
        return self.bf16_ms * GAIN < self.fp32_ms

    def facts(self) -> dict[str, Any]:
        """For meta/provenance.json."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Form:
    """How ternary layers and the loss compute in what is timed, as chosen in device.py."""

    product: Product
    input_gradient: InputGradient = "float"
    fused_loss: bool = False
    fused_blocks: bool = False
    weight_gradient: WeightGradient = "fp32"
    """Beside fp32."""


def measured(model: BitNetConfig, train: TrainConfig, form: Form) -> Measurement | None:
    """The measurement of this shape on this machine, remembered or made now; None for a tiny micro-batch.

    The random state of training does not move.
    """
    tokens = train.batch_size * train.seq_len
    if model.flops_per_token(train.seq_len) * tokens < LEAST_FLOPS:
        return None
    key = _key(model, train, form)
    known = _remembered(key)
    if known is not None:
        return known
    with torch.random.fork_rng(devices=[]):
        found = _measure(list(_pieces(model, train, form)))
    _remember(key, found)
    return found


def _measure(pieces: list[Piece]) -> Measurement:
    """The fastest of several rounds for each piece and format. The first round also warms up."""
    started, rounds = time.perf_counter(), 0
    best = {bf16: [math.inf] * len(pieces) for bf16 in (False, True)}
    while rounds < 2 or (rounds < MOST_ROUNDS and time.perf_counter() - started < LIMIT_SECONDS):
        for index, (forward, _) in enumerate(pieces):
            for bf16, fastest in best.items():
                fastest[index] = min(fastest[index], _seconds(forward, bf16=bf16))
        rounds += 1
    totals = {
        bf16: sum(value * times for value, (_, times) in zip(values, pieces, strict=True)) * 1e3
        for bf16, values in best.items()
    }
    return Measurement(totals[False], totals[True])


def _seconds(forward: Callable[[], Tensor], *, bf16: bool) -> float:
    """Of the processor, on all threads: other processes change it little, and here only the ratio counts."""
    before = time.process_time()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        out = forward()
    out.sum().backward()  # type: ignore[no-untyped-call]
    return time.process_time() - before


def _pieces(config: BitNetConfig, train: TrainConfig, form: Form) -> Iterator[Piece]:
    """One block, attention where that block is shorter than a row, and the head with the loss."""
    tokens, seq_len = train.batch_size * train.seq_len, train.seq_len
    one_layer = dataclasses.replace(config, num_layers=1, vocab_size=1)
    model = BitNetTransformer(one_layer)
    parts = config.parameter_breakdown()
    weights = (parts["attention"] + parts["feedforward"]) / config.num_layers
    some = max(1, min(tokens, int(BLOCK_FLOPS / (6 * weights))))
    rows, length = max(1, some // seq_len), min(some, seq_len)
    x = torch.randn(rows, length, config.hidden_size, requires_grad=True)

    def block() -> Tensor:
        # As in training: the gradient dtypes go with the format that is being timed.
        in_bf16 = torch.is_autocast_enabled("cpu")
        rounded = train.weight_gradient != "fp32" if in_bf16 else form.weight_gradient == "bf16"
        dtype, weight_dtype = (torch.bfloat16 if half else torch.float32 for half in (in_bf16, rounded))
        if config.on_codes:
            formats = dtype, form.input_gradient, weight_dtype
            model.set_product(form.product, *formats, fused=form.fused_blocks)
        out: Tensor = model.blocks[0](x, model.cos[:length], model.sin[:length])
        return out

    yield block, config.num_layers * tokens / (rows * length)
    if length < seq_len:
        yield _attention(config, seq_len), config.num_layers * train.batch_size

    some = min(tokens, HEAD_TOKENS)
    entries = max(1, min(config.vocab_size, int(HEAD_FLOPS / (6 * some * config.hidden_size))))
    head = _head(entries, config.hidden_size, some, fused_loss=form.fused_loss)
    yield head, tokens / some * config.vocab_size / entries


def _attention(config: BitNetConfig, seq_len: int) -> Callable[[], Tensor]:
    sides = [(1, heads, seq_len, config.head_dim) for heads in (config.num_heads, *[config.num_kv_heads] * 2)]
    q, k, v = (torch.randn(side, requires_grad=True) for side in sides)
    return lambda: attend(q, k, v, causal=True)


def _head(entries: int, width: int, tokens: int, *, fused_loss: bool) -> Callable[[], Tensor]:
    hidden = torch.randn(1, tokens, width, requires_grad=True)
    weight = torch.full((entries, width), 0.01, requires_grad=True)
    ids = torch.randint(0, entries, (1, tokens))
    batch = Batch(ids, ids, torch.ones_like(ids, dtype=torch.bool))

    def forward(ids: Tensor, *, head: bool = True) -> Tensor:
        return F.linear(hidden, weight) if head else hidden

    return lambda: terms_of(NextToken(), forward, batch, weight if fused_loss else None)


def _key(model: BitNetConfig, train: TrainConfig, form: Form) -> dict[str, Any]:
    """All that the times depend on."""
    return {
        "cpu": cpu_model(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "kernels": library.path(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "model": dataclasses.asdict(model),
        "rows": train.batch_size,
        "tokens": train.seq_len,
        "form": dataclasses.asdict(form),
        "weight_gradient": train.weight_gradient,
        "float32_attention_below": LONG_ROW,
    }


def _file(key: dict[str, Any]) -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "bitnet" / "precision" / f"{sha256_of(repr(sorted(key.items())))[:32]}.json"


def _remembered(key: dict[str, Any]) -> Measurement | None:
    """What an earlier process of this user measured; None where there is nothing to be trusted."""
    try:
        file = _file(key)
        about = file.lstat()
        others_write = about.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if not stat.S_ISREG(about.st_mode) or about.st_uid != os.geteuid() or others_write:
            return None
        stored = read_json(file, MOST_BYTES)
    except (OSError, RuntimeError, BitnetError):  # RuntimeError: a user without a home
        return None
    fp32_ms, bf16_ms = stored.get("fp32_ms"), stored.get("bf16_ms")
    if stored.get("key") != key or not (_is_time(fp32_ms) and _is_time(bf16_ms)):
        return None
    return Measurement(fp32_ms, bf16_ms, remembered=True)


def _is_time(value: object) -> TypeGuard[float]:
    return isinstance(value, float) and 0 < value < 1e9


def _remember(key: dict[str, Any], found: Measurement) -> None:
    """Keep a measurement, and delete the oldest files beyond MOST_FILES. Without a cache it is made again."""
    try:
        file = _file(key)
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_json(file, {"key": key, "fp32_ms": found.fp32_ms, "bf16_ms": found.bf16_ms})
        file.chmod(0o600)  # whatever the umask
        for old in sorted(file.parent.glob("*.json"), key=lambda path: path.stat().st_mtime)[:-MOST_FILES]:
            old.unlink(missing_ok=True)
    except (OSError, RuntimeError):
        return
