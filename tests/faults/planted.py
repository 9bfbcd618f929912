"""Faults, each a few lines that break one thing, and what an examination should make of them.

`plant` changes the modules of the process that it runs in, so each fault belongs in a process of its own
(`examined` forks one). `words` are the arguments of `bitnet diagnose`; a fault that needs a run has
`prepare`, which makes or damages one and returns its path. Not here: the checks. They know nothing of these
faults.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import multiprocessing
import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

SHAPE = """
    --model.hidden-size 32 --model.num-layers 2 --model.num-heads 2 --model.num-kv-heads 1
    --model.ffn-hidden-size 64 --data.max-operand 30 --device cpu
""".split()
TINY = ["arithmetic", "--variant", "quick", *SHAPE]
ADAMW = ["arithmetic", "--variant", "reference", *SHAPE]


@dataclass(frozen=True)
class Fault:
    """suspects: parts that may rightly be named; check: part of the name of a check that should be among the
    evidence.
    """

    name: str
    suspects: tuple[str, ...]
    check: str
    plant: Callable[[], object] = lambda: None
    words: tuple[str, ...] = tuple(TINY)
    prepare: Callable[[Path], list[str]] | None = None


FAULTS: list[Fault] = []


def fault(
    name: str, suspects: str, check: str, words: list[str] | None = None
) -> Callable[[Callable[[], object]], Callable[[], object]]:
    """Enter a planting function in the list."""

    def enter(plant: Callable[[], object]) -> Callable[[], object]:
        FAULTS.append(Fault(name, tuple(suspects.split()), check, plant, tuple(words or TINY)))
        return plant

    return enter


def on_run(
    name: str, suspects: str, check: str
) -> Callable[[Callable[[Path], list[str]]], Callable[[Path], list[str]]]:
    """Enter a function that makes a broken run."""

    def enter(prepare: Callable[[Path], list[str]]) -> Callable[[Path], list[str]]:
        FAULTS.append(Fault(name, tuple(suspects.split()), check, prepare=prepare))
        return prepare

    return enter


def after_init(change: Callable[[Any], object]) -> None:
    """Do something to every model that is made."""
    from bitnet.nn.transformer import BitNetTransformer

    original = BitNetTransformer.__init__

    def made(self: Any, config: Any) -> None:
        original(self, config)
        with torch.no_grad():
            change(self)

    BitNetTransformer.__init__ = made  # type: ignore[method-assign]


# -- the forward pass
# ---------------------------------------------------------------------------------------------------


@fault("activations unquantized", "quantization", "inputs quantized")
def _() -> None:
    from bitnet.nn import bitlinear as b

    def forward(self: Any, x: Any) -> Any:
        return F.linear(x, b.straight_through(self.weight, b.ternarize(self.weight, self.rows).dequantized()))

    b.BitLinear.forward = forward  # type: ignore[method-assign]


@fault("activations quantized per tensor", "quantization", "inputs quantized")
def _() -> None:
    from bitnet.nn import bitlinear as b
    from bitnet.nn.quantize import Int8Rows

    def coarse(x: Any) -> Any:
        largest = x.detach().abs().max().clamp(min=1e-5)
        return Int8Rows(
            (x.detach() * (127 / largest)).round().to(torch.int8), (largest / 127).expand(*x.shape[:-1], 1)
        )

    b.quantize_activations = coarse  # type: ignore[assignment]


@fault("weights not ternary", "quantization", "ternary")
def _() -> None:
    from bitnet.nn import bitlinear as b

    b.BitLinear.forward = lambda self, x: F.linear(
        b.straight_through(x, b.quantize_activations(x).dequantized()), self.weight
    )  # type: ignore[method-assign]


@fault("scale from the largest weight", "quantization", "scale")
def _() -> None:
    from bitnet.nn import quantize as q

    q.row_scales = lambda weight, rows: torch.cat(
        [p.abs().max().expand(len(p)) for p in weight.split(list(rows))]
    )[:, None]


@fault("scale halved after rounding", "quantization", "scale")
def _() -> None:
    from bitnet.nn import bitlinear as b

    original = b.ternarize
    b.ternarize = lambda *words: original(*words)._replace(row_scale=original(*words).row_scale * 0.5)  # type: ignore[assignment]


@fault("one scale for a fused projection", "quantization", "scale")
def _() -> None:
    from bitnet.nn import bitlinear as b

    original = b.ternarize
    b.ternarize = lambda weight, rows=None: original(weight)  # type: ignore[assignment]
    after_init(
        lambda model: [
            layer.weight[: layer.rows[0]].mul_(3)
            for layer in model.bit_linears().values()
            if len(layer.rows) > 1
        ]
    )


@fault("codes with the wrong sign", "quantization", "codes")
def _() -> None:
    from bitnet.nn import bitlinear as b

    original = b.ternarize
    b.ternarize = lambda *words: original(*words)._replace(codes=-original(*words).codes)  # type: ignore[assignment]


@fault("codes of earlier weights", "quantization", "after the update")
def _() -> None:
    from bitnet.nn import bitlinear as b

    original, kept = b.ternarize, {}
    b.ternarize = lambda weight, rows=None: kept.setdefault(
        weight.data_ptr(), (weight, original(weight, rows))
    )[1]  # type: ignore[assignment]


@fault("a layer of zeros", "quantization", "zeros")
def _() -> None:
    after_init(lambda model: model.blocks[1].feedforward.gate_up.weight.zero_())


@fault("NaN in one layer", "quantization", "finite")
def _() -> None:
    after_init(lambda model: model.blocks[0].attention.out_proj.weight[0, 0].fill_(float("nan")))


@fault("tied head untied", "quantization", "tied")
def _() -> None:
    after_init(
        lambda model: setattr(model.lm_head, "weight", torch.nn.Parameter(model.lm_head.weight.clone()))
    )


@fault("embeddings of N(0, 1)", "quantization", "step-0 loss")
def _() -> None:
    after_init(lambda model: model.token_embeddings.weight.normal_())


@fault("bf16 master weights", "quantization optimizer", "full precision")
def _() -> None:
    from bitnet.optim.optimizer import Optimizers

    after_init(lambda model: [p.copy_(p.bfloat16().float()) for p in model.parameters()])
    original = Optimizers.step

    def step(self: Any, rates: Any) -> None:
        original(self, rates)
        with torch.no_grad():
            for parameter in self.names:
                parameter.copy_(parameter.bfloat16().float())

    Optimizers.step = step  # type: ignore[method-assign]


@fault("no causal mask", "quantization", "causal mask")
def _() -> None:
    original = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = lambda q, k, v, mask=None, is_causal=False, **rest: original(
        q, k, v, mask, is_causal=False, **rest
    )


@fault("no rotary", "quantization", "attention and rotary")
def _() -> None:
    from bitnet.nn import transformer as t

    t.rotate = lambda x, cos, sin: x


@fault("rotary on the wrong pairs", "quantization", "attention and rotary")
def _() -> None:
    from bitnet.nn import transformer as t

    def rotate(x: Any, cos: Any, sin: Any) -> Any:
        turned = torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)
        return x * cos + turned * sin

    t.rotate = rotate


@fault("rotary with another base", "quantization", "attention and rotary")
def _() -> None:
    from bitnet.nn import transformer as t

    original = t.rotary_table
    t.rotary_table = lambda width, length, theta: original(width, length, 100.0)


@fault("norm subtracts the mean", "quantization", "norms")
def _() -> None:
    from bitnet.nn import rms_norm as r

    original = r.RMSNorm.forward
    r.RMSNorm.forward = lambda self, x: original(self, x - x.mean(-1, keepdim=True))  # type: ignore[method-assign]


@fault("another activation function", "quantization", "feed-forward")
def _() -> None:
    F.silu = F.gelu


@fault("no residual around the feed-forward", "quantization", "residual")
def _() -> None:
    from bitnet.nn import transformer as t

    def forward(self: Any, x: Any, cos: Any, sin: Any, cache: Any = None) -> Any:
        x = x + self.attention(self.pre_attn_norm(x), cos, sin, cache)
        return self.feedforward(self.pre_ffn_norm(x))

    t.Block.forward = forward  # type: ignore[method-assign]


# -- gradients
# ----------------------------------------------------------------------------------------------------------


def _float_forward(weight_of: Callable[[Any, Any], Any]) -> None:
    from bitnet.nn import bitlinear as b

    def forward(self: Any, x: Any) -> Any:
        quantized = b.ternarize(self.weight, self.rows).dequantized()
        return F.linear(
            b.straight_through(x, b.quantize_activations(x).dequantized()), weight_of(self.weight, quantized)
        )

    b.BitLinear.forward = forward  # type: ignore[method-assign]


@fault("no straight-through", "gradients", "reaches every parameter")
def _() -> None:
    _float_forward(lambda weight, quantized: quantized)


@fault("gradient with the wrong sign", "gradients", "straight-through reference")
def _() -> None:
    _float_forward(lambda weight, quantized: -weight + (quantized + weight).detach())


@fault("straight-through only near zero", "gradients", "straight-through reference")
def _() -> None:
    def masked(weight: Any, quantized: Any) -> Any:
        near = (weight.abs() < weight.abs().mean()).float()
        return weight * near + (quantized - weight * near).detach()

    _float_forward(masked)


@fault("detached feed-forward", "gradients", "reaches every parameter")
def _() -> None:
    from bitnet.nn import transformer as t

    original = t.FeedForward.forward
    t.FeedForward.forward = lambda self, x: original(self, x.detach())  # type: ignore[method-assign]


@fault("accumulation not divided", "gradients optimizer", "length of the mean")
def _() -> None:
    from bitnet.train import objective

    original = objective.summed_loss
    objective.summed_loss = lambda logits, batch: (
        2 * original(logits, batch) - original(logits, batch).detach()
    )


@fault("gradients never forgotten", "gradients optimizer", "gradient")
def _() -> None:
    from bitnet.optim.optimizer import Optimizers

    Optimizers.zero_grad = lambda self: None  # type: ignore[method-assign]


@fault("loss on padding too", "gradients data", "training loss")
def _() -> None:
    from bitnet.train import objective

    original = objective.summed_loss
    objective.summed_loss = lambda logits, batch: original(
        logits, batch._replace(loss_mask=torch.ones_like(batch.loss_mask))
    )


# -- data
# ----------------------------------------------------------------------------------------------------


@fault("targets are the present tokens", "data", "next tokens")
def _() -> None:
    from bitnet.data import generated

    original = generated.shifted
    generated.shifted = lambda tokens, scored: original(tokens, scored)._replace(
        targets=original(tokens, scored).input_ids
    )


@fault("targets shifted twice in the loss", "data gradients", "training loss")
def _() -> None:
    from bitnet.train import objective

    original = objective.summed_loss
    objective.summed_loss = lambda logits, b: original(
        logits[:, :-1], type(b)(b.input_ids[:, :-1], b.targets[:, 1:], b.loss_mask[:, 1:])
    )


@fault("the same batch at every update", "data", "rows")
def _() -> None:
    from bitnet.train import loop

    original, kept = loop.read_batches, []

    def stale(*words: Any) -> Any:
        kept.append(original(*words))
        return kept[0]

    loop.read_batches = stale


@fault("rows read from the first again", "data", "own rows")
def _() -> None:
    from bitnet.train import loop

    original = loop.row_numbers
    loop.row_numbers = lambda step, micro, **rest: original(1, micro, **rest)


@fault("tokens shuffled", "data", "in order")
def _() -> None:
    from bitnet.data import generated

    original = generated.shifted

    def shuffled(tokens: Any, scored: Any) -> Any:
        import numpy as np

        return original(np.random.default_rng(0).permuted(tokens, axis=1), scored)

    generated.shifted = shuffled


@fault("rows of another tokenizer", "data", "same kind of text")
def _() -> None:
    from bitnet.data.generated import ExampleTable
    from bitnet.text.characters import CharacterTokenizer

    original = ExampleTable.of.__func__  # type: ignore[attr-defined]

    def of(cls: Any, examples: Any, tokenizer: Any, weights: Any = None) -> Any:
        return original(
            cls, examples, CharacterTokenizer(tokenizer.alphabet[::-1], tokenizer.vocab_size), weights
        )

    ExampleTable.of = classmethod(of)  # type: ignore[assignment, method-assign]


@fault("ids beyond the vocabulary", "data", "vocabulary")
def _() -> None:
    from bitnet.text.characters import CharacterTokenizer

    original = CharacterTokenizer.encode
    CharacterTokenizer.encode = lambda self, text: [id_ + 15 for id_ in original(self, text)]  # type: ignore[method-assign]


@fault("a decoder that drops spaces", "data", "gives text back")
def _() -> None:
    from bitnet.text.characters import CharacterTokenizer

    original = CharacterTokenizer.decode
    CharacterTokenizer.decode = lambda self, ids: original(self, ids).replace(" ", "")  # type: ignore[method-assign]


@fault("padding scored", "data", "mask")
def _() -> None:
    import numpy as np

    from bitnet.data.generated import ExampleTable

    ExampleTable.scored = lambda self, loss_on: np.ones(self.tokens.shape, dtype=bool)  # type: ignore[method-assign]


@fault("resumed at the wrong data position", "data checkpoint", "resumed run")
def _() -> None:
    from bitnet.train import loop, start

    original = start.train_steps

    def steps(*words: Any, start_step: int = 0, **rest: Any) -> Any:
        kept = loop.row_numbers
        loop.row_numbers = lambda step, micro, **sizes: kept(step - start_step, micro, **sizes)
        try:
            yield from original(*words, start_step=start_step, **rest)
        finally:
            loop.row_numbers = kept

    start.train_steps = steps


# -- the optimizer
# ------------------------------------------------------------------------------------------------------


def _rates(change: Callable[[Any, int, Any], Any]) -> None:
    from bitnet.optim.schedule import Schedule

    original = Schedule.rates_at
    Schedule.rates_at = lambda self, step: change(self, step, original)  # type: ignore[method-assign]


@fault("rate ten times too high", "optimizer", "schedule")
def _() -> None:
    _rates(lambda self, step, of: of(self, step)._replace(lr=10 * of(self, step).lr))


@fault("rate zero", "optimizer", "schedule")
def _() -> None:
    _rates(lambda self, step, of: of(self, step)._replace(lr=0.0))


@fault("schedule stepped after the update", "optimizer", "rates")
def _() -> None:
    from bitnet.train import loop

    original = loop.apply_update
    late: list[Any] = []

    def update(model: Any, optimizers: Any, rates: Any, **rest: Any) -> Any:
        late.append(rates)
        return original(model, optimizers, late[-2] if len(late) > 1 else rates._replace(lr=0.003), **rest)

    loop.apply_update = update


@fault("weight decay never switched off", "optimizer", "schedule", ADAMW)
def _() -> None:
    _rates(lambda self, step, of: of(self, step)._replace(wd=self.stage1_wd))


@fault(
    "weight decay on by the settings",
    "optimizer",
    "decay",
    [*TINY, "--train.stage1-wd", "0.1", "--train.stage2-wd", "0.1"],
)
def _() -> None:
    pass


@fault(
    "peak rate ten times too high by the settings",
    "optimizer",
    "peak learning rate",
    [*ADAMW, "--train.peak-lr", "0.015"],
)
def _() -> None:
    pass


@fault("clipping at 1e-6", "optimizer gradients", "clipping")
def _() -> None:
    from bitnet.train import loop

    original = loop.apply_update
    loop.apply_update = lambda *words, clip_norm, **rest: original(*words, clip_norm=1e-6, **rest)


@fault("optimizer misses parameters", "optimizer", "every parameter moves")
def _() -> None:
    from bitnet.optim.optimizer import Optimizers

    original = Optimizers.__init__

    def made(self: Any, *words: Any) -> None:
        original(self, *words)
        self.adamw.param_groups[0]["params"].clear()

    Optimizers.__init__ = made  # type: ignore[method-assign]


@fault("other betas", "optimizer", "change of weights", ADAMW)
def _() -> None:
    from bitnet.optim.optimizer import Optimizers

    original = Optimizers.__init__

    def made(self: Any, *words: Any) -> None:
        original(self, *words)
        for group in self.adamw.param_groups:
            group["betas"] = (0.5, 0.5)

    Optimizers.__init__ = made  # type: ignore[method-assign]


@fault("decay on norms", "optimizer", "change of weights", ADAMW)
def _() -> None:
    from bitnet.optim.optimizer import Optimizers

    original = Optimizers.step

    def step(self: Any, rates: Any) -> None:
        with torch.no_grad():
            for parameter in self.names:
                if parameter.dim() == 1:
                    parameter.mul_(1 - 30 * rates.lr * rates.wd)
        original(self, rates)

    Optimizers.step = step  # type: ignore[method-assign]


@fault("Muon without orthogonalisation", "optimizer", "change of weights")
def _() -> None:
    from bitnet.optim import muon

    muon.orthogonalize = lambda matrices: matrices / matrices.norm(dim=(-2, -1), keepdim=True)


# -- evaluation
# ---------------------------------------------------------------------------------------------------------


@fault("evaluation on training data", "evaluation", "not trained on")
def _() -> None:
    import numpy as np

    from bitnet.experiments.arithmetic import ArithmeticTask

    ArithmeticTask.frozen_evaluation = lambda self: [self.source.rows(np.arange(100, 164))]  # type: ignore[method-assign]


@fault("noise at evaluation", "evaluation", "evaluat")
def _() -> None:
    from bitnet.nn.transformer import BitNetTransformer

    original = BitNetTransformer.hidden

    def hidden(self: Any, *words: Any) -> Any:
        out = original(self, *words)
        return out if self.training else out + 0.3 * torch.randn_like(out)

    BitNetTransformer.hidden = hidden  # type: ignore[method-assign]


@fault("held-out loss over padding", "evaluation", "held-out loss")
def _() -> None:
    from bitnet.evaluate import loss

    original = loss.held_out_loss
    loss.held_out_loss = lambda model, batches, tokenizer: original(
        model, [b._replace(loss_mask=torch.ones_like(b.loss_mask)) for b in batches], tokenizer
    )


@fault("a judge that is always satisfied", "evaluation", "untrained model")
def _() -> None:
    from bitnet.experiments import arithmetic

    original = arithmetic.exact_match
    arithmetic.exact_match = lambda *words: {
        k: v if k.endswith("_cases") else 1.0 for k, v in original(*words).items()
    }


# -- decoding
# -----------------------------------------------------------------------------------------------------------


@fault("cache at the wrong position", "decoding", "cached")
def _() -> None:
    from bitnet.nn.transformer import BitNetTransformer

    original = BitNetTransformer.hidden

    def hidden(self: Any, ids: Any, cache: Any = None) -> Any:
        kept = self.cos, self.sin
        if cache is not None and cache.length:
            self.cos, self.sin = (torch.roll(table, 1, 0) for table in kept)
        try:
            return original(self, ids, cache)
        finally:
            self.cos, self.sin = kept

    BitNetTransformer.hidden = hidden  # type: ignore[method-assign]


def _probabilities(change: Callable[[Any, Any, Any], Any]) -> None:
    from bitnet.generate import sampling

    original = sampling.probabilities
    sampling.probabilities = lambda logits, how: change(logits, how, original)


@fault("top-p keeps the tail", "decoding", "top-p")
def _() -> None:
    def tail(logits: Any, how: Any, of: Any) -> Any:
        kept = of(logits, how)
        if how.top_p is None:
            return kept
        rest = of(logits, dataclasses.replace(how, top_p=None)).masked_fill(kept > 0, 1e-9)
        return rest / rest.sum(-1, keepdim=True)

    _probabilities(tail)


@fault("temperature inverted", "decoding", "temperature")
def _() -> None:
    _probabilities(
        lambda logits, how, of: of(
            logits, dataclasses.replace(how, temperature=1 / how.temperature) if how.temperature else how
        )
    )


@fault("seed ignored", "decoding", "seeds")
def _() -> None:
    from bitnet.generate.sampling import Sampling

    Sampling.generator = lambda self, device: torch.Generator(device).manual_seed(0)  # type: ignore[method-assign]


@fault("end of text never stops", "decoding", "stop token")
def _() -> None:
    from bitnet.generate import decode

    original = decode.generate
    decode.generate = lambda *words, stop_ids=(), **rest: original(*words, stop_ids=(), **rest)


@fault("greedy takes the second best", "decoding", "most likely")
def _() -> None:
    from bitnet.generate import decode

    decode.choose = lambda logits, how, generator: logits.topk(2).indices[:, 1]


# -- checkpoints and runs
# -----------------------------------------------------------------------------------------------


@fault("checkpoints in bf16", "checkpoint", "resumed run")
def _() -> None:
    from bitnet.train.observe import observers

    original = observers.save_checkpoint

    def coarse(layout: Any, checkpoint: Any) -> Any:
        return original(
            layout,
            checkpoint._replace(
                model={k: v.detach().bfloat16().float() for k, v in checkpoint.model.items()}
            ),
        )

    observers.save_checkpoint = coarse


@fault("optimizer state not restored", "checkpoint", "resumed run")
def _() -> None:
    from bitnet.optim.optimizer import Optimizers

    Optimizers.load_state_tensors = lambda self, tensors: None  # type: ignore[method-assign]


@on_run("a flipped bit in every checkpoint", "checkpoint", "whole")
def _(folder: Path) -> list[str]:
    words = small_run(folder)
    for path in (folder / "runs" / "one" / "checkpoints").glob("*/model.safetensors"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 16
        path.write_bytes(content)
    return words


@on_run("a checkpoint with other weights", "checkpoint", "recorded loss")
def _(folder: Path) -> list[str]:
    from bitnet.run.checkpoint import load_checkpoint, save_checkpoint
    from bitnet.run.layout import RunLayout

    words = small_run(folder)
    layout = RunLayout(folder / "runs" / "one")
    first, last = (load_checkpoint(layout.checkpoint(step)) for step in (0, 60))
    save_checkpoint(layout, last._replace(model=first.model))
    return words


@on_run("far too little training", "training", "criteria")
def _(folder: Path) -> list[str]:
    return small_run(folder, "--num-steps", "6")


@on_run("a run with its rates in the log changed", "optimizer", "recorded rates")
def _(folder: Path) -> list[str]:
    words = small_run(folder)
    path = folder / "runs" / "one" / "metrics" / "scalars.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text(
        "".join(json.dumps({**row, "lr": row["lr"] * (1 if row["step"] < 30 else 3)}) + "\n" for row in rows)
    )
    return words


# -- faults that a look at the beginning, or at the examined model alone, does not show
# ------------------------------------


def _quantizer_in(change: Callable[[Any], Any]) -> None:
    """Quantize activations otherwise, wherever it is done."""
    from bitnet.nn import bitlinear, quantize

    bitlinear.quantize_activations = quantize.quantize_activations = change  # type: ignore[assignment]


@fault("int8 steps in the input's format, unclamped", "quantization", "bfloat16")
def _() -> None:
    from bitnet.nn.quantize import Int8Rows

    def wraps(x: Any) -> Any:
        largest = x.detach().abs().amax(-1, keepdim=True).clamp(min=1e-5)
        return Int8Rows((x.detach() * (127.0 / largest)).round().to(torch.int8), largest.float() / 127.0)

    _quantizer_in(wraps)


@fault("int8 codes rounded in the input's format", "quantization", "float16")
def _() -> None:
    from bitnet.nn.quantize import Int8Rows

    def coarse(x: Any) -> Any:
        largest = x.detach().abs().amax(-1, keepdim=True).clamp(min=1e-5)
        return Int8Rows(
            (x.detach() * (127.0 / largest)).round().clamp(-128, 127).to(torch.int8), largest.float() / 127.0
        )

    _quantizer_in(coarse)


@fault("the stream begins again after 150 updates", "data", "plan")
def _() -> None:
    from bitnet.train import loop

    original = loop.row_numbers
    loop.row_numbers = lambda step, micro, **rest: original((step - 1) % 150 + 1, micro, **rest)


@fault("the order of rows returns", "data", "come again")
def _() -> None:
    from bitnet.data import generated

    original = generated.random_fractions
    generated.random_fractions = lambda seed, rows, slots: original(seed, rows % 1000, slots)


@fault("cache forgets beyond 40 tokens", "decoding", "last position")
def _() -> None:
    from bitnet.nn.kv_cache import KVCache

    original = KVCache.extend

    def extend(self: Any, layer: int, keys: Any, values: Any) -> Any:
        if self.length > 40:
            values = values * 0.5
        return original(self, layer, keys, values)

    KVCache.extend = extend  # type: ignore[method-assign]


@fault("positions stand still beyond 140", "quantization", "attention and rotary")
def _() -> None:
    from bitnet.nn import transformer

    original = transformer.rotary_table

    def table(width: int, length: int, theta: float) -> Any:
        places = torch.arange(length).clamp(max=140)
        return tuple(part[places] for part in original(width, length, theta))

    transformer.rotary_table = table


@fault("decay switched off one update late", "optimizer", "schedule", ADAMW)
def _() -> None:
    _rates(
        lambda self, step, of: of(self, step)._replace(
            wd=self.stage1_wd if step <= self.stage1_end + 1 else self.stage2_wd
        )
    )


@fault("rate off between the corners", "optimizer", "schedule", ADAMW)
def _() -> None:
    _rates(
        lambda self, step, of: of(self, step)._replace(
            lr=of(self, step).lr * (1.02 if step % 97 == 13 else 1.0)
        )
    )


@fault("key/value heads handed out in turn", "quantization", "attention and rotary")
def _() -> None:
    original = F.scaled_dot_product_attention

    def interleaved(q: Any, k: Any, v: Any, *words: Any, enable_gqa: bool = False, **rest: Any) -> Any:
        times = q.shape[1] // k.shape[1]
        return original(q, k.repeat(1, times, 1, 1), v.repeat(1, times, 1, 1), *words, **rest)

    F.scaled_dot_product_attention = interleaved


@fault("epsilon outside the root", "quantization", "norms")
def _() -> None:
    from bitnet.nn import rms_norm as r

    def forward(self: Any, x: Any) -> Any:
        return (self.weight * x.float() / (x.float().pow(2).mean(-1, keepdim=True).sqrt() + self.eps)).to(
            x.dtype
        )

    r.RMSNorm.forward = forward  # type: ignore[method-assign]


@fault("norm weights unused in sub-norms", "quantization", "norms")
def _() -> None:
    from bitnet.nn import rms_norm as r

    original = r.RMSNorm.forward
    r.RMSNorm.forward = lambda self, x: original(self, x) / (self.weight if self.weight.shape[0] == 72 else 1)  # type: ignore[method-assign]


@fault("texts of one row see each other", "quantization gradients", "texts of one row")
def _() -> None:
    from bitnet.nn import transformer

    original = transformer.segment_mask
    transformer.segment_mask = lambda segments: original(torch.zeros_like(segments))


@fault("unlikelihood of the target too", "gradients", "penalty")
def _() -> None:
    from bitnet.train import objective

    original = objective.recent_tokens
    objective.recent_tokens = lambda ids, targets, last: original(ids, torch.full_like(targets, -1), last)


@fault("unlikelihood for ever as in stage 1", "gradients", "penalty")
def _() -> None:
    from bitnet.train import loop

    original = loop.objective_of
    loop.objective_of = lambda config, step: original(config, 1)


@fault("preference for the rejected answer", "gradients", "loss")
def _() -> None:
    from bitnet.train import objective

    original = objective.margins
    objective.margins = lambda logits, batch: -original(logits, batch)


@fault("preference forgets the reference", "gradients", "loss")
def _() -> None:
    from bitnet.train import objective

    original = objective.margins
    objective.margins = lambda logits, batch: original(
        logits, batch._replace(reference=torch.zeros_like(batch.reference))
    )


@fault("each micro-batch a mean of its own", "gradients", "gradient")
def _() -> None:
    from bitnet.train import objective

    original = objective.NextToken.terms

    def terms(self: Any, logits: Any, batch: Any) -> Any:
        return original(self, logits, batch) / batch.loss_mask.sum().clamp(min=1) * batch.loss_mask.numel()

    objective.NextToken.terms = terms  # type: ignore[method-assign]


@fault("each gradient clipped by itself", "optimizer gradients", "clipping")
def _() -> None:
    original = torch.nn.utils.clip_grad_norm_

    def each(parameters: Any, limit: float) -> Any:
        kept = list(parameters)
        norm = torch.stack([p.grad.norm() for p in kept if p.grad is not None]).norm()
        for parameter in kept:
            original([parameter], limit)
        return norm

    torch.nn.utils.clip_grad_norm_ = each  # type: ignore[assignment]


@fault("decay through the gradient", "optimizer gradients", "change of weights")
def _() -> None:
    from bitnet.optim.optimizer import Optimizers

    original = Optimizers.step

    def step(self: Any, rates: Any) -> None:
        for parameter in self.names:
            if parameter.dim() > 1 and parameter.grad is not None:
                parameter.grad = parameter.grad + rates.wd * parameter.detach()
        original(self, rates._replace(wd=0.0))

    Optimizers.step = step  # type: ignore[method-assign]


@fault("end mark not scored", "data", "end are scored")
def _() -> None:
    from bitnet.data.generated import ExampleTable

    original = ExampleTable.scored

    def scored(self: Any, loss_on: Any) -> Any:
        mask = original(self, loss_on).copy()
        mask[range(len(mask)), self.lengths - 1] = False
        return mask

    ExampleTable.scored = scored  # type: ignore[method-assign]


@fault("first letter of the answer not scored", "data", "end are scored")
def _() -> None:
    from bitnet.data.generated import ExampleTable

    original = ExampleTable.scored

    def scored(self: Any, loss_on: Any) -> Any:
        mask = original(self, loss_on).copy()
        mask[range(len(mask)), self.answer_starts] = False
        return mask

    ExampleTable.scored = scored  # type: ignore[method-assign]


@fault("tails of rows not scored", "data", "real token", ADAMW)
def _() -> None:
    from bitnet.data import generated

    original = generated.shifted

    def shorter(tokens: Any, scored: Any) -> Any:
        batch = original(tokens, scored)
        batch.loss_mask[:, -2:] = False
        return batch

    generated.shifted = shorter


@fault("copies with other white space trained on", "evaluation", "copies of a document")
def _() -> None:
    import hashlib

    from bitnet.corpus import holdout

    holdout.content_hash = lambda text: hashlib.sha256(text.encode()).digest()[:16]


@fault("the end mark is not judged", "evaluation", "wrong answers")
def _() -> None:
    from bitnet.evaluate import answers

    original = answers.answer_all
    answers.answer_all = lambda model, tokenizer, cases: [
        case.answer if answer.startswith(case.answer.rstrip()) else answer
        for case, answer in zip(cases, original(model, tokenizer, cases), strict=True)
    ]


@fault("means of means at evaluation", "evaluation", "mean over scored tokens")
def _() -> None:
    from bitnet.evaluate import loss

    original = loss.held_out_loss

    def mean_of_means(model: Any, batches: Any, tokenizer: Any) -> Any:
        each = [original(model, [batch], tokenizer) for batch in batches]
        return {
            **original(model, batches, tokenizer),
            "nats_per_token": sum(one["nats_per_token"] for one in each) / len(each),
        }

    loss.held_out_loss = mean_of_means


@fault("all layers begin alike", "quantization", "differ from each other")
def _() -> None:
    after_init(
        lambda model: [
            p.copy_(q)
            for p, q in zip(model.blocks[1].parameters(), model.blocks[0].parameters(), strict=True)
        ]
    )


@fault("projections to the stream begin too large", "quantization", "spread")
def _() -> None:
    after_init(lambda model: [block.feedforward.down.weight.mul_(2) for block in model.blocks])


@fault("random states not restored", "checkpoint", "random states")
def _() -> None:
    from bitnet.train import resume

    resume.restore_random_states = lambda states: None


@fault("tokens of the update before in the state", "checkpoint", "state")
def _() -> None:
    from bitnet.train.observe import observers

    original = observers.training_state
    observers.training_state = lambda config, step, seen, loss: original(
        config, step, max(seen - config.tokens_per_step, 0), loss
    )


@fault("probes forget the codes before a resume", "checkpoint", "same lines")
def _() -> None:
    from bitnet.train.observe.measurements import Probe

    Probe.remember = lambda self, memory: None  # type: ignore[method-assign]


@fault("the stage boundary is not kept", "checkpoint", "promised")
def _() -> None:
    from bitnet.train.config import TrainConfig

    TrainConfig.mandatory_checkpoints = lambda self: frozenset({0, self.total_steps})  # type: ignore[method-assign]


@fault("damage is not noticed", "checkpoint", "damaged")
def _() -> None:
    from bitnet.run import checkpoint

    checkpoint.verify_checkpoint = lambda folder: None


@fault("fine-tuning begins with random weights", "checkpoint", "begun from")
def _() -> None:
    from bitnet.train import resume

    original = resume.begin

    def begin(session: Any, described: Any) -> Any:
        kept = {name: weight.detach().clone() for name, weight in session.model.named_parameters()}
        first = original(session, described)
        with torch.no_grad():
            for name, weight in session.model.named_parameters():
                weight.copy_(kept[name])
        return first

    from bitnet.train import start

    start.begin = begin


@fault("the oldest checkpoint is loaded", "checkpoint", "loads")
def _() -> None:
    import bitnet.trained_model as trained

    original = trained.read_checkpoint

    def oldest(reference: Any, notes: Any, *words: Any) -> Any:
        return original(
            dataclasses.replace(reference, step=reference.layout.checkpoint_steps()[0]), notes, *words
        )

    trained.read_checkpoint = oldest


@fault("probes count zeros as ones", "evaluation", "probes")
def _() -> None:
    from bitnet.train.observe import measurements

    original = measurements.ternary_statistics

    def counted(*words: Any) -> Any:
        row = original(*words)
        return {**row, **{key: row[key] + 0.01 for key in row if key.endswith("_pos1_pct")}}

    measurements.ternary_statistics = counted


@fault("a cosine that ends too late", "optimizer", "schedule")
def _() -> None:
    from bitnet.optim.schedule import Schedule

    original = Schedule._lr
    Schedule._lr = lambda self, step: original(
        self, step - 1 if self.kind == "cosine" and step > self.warmup_steps + 1 else step
    )  # type: ignore[method-assign]


@fault("a branched cache of other rows", "decoding", "cached")
def _() -> None:
    from bitnet.nn.kv_cache import KVCache

    original = KVCache.branch
    KVCache.branch = lambda self, rows, room: original(self, rows.flip(0), room)  # type: ignore[method-assign]


@fault("some sums wrong as well", "data", "one answer")
def _() -> None:
    from bitnet.data.generated import ExampleTable

    original = ExampleTable.of.__func__  # type: ignore[attr-defined]

    def of(cls: Any, examples: Any, tokenizer: Any, weights: Any = None) -> Any:
        known = list(examples)
        wrong = (
            [one._replace(answer=f"{int(one.answer) + 1}\n") for one in known[::10]]
            if len(known) > 500
            else []
        )
        return original(cls, [*known, *wrong], tokenizer, weights)

    ExampleTable.of = classmethod(of)  # type: ignore[assignment, method-assign]


@fault("only sums are evaluated", "evaluation", "usual tokens")
def _() -> None:
    from functools import cached_property

    from bitnet.experiments import arithmetic

    original = arithmetic.ArithmeticTask.held_out_cases.func
    sums: Any = cached_property(lambda self: [case for case in original(self) if case.kind == "add"])
    sums.__set_name__(arithmetic.ArithmeticTask, "held_out_cases")
    arithmetic.ArithmeticTask.held_out_cases = sums


@fault("the sign is not judged", "evaluation", "wrong answers")
def _() -> None:
    from bitnet.evaluate import answers

    original = answers.answer_all
    answers.answer_all = lambda model, tokenizer, cases: [
        case.answer if answer.lstrip("-") == case.answer.lstrip("-") else answer
        for case, answer in zip(cases, original(model, tokenizer, cases), strict=True)
    ]


@fault("a loaded head that came apart", "checkpoint", "user loads")
def _() -> None:
    import bitnet.trained_model as trained

    original = trained.load_weights

    def load(model: Any, checkpoint: Any) -> None:
        original(model, checkpoint)
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() * 1.01)

    trained.load_weights = load


def _by_settings(name: str, suspects: str, check: str, *flags: str, base: list[str] | None = None) -> None:
    FAULTS.append(Fault(name, tuple(suspects.split()), check, words=(*(base or TINY), *flags)))


_by_settings("rotary base of 3", "quantization", "rotary", "--model.rope-theta", "3")
_by_settings("final rate above the peak", "optimizer", "rates fall", "--train.final-lr", "0.02", base=ADAMW)
_by_settings(
    "stage 2 begins at the last update", "optimizer", "boundary", "--train.stage1-end", "24400", base=ADAMW
)
_by_settings("momentum of 0.3", "optimizer", "momentum", "--train.muon-momentum", "0.3")
_by_settings(
    "decay of one in ten million", "optimizer", "decay acts", "--train.stage1-wd", "1e-7", base=ADAMW
)
_by_settings(
    "evaluated only at the end", "evaluation", "evaluations during", "--train.eval-every", "24414", base=ADAMW
)


@on_run("a run whose start was replaced", "checkpoint", "weights of its seed")
def _(folder: Path) -> list[str]:
    from bitnet.run.checkpoint import load_checkpoint, save_checkpoint
    from bitnet.run.layout import RunLayout

    words = small_run(folder)
    layout = RunLayout(folder / "runs" / "one")
    first = load_checkpoint(layout.checkpoint(0))
    save_checkpoint(
        layout, first._replace(model={name: weight.flip(0) for name, weight in first.model.items()})
    )
    return words


@on_run("a run whose first update was another", "data optimizer", "repeat")
def _(folder: Path) -> list[str]:
    words = small_run(folder)
    path = folder / "runs" / "one" / "metrics" / "scalars.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text(
        "".join(
            json.dumps({**row, "loss": row["loss"] + (0.2 if row["step"] == 1 else 0)}) + "\n" for row in rows
        )
    )
    return words


@fault(
    "a plan far too short",
    "training",
    "planned tokens",
    ["arithmetic", "--variant", "quick", "--device", "cpu", "--num-steps", "4"],
)
def _() -> None:
    pass


@fault("far too small for its vocabulary", "size", "vocabulary", [*TINY, "--model.vocab-size", "32000"])
def _() -> None:
    pass


def stories(folder: Path) -> list[str]:
    """Words that examine the story experiment on a small corpus made here."""
    from corpora import stories as written
    from corpora import write_txt

    write_txt(folder / "stories.txt", written(600))
    small = [word for word in SHAPE if word not in ("--data.max-operand", "30")]
    text = [
        "--data",
        str(folder / "stories.txt"),
        "--cache-dir",
        str(folder),
        "--model.vocab-size",
        "320",
        "--model.max-seq-length",
        "96",
        "--seq-len",
        "64",
        "--data.held-out-one-in",
        "10",
        "--allow-repeat",
        "--data.judged-prompts",
        "12",
        "--train.compile",
        "off",
    ]
    return ["tinystories", "--variant", "quick", *small, *text]


def unfinished_run(folder: Path, *more: str) -> list[str]:
    """A run that was stopped after 40 of its updates."""
    import signal

    from bitnet.cli.main import main
    from bitnet.train import start

    original = start.train_steps

    def stopped(*words: Any, **rest: Any) -> Any:
        for report in original(*words, **rest):
            if report.step == 40:
                signal.raise_signal(signal.SIGTERM)
            yield report

    start.train_steps = stopped
    place = [
        "--run-id",
        "one",
        "--runs-dir",
        str(folder / "runs"),
        "--batch-size",
        "16",
        "--train.eval-every",
        "20",
        "--train.eval-cases",
        "12",
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(["train", *TINY, *place, *more]) == 128 + signal.SIGTERM
    start.train_steps = original
    return ["one", "--runs-dir", str(folder / "runs"), "--device", "cpu"]


def conversations(folder: Path, objective: str) -> list[str]:
    """Words that examine fine-tuning, or preference, of a small run on conversations made here."""
    from bitnet.cli.main import main

    (folder / "topics.txt").write_text("rain\nsnow\nthe moon\ngardening\n")
    runs = ["--runs-dir", str(folder / "runs"), "--device", "cpu"]
    base = [
        "train",
        *stories(folder),
        *runs,
        "--model.max-seq-length",
        "512",
        "--num-steps",
        "4",
        "--batch-size",
        "2",
        "--run-id",
        "base",
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(base) == 0
        place = [str(folder / name) for name in ("topics.txt", "p", "a")]
        assert (
            main(
                [
                    "voice",
                    "prompts",
                    "--topics",
                    place[0],
                    "--teacher",
                    "rules",
                    "--batches",
                    "1",
                    "--per-batch",
                    "4",
                    "--out",
                    place[1],
                ]
            )
            == 0
        )
        assert (
            main(
                [
                    "voice",
                    "answers",
                    "--prompts",
                    place[1],
                    "--teacher",
                    "rules",
                    "--pairs",
                    "--out",
                    place[2],
                ]
            )
            == 0
        )
    judged = ["--data.eval-conversations", "3", "--data.judged-prompts", "6", "--data.answer-tokens", "12"]
    return [
        objective,
        "--variant",
        "quick",
        "--from",
        "base",
        "--data",
        place[2],
        *runs,
        *judged,
        "--seq-len",
        "400",
        "--batch-size",
        "4",
    ]


def unfinished_in_bf16(folder: Path) -> list[str]:
    """The same run in bfloat16 by the plain product, with two micro-batches an update."""
    return unfinished_run(
        folder,
        "--train.precision",
        "bf16",
        "--train.product",
        "float",
        "--train.grad-accumulation-steps",
        "2",
    )


def _windows_with_gaps() -> None:
    from bitnet.data.windows import WindowRows

    original = WindowRows.window_numbers
    WindowRows.window_numbers = lambda self, numbers: original(self, numbers) // 2 * 2  # type: ignore[method-assign]


def _every_epoch_alike() -> None:
    from bitnet.data import windows

    original = windows.permuted
    windows.permuted = lambda numbers, n, seed, epochs: original(numbers, n, seed, epochs * 0)


def _documents_run_on() -> None:
    from bitnet.data.shards import TokenStream

    original = TokenStream.read

    def read(self: Any, start: int, count: int) -> Any:
        tokens = original(self, start, count)
        tokens[tokens == 2] = 40
        return tokens

    TokenStream.read = read  # type: ignore[method-assign]


def _learned(change: Callable[[list[bool]], list[bool]]) -> None:
    from bitnet.data import conversations as c

    original = c.conversation_ids

    def ids(*words: Any) -> Any:
        found, learned = original(*words)
        return found, change(learned)

    c.conversation_ids = ids


def _reference_of_others() -> None:
    from bitnet.experiments.bitnut_dpo import PreferenceTask

    original = PreferenceTask._reference
    PreferenceTask._reference = lambda self, batch: original(self, batch).roll(1)  # type: ignore[method-assign]


def _answers_from(objective: str) -> Callable[[Path], list[str]]:
    return lambda folder: conversations(folder, objective)


FAULTS += [
    Fault("windows with gaps", ("data",), "epoch", _windows_with_gaps, prepare=stories),
    Fault("every epoch in the same order", ("data",), "come again", _every_epoch_alike, prepare=stories),
    Fault("documents run into each other", ("data",), "end-of-text", _documents_run_on, prepare=stories),
    Fault(
        "questions are learned",
        ("data",),
        "end are scored",
        lambda: _learned(lambda learned: [True] * len(learned)),
        prepare=_answers_from("bitnut_sft"),
    ),
    Fault(
        "ends of answers not learned",
        ("data",),
        "end are scored",
        lambda: _learned(lambda learned: [*(a and b for a, b in pairwise(learned)), False]),
        prepare=_answers_from("bitnut_sft"),
    ),
    Fault(
        "a preference against other rows' reference",
        ("data",),
        "start weights",
        _reference_of_others,
        prepare=_answers_from("bitnut_dpo"),
    ),
]
PLAIN = [word for word in SHAPE if word not in ("--data.max-operand", "30")]
HEALTHY = [
    Fault("arithmetic quick", ("none",), ""),
    Fault("arithmetic quick, seed 7", ("none",), "", words=(*TINY, "--seed", "7")),
    Fault("arithmetic quick, full-precision weights", ("none",), "", words=(*TINY, "--weights", "full")),
    Fault(
        "arithmetic quick, unquantized activations",
        ("none",),
        "",
        words=(*TINY, "--model.activations", "full"),
    ),
    Fault("arithmetic reference", ("none",), "", words=tuple(ADAMW)),
    Fault(
        "arithmetic best, seed 3",
        ("none",),
        "",
        words=("arithmetic", "--variant", "best", *SHAPE, "--seed", "3"),
    ),
    Fault("tictactoe quick", ("none",), "", words=("tictactoe", "--variant", "quick", *PLAIN)),
    Fault(
        "tictactoe reference, seed 5",
        ("none",),
        "",
        words=("tictactoe", "--variant", "reference", *PLAIN, "--seed", "5"),
    ),
    Fault("json_records quick", ("none",), "", words=("json_records", "--variant", "quick", *PLAIN)),
    Fault("python_subset quick", ("none",), "", words=("python_subset", "--variant", "quick", *PLAIN)),
    Fault("tinystories quick", ("none",), "", prepare=stories),
    Fault(
        "arithmetic quick, untied, sub-norms, relu2",
        ("none",),
        "",
        words=(*TINY, "--model.no-embeddings-tied", "--model.sub-norm", "--model.activation", "relu2"),
    ),
    Fault("a run stopped after 40 updates", ("none",), "", prepare=unfinished_run),
    Fault(
        "a run stopped after 40 updates, bfloat16, two micro-batches",
        ("none",),
        "",
        prepare=unfinished_in_bf16,
    ),
    Fault(
        "arithmetic quick, bfloat16, int8 product",
        ("none",),
        "",
        words=(*TINY, "--train.precision", "bf16", "--train.product", "int8"),
    ),
    Fault(
        "arithmetic quick, float product, three micro-batches",
        ("none",),
        "",
        words=(
            *TINY,
            "--train.product",
            "float",
            "--train.grad-accumulation-steps",
            "3",
            "--batch-size",
            "8",
        ),
    ),
    Fault(
        "arithmetic reference, expressions, cosine",
        ("none",),
        "",
        words=(*ADAMW, "--data.expressions", "400", "--train.schedule", "cosine", "--data.max-operand", "60"),
    ),
    Fault(
        "arithmetic reference, Muon with decay, bfloat16, seed 11",
        ("none",),
        "",
        words=(*ADAMW, "--train.optimizer", "muon", "--train.precision", "bf16", "--seed", "11"),
    ),
    Fault("fine-tuning of a run", ("none",), "", prepare=lambda folder: conversations(folder, "bitnut_sft")),
    Fault("preference of a run", ("none",), "", prepare=lambda folder: conversations(folder, "bitnut_dpo")),
]


def small_run(folder: Path, *more: str) -> list[str]:
    """Train a tiny run, judge nothing, and return the words that diagnose it."""
    from bitnet.cli.main import main

    steps = [] if "--num-steps" in more else ["--num-steps", "60"]
    every = [
        "--train.eval-every",
        "20",
        "--train.checkpoint-every",
        "20",
        "--train.sample-every",
        "60",
        "--train.probe-every",
        "20",
    ]
    place = ["--run-id", "one", "--runs-dir", str(folder / "runs")]
    words = ["train", *TINY, "--batch-size", "16", "--train.eval-cases", "12", *every, *steps, *more, *place]
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(words) == 0
    return ["one", "--runs-dir", str(folder / "runs"), "--device", "cpu"]


def examined(one: Fault, folder: Path) -> dict[str, Any]:
    """Plant a fault in a forked process and return what `bitnet diagnose --json` printed there, with its exit
    code.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_in_child, args=(one, folder, sender))
    process.start()
    sender.close()
    try:
        result: dict[str, Any] = receiver.recv()
    except EOFError:
        result = {"error": "the process died"}
    process.join()
    return result


def _in_child(one: Fault, folder: Path, sender: Any) -> None:
    torch.set_num_threads(1)
    try:
        sender.send(diagnosed(one, folder))
    except BaseException:  # noqa: BLE001 - whatever a planted fault does to the process has to reach the report
        sender.send({"error": traceback.format_exc()})
    finally:
        sender.close()
        os._exit(0)


def diagnosed(one: Fault, folder: Path) -> dict[str, Any]:
    """Plant a fault here and examine."""
    from bitnet.cli.main import main

    words = one.prepare(folder) if one.prepare else list(one.words)
    one.plant()
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["diagnose", *words, "--json"])
    lines = out.getvalue().strip().splitlines()
    if not lines:
        return {"error": err.getvalue().strip(), "code": code}
    return {**json.loads(lines[-1]), "code": code}
