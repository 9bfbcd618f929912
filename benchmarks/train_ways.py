"""The ways to train that benchmarks/train_speed.py compares: ours in every choice, and its peers.

A peer differs from ours in its linear layers alone: it trains in the same loop, with the same loss.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_type_hints

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bitnet.allocator import keep_freed_memory
from bitnet.data.stream import Batch
from bitnet.experiments.shapes import ARITHMETIC, BASELINE, BITNUT, SMALL, TINYSTORIES
from bitnet.kernels import ops
from bitnet.nn.bitlinear import BitLinear
from bitnet.nn.config import BitNetConfig
from bitnet.nn.transformer import BitNetTransformer
from bitnet.optim.optimizer import Optimizers
from bitnet.train.compiled import Paths, choose_paths
from bitnet.train.config import TrainConfig
from bitnet.train.device import Machine, choose_machine, peak_flops
from bitnet.train.loop import StepReport, train_steps

SHAPES = {
    "small": (SMALL, 32, 64),
    "arithmetic": (ARITHMETIC, 32, 64),
    "tinystories": (TINYSTORIES, 16, 256),
    "95m": (BASELINE, 2, 1024),
    "133m": (BITNUT, 2, 1024),
}
"""Model, rows and tokens of a micro-batch. "small" is that of arithmetic `quick`."""
CUDA_TOKENS = 1 << 15
"""Tokens of a micro-batch on a GPU, which small ones would leave idle."""
CHOICES = ("product", "precision", "input_gradient", "fused")
"""Fields of TrainConfig that say how to compute; "ours" has a way for each combination."""


@dataclass(frozen=True)
class Way:
    """A linear layer, and the settings of training that differ from the defaults."""

    layer: Literal["ours", "dense", "transformers"]
    train: dict[str, str] = field(default_factory=dict)


def _ways() -> Iterator[tuple[str, Way]]:
    yield "ours auto", Way("ours")
    yield "ours auto eager", Way("ours", {"compile": "off"})
    yield "ours auto compiled", Way("ours", {"compile": "on"})
    # The forms for GPUs: which of them pays is to be measured there.
    for product, form in itertools.product(("int8", "autocast"), ("on", "graphs")):
        train = {"product": product, "precision": "bf16", "compile": form}
        yield f"ours {product} bf16 {'compiled' if form == 'on' else 'graphs'}", Way("ours", train)
    yield "dense bf16 graphs", Way("dense", {"precision": "bf16", "compile": "graphs"})
    hints = get_type_hints(TrainConfig)
    options = {
        name: [choice for choice in get_args(hints[name]) if choice not in ("auto", "fp16")]
        for name in CHOICES
        if name in hints
    }
    for values in itertools.product(*options.values()):
        train = dict(zip(options, values, strict=True))
        # The other products have no integer gradient.
        if train["product"] == "packed" or train["input_gradient"] == "float":
            words = [
                {"input_gradient": f"{value}-gradient", "fused": f"fused-{value}"}.get(name, value)
                for name, value in train.items()
            ]
            name, eager = " ".join(["ours", *words]), {**train, "compile": "off"}
            yield name, Way("ours", eager)
            if (train["product"], train["precision"]) == ("packed", "fp32"):
                yield f"{name} bf16-weights", Way("ours", {**eager, "weight_gradient": "bf16"})
    for layer, precision in itertools.product(("dense", "transformers"), ("fp32", "bf16")):
        kind: Literal["dense", "transformers"] = "dense" if layer == "dense" else "transformers"
        yield f"{layer} {precision}", Way(kind, {"precision": precision, "compile": "off"})
        yield f"{layer} {precision} compiled", Way(kind, {"precision": precision, "compile": "on"})


WAYS = dict(_ways())


class RandomRows:
    """Rows of random tokens, all scored. They cost nothing to read."""

    def __init__(self, vocab_size: int, rows: int, tokens: int) -> None:
        ids = torch.randint(0, vocab_size, (rows, tokens + 1))
        self.batch = Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), torch.ones(rows, tokens) > 0)

    def rows(self, numbers: NDArray[np.int64]) -> Batch:
        """The same rows whatever their numbers."""
        return self.batch

    def epochs(self, rows: int) -> float:
        """Data without an end."""
        return 0.0

    def fingerprint(self) -> dict[str, Any]:
        """Nothing that a run would record."""
        return {}


@dataclass(frozen=True)
class Run:
    """A way that is about to train. updates: one report for each update."""

    way: Way
    model: BitNetTransformer
    machine: Machine
    rows: int
    tokens: int
    updates: Iterator[StepReport]
    formats: str
    """What the way has really chosen."""

    @property
    def flops(self) -> float:
        """Operations of an update."""
        return float(self.model.config.flops_per_token(self.tokens) * self.rows * self.tokens)

    @property
    def peak_flops(self) -> float | None:
        """Of the device in bf16, where it is known."""
        return peak_flops(self.machine.device)


def begin(shape: str, name: str, device: torch.device, *, updates: int, rows: int | None = None) -> Run:
    """A fresh model that trains this way on random tokens."""
    torch.manual_seed(0)
    keep_freed_memory()
    way = WAYS[name]
    config, own_rows, tokens = SHAPES[shape]
    rows = rows or (own_rows if device.type == "cpu" else CUDA_TOKENS // tokens)
    changes: dict[str, Any] = way.train
    train = TrainConfig(seq_len=tokens, batch_size=rows, total_steps=updates, peak_lr=1e-4, **changes)
    machine = choose_machine(train, device, model=config)
    model = _model(config, way).to(device)
    source = RandomRows(config.vocab_size, rows, tokens)

    paths = Paths(model, "float", "float", compiled=False, fused_loss=machine.fused_loss)
    if way.layer != "transformers":
        paths = choose_paths(model, machine, train, source, print, {})
    elif train.compile == "on":
        paths = dataclasses.replace(paths, forward=torch.compile(model), compiled=True)
    optimizers = Optimizers(model, train.optimizer_config())
    steps = train_steps(
        model, paths.forward, source, optimizers, train, bf16=machine.bf16, fused_loss=paths.fused_loss
    )
    formats = _formats(model, machine, paths)
    return Run(way, model, machine, rows, tokens, steps, formats)


def _model(config: BitNetConfig, way: Way) -> BitNetTransformer:
    if way.layer == "dense":
        return BitNetTransformer(dataclasses.replace(config, weights="full", activations="full"))
    model = BitNetTransformer(config)
    if way.layer == "transformers":
        _use_transformers(model)
    return model


def _use_transformers(model: BitNetTransformer) -> None:
    """Put AutoBitLinear in the place of every ternary layer, with the same weights."""
    from transformers.integrations.bitnet import AutoBitLinear

    names = [name for name, module in model.named_modules() if isinstance(module, BitLinear)]
    for name in names:
        ours = model.get_submodule(name)
        assert isinstance(ours, BitLinear)
        theirs = AutoBitLinear(ours.in_features, ours.out_features, bias=False, online_quant=True)
        theirs.weight = ours.weight
        model.set_submodule(name, theirs)


def _formats(model: BitNetTransformer, machine: Machine, paths: Paths) -> str:
    words = ["bf16" if machine.bf16 else "fp32"]
    if any(isinstance(layer, BitLinear) and layer.weights == "ternary" for layer in model.modules()):
        words.insert(0, paths.product)
    if paths.weight_gradient != ("bf16" if machine.bf16 else "fp32") and paths.product == "packed":
        words.append(f"{paths.weight_gradient} weight gradient")
    if paths.input_gradient != "float":
        words.append(f"{paths.input_gradient} gradient")
    return ", ".join(words + ["fused loss"] * paths.fused_loss + ["compiled"] * paths.compiled)


def bare_products_ms(run: Run, repeats: int) -> tuple[float, float]:
    """Wall and processor time of the forward and both gradient products of every layer and the head."""
    head = run.model.lm_head
    layers: dict[tuple[int, int], list[nn.Module]] = {}
    for layer in run.model.bit_linears().values():
        layers.setdefault((layer.out_features, layer.in_features), []).append(layer)
    wall, processor = _timed(_products(run, head, head.weight.shape), repeats, run.machine.device)
    for sides, some in layers.items():
        one = _timed(_products(run, some[0], torch.Size(sides)), repeats, run.machine.device)
        wall, processor = wall + len(some) * one[0], processor + len(some) * one[1]
    return wall, processor


def _timed(action: Callable[[], Any], repeats: int, device: torch.device) -> tuple[float, float]:
    """Median wall and processor time of an action after one warm-up, in ms."""
    clocks = []
    for _ in range(repeats + 1):
        before = time.perf_counter(), time.process_time()
        action()
        if device.type == "cuda":
            torch.cuda.synchronize()
        clocks.append(((time.perf_counter() - before[0]) * 1e3, (time.process_time() - before[1]) * 1e3))
    return statistics.median(c[0] for c in clocks[1:]), statistics.median(c[1] for c in clocks[1:])


def _products(run: Run, layer: nn.Module, sides: torch.Size) -> Callable[[], Any]:
    """y = x W^T, dx = dy W, dW = dy^T x, in the formats of this layer."""
    (out, width), device = sides, run.machine.device
    tokens = run.rows * run.tokens
    autocast = torch.bfloat16 if run.machine.bf16 else torch.float32
    product = layer.product if isinstance(layer, BitLinear) and layer.weights == "ternary" else "dense"
    # The float product keeps to float32 within autocast; the others make gradients in a format of their own.
    assert isinstance(product, str)
    dtypes = {"dense": autocast, "float": torch.float32}
    dtype = dtypes.get(product, run.machine.gradient_dtype)

    x, weight, grad = (
        torch.randn(shape, device=device).to(dtype)
        for shape in ((tokens, width), (out, width), (tokens, out))
    )
    codes = torch.randint(-1, 2, (out, width), device=device, dtype=torch.int8)
    forward = _forward(product, x, weight, codes)
    input_gradient: Callable[[], Tensor] = lambda: grad @ weight  # noqa: E731
    if isinstance(layer, BitLinear) and layer.input_gradient == "int8":
        transposed, rows = ops.pack(codes, transposed=True), ops.quantize_rows(grad)
        input_gradient = lambda: ops.product(transposed, rows)  # noqa: E731

    weight_dtype = (layer.weight_dtype if isinstance(layer, BitLinear) else None) or dtype
    factors = grad.to(weight_dtype).t(), x.to(weight_dtype)

    def run_all() -> None:
        forward()
        input_gradient()
        torch.mm(*factors)

    return run_all


def _forward(product: str, x: Tensor, weight: Tensor, codes: Tensor) -> Callable[[], Tensor]:
    """The forward product alone: its inputs have their codes already."""
    if product == "packed":
        packed, rows = ops.pack(codes), ops.quantize_rows(x)
        return lambda: ops.product(packed, rows)
    if product == "int8":
        inputs = ops.quantize_rows(x).codes
        return lambda: torch._int_mm(inputs, codes.t())
    return lambda: x @ weight.t()
