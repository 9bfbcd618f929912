"""A fast form of the model is used only if it computes what the plain one does, and what was used is
recorded.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bitnet.data.stream import Batch
from bitnet.kernels import ops, passes
from bitnet.nn import packed_linear
from bitnet.nn.transformer import BitNetTransformer
from bitnet.run.metrics import read_lines
from bitnet.train.compiled import keep_processors_apart
from bitnet.train.objective import NextToken
from bitnet.train.trial import Trial, refusal
from conftest import TINY_TRAIN, Command, Result, needs_compiler

Forward = Callable[..., Tensor]


def train(bitnet: Command, runs: Path, *words: object) -> tuple[Result, dict[str, Any]]:
    """Two updates, and the provenance of their run."""
    result = bitnet(*TINY_TRAIN, "--num-steps", 2, "--run-id", "one", "--runs-dir", runs, *words)
    assert result.code == 0, result.err
    return result, json.loads((runs / "one" / "meta" / "provenance.json").read_text())


def scaled(model: Forward) -> Forward:
    """Every logit a tenth too large."""
    return lambda *ids, **context: model(*ids, **context) * 1.1


def not_a_number(model: Forward) -> Forward:
    """What code for other vector instructions computed."""
    return lambda *ids, **context: model(*ids, **context) * float("nan")


def gradient_doubled(model: Forward) -> Forward:
    """The right loss, and twice its gradient."""

    def forward(*ids: Tensor, **context: Tensor) -> Tensor:
        logits = model(*ids, **context)
        return 2 * logits - logits.detach()

    return forward


def one_norm_untrained(model: Any) -> Forward:
    """The right loss, and no gradient for one small weight among many."""

    def forward(*ids: Tensor, **context: Tensor) -> Tensor:
        weight = model.final_norm.weight
        weight.requires_grad_(False)
        logits: Tensor = model(*ids, **context)
        weight.requires_grad_()
        return logits

    return forward


WRONG = [scaled, not_a_number, gradient_doubled, one_norm_untrained]
CONTROL = ["--weights", "full"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [[], CONTROL, ["--train.precision", "bf16"], [*CONTROL, "--train.precision", "bf16"]]
)
@pytest.mark.parametrize("compiler", WRONG)
def test_a_model_compiled_wrongly_is_not_used(
    bitnet: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    compiler: Callable[[Forward], Forward],
    words: list[str],
) -> None:
    train(bitnet, tmp_path / "plain", *words)
    monkeypatch.setattr(torch, "compile", lambda model, **options: compiler(model))
    result, provenance = train(bitnet, tmp_path / "compiled", *words, "--train.compile", "on")
    assert sum("going on without torch.compile" in line for line in result.out.splitlines()) == 1
    assert provenance["compiled"] is False
    losses = [
        (tmp_path / name / "one" / "eval" / "eval_results.jsonl").read_text()
        for name in ("plain", "compiled")
    ]
    assert losses[0] == losses[1]


@pytest.mark.slow
@pytest.mark.parametrize("words", [[], CONTROL, ["--train.precision", "bf16"]])
def test_a_model_that_differs_by_rounding_is_used(
    bitnet: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    """Embeddings off by one unit of float32 or bf16: what sums in another order do, with every code that
    flips in consequence.
    """
    unit = 2**-9 if "bf16" in words else 2**-24

    def rounded(model: Any, **options: Any) -> Forward:
        def forward(*ids: Tensor, **context: Tensor) -> Tensor:
            weight = model.token_embeddings.weight
            signs = torch.randint(0, 2, weight.shape, generator=torch.Generator().manual_seed(9)) * 2 - 1
            return torch.func.functional_call(
                model, {"token_embeddings.weight": weight * (1 + unit * signs)}, ids, context
            )  # type: ignore[no-any-return]

        return forward

    monkeypatch.setattr(torch, "compile", rounded)
    result, provenance = train(bitnet, tmp_path, *words, "--train.compile", "on")
    assert "going on without" not in result.out
    assert provenance["compiled"] is True


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("factor", [2, 0])
def test_wrong_int8_products_are_not_used(
    bitnet: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: int, precision: str
) -> None:
    """Wrong in every tenth column only, as a kernel is that mistakes an edge."""
    real = torch._int_mm

    def wrong(left: Tensor, right: Tensor) -> Tensor:
        product = real(left, right)
        product[:, ::10] *= factor
        return product

    monkeypatch.setattr(torch, "_int_mm", wrong)
    words = ["--train.product", "int8", "--train.precision", precision]
    result, provenance = train(bitnet, tmp_path, *words)
    assert sum("int8 products differ from float32 ones" in line for line in result.out.splitlines()) == 1
    assert provenance["linear_product"] == "float"


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_right_int8_products_are_used(bitnet: Command, tmp_path: Path, precision: str) -> None:
    _, provenance = train(bitnet, tmp_path, "--train.product", "int8", "--train.precision", precision)
    assert provenance["linear_product"] == "int8"


PACKED = ["--train.product", "packed", "--train.input-gradient", "int8"]


def forgotten_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    """int8 input gradients without the scale of the weights."""
    real = passes.quantize_gradient

    def without(grad: Tensor, scale: Tensor, *others: Any) -> Any:
        return real(grad, torch.ones_like(scale), *others)

    monkeypatch.setattr(passes, "quantize_gradient", without)


def untransposed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The transposed copy is packed from the codes in reverse order."""
    real = passes.pack_weight

    def reversed_rows(weight: Tensor, *others: Any) -> Any:
        return real(weight, *others)._replace(packed_t=real(weight.flip(0), *others).packed_t)

    monkeypatch.setattr(passes, "pack_weight", reversed_rows)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("plant", [forgotten_scale, untransposed])
def test_wrong_int8_input_gradients_are_not_used(
    bitnet: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    plant: Callable[[pytest.MonkeyPatch], None],
    precision: str,
) -> None:
    """A new run goes on without them, and says so in one line; one that was trained with them is refused."""
    words = [*PACKED, "--train.precision", precision]
    _, provenance = train(bitnet, tmp_path, *words)
    assert (provenance["linear_product"], provenance["input_gradient"]) == ("packed", "int8")
    checkpoint = tmp_path / "one" / "checkpoints" / "step_000002"
    shutil.rmtree(checkpoint)  # so that there is something to continue
    plant(monkeypatch)

    result = bitnet(*TINY_TRAIN, "--num-steps", 2, "--run-id", "one", "--runs-dir", tmp_path, *words)
    assert result.code == 2
    assert "int8 input gradients differ" in result.err
    assert "trained with them so far" in result.err

    result, provenance = train(bitnet, tmp_path / "new", *words)
    assert sum("going on with --train.input-gradient float" in line for line in result.out.splitlines()) == 1
    assert (provenance["linear_product"], provenance["input_gradient"]) == ("packed", "float")


@pytest.mark.slow
def test_wrong_bf16_weight_gradients_are_not_used(
    bitnet: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step of the inputs is left out in bf16 alone; a run that was trained so is refused."""
    words = "--train.product packed --train.precision fp32 --train.weight-gradient bf16".split()
    _, provenance = train(bitnet, tmp_path, *words)
    assert (provenance["weight_gradient"], provenance["gradient_dtype"]) == ("bf16", "float32")
    shutil.rmtree(tmp_path / "one" / "checkpoints" / "step_000002")  # so that there is something to continue
    real = packed_linear._weight_gradient

    def without(grad: Tensor, codes: Tensor, step: Tensor, dtype: torch.dtype) -> Tensor:
        step = torch.ones_like(step) if dtype == torch.bfloat16 else step
        return real(grad, codes, step, dtype)

    monkeypatch.setattr(packed_linear, "_weight_gradient", without)
    result = bitnet(*TINY_TRAIN, "--num-steps", 2, "--run-id", "one", "--runs-dir", tmp_path, *words)
    assert result.code == 2
    assert "bf16 weight gradients differ from float32 ones" in result.err

    result, provenance = train(bitnet, tmp_path / "new", *words)
    assert sum("going on with --train.weight-gradient fp32" in line for line in result.out.splitlines()) == 1
    assert (provenance["linear_product"], provenance["weight_gradient"]) == ("packed", "fp32")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_wrong_fused_blocks_are_not_used(
    bitnet: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """A gradient of norms that forgets the projection; a run that was trained so is refused."""
    words = ["--train.product", "packed", "--train.fused", "on", "--train.precision", precision]
    _, provenance = train(bitnet, tmp_path, *words)
    assert provenance["fused_blocks"] is True
    shutil.rmtree(tmp_path / "one" / "checkpoints" / "step_000002")  # so that there is something to continue
    real = passes.norm_gradient

    def wrong(grad: Tensor, x: Tensor, inverse: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        return grad * weight * inverse, real(grad, x, inverse, weight)[1] * 2

    monkeypatch.setattr(passes, "norm_gradient", wrong)
    result = bitnet(*TINY_TRAIN, "--num-steps", 2, "--run-id", "one", "--runs-dir", tmp_path, *words)
    assert result.code == 2
    assert "the fused blocks differ from the plain ones" in result.err

    result, provenance = train(bitnet, tmp_path / "new", *words)
    assert sum("going on with --train.fused off" in line for line in result.out.splitlines()) == 1
    assert (provenance["linear_product"], provenance["fused_blocks"]) == ("packed", False)


@pytest.mark.slow
def test_wrong_packed_products_are_not_used(
    bitnet: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ops.product

    def wrong(*words: Any, **options: Any) -> Tensor:
        y = real(*words, **options)
        y[:, ::10] *= 2
        return y

    monkeypatch.setattr(ops, "product", wrong)
    result, provenance = train(bitnet, tmp_path, "--train.product", "packed")
    assert sum("packed products differ from float32 ones" in line for line in result.out.splitlines()) == 1
    assert (provenance["linear_product"], provenance["input_gradient"]) == ("float", "float")


@pytest.mark.slow
@needs_compiler
def test_compiled_training_is_used_and_loses_what_plain_training_does(
    bitnet: Command, tmp_path: Path
) -> None:
    """For real, in the instructions that this process uses; a code that flips moves a loss in the fourth
    digit.
    """
    outcomes = {name: train(bitnet, tmp_path / name, "--train.compile", name) for name in ("off", "on")}
    assert "going on without" not in outcomes["on"][0].out
    assert outcomes["on"][1]["compiled"] is True
    plain, compiled = (
        [row["loss"] for row in read_lines(tmp_path / name / "one" / "metrics" / "scalars.jsonl").rows]
        for name in outcomes
    )
    assert compiled == pytest.approx(plain, rel=2**-6)  # trial.grain: what a correct path may differ by


def test_compiled_code_on_disk_is_kept_apart_by_instruction_set() -> None:
    keep_processors_apart()
    keep_processors_apart()
    assert torch.compiler.config.cache_key_tag.count(torch.backends.cpu.get_cpu_capability()) == 1


ONE_SUM = """
import torch
from bitnet.data.stream import Batch
from bitnet.kernels import ops, passes
from bitnet.nn.transformer import BitNetTransformer
from bitnet.train.compiled import keep_processors_apart
from bitnet.train.trial import Trial, refusal
from bitnet.train.objective import NextToken
keep_processors_apart()
f = lambda x: x.sin().sum(-1)
x = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
print(torch.backends.cpu.get_cpu_capability(), bool((torch.compile(f)(x) - f(x)).abs().max() < 1e-3))
"""


@pytest.mark.slow
@needs_compiler
@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() != "AVX512", reason="needs a processor with two instruction sets"
)
def test_code_compiled_with_avx512_is_not_taken_where_avx2_is_used(tmp_path: Path) -> None:
    """Inductor found the code of the first process on disk and ran it in the second, which then computed
    garbage.
    """
    for capability in ("AVX512", "AVX2"):
        environment = {
            **os.environ,
            "TORCHINDUCTOR_CACHE_DIR": str(tmp_path),
            "ATEN_CPU_CAPABILITY": capability.lower(),
        }
        done = subprocess.run(
            [sys.executable, "-c", ONE_SUM], env=environment, capture_output=True, text=True, check=True
        )
        assert done.stdout.split() == [capability, "True"]


TWENTY_GRADIENTS = """
import torch
from bitnet.train.compiled import add_in_a_fixed_order, keep_processors_apart
add_in_a_fixed_order()
keep_processors_apart()
torch.set_num_threads(2)
torch.manual_seed(0)
table = torch.nn.Embedding(8, 32)
ids, weights = torch.randint(0, 8, (64, 64)), torch.randn(64, 64, 32)
loss = torch.compile(lambda ids: (table(ids) * weights).sum())
gradients = set()
for _ in range(20):
    table.zero_grad()
    loss(ids).backward()
    gradients.add(table.weight.grad.numpy().tobytes())
print(len(gradients))
"""


@pytest.mark.slow
@needs_compiler
def test_compiled_gradients_have_the_same_bits_with_two_threads() -> None:
    """Two threads added to the rows of an embedding in the order in which they came: 18 of 20 gradients
    differed, and a run that was resumed came out differently.
    """
    done = subprocess.run(
        [sys.executable, "-c", TWENTY_GRADIENTS], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["1"]


def test_the_guard_compares_in_fp16_with_a_scaled_loss(tiny_model: BitNetTransformer) -> None:
    """Both ways in the run's own number format: an equal model passes, and one with a wrong operation does
    not.
    """
    ids = torch.arange(48).view(4, 12) % tiny_model.config.vocab_size
    trial = Trial(
        tiny_model,
        Batch(ids, ids, torch.ones_like(ids, dtype=torch.bool)),
        NextToken(),
        bf16=False,
        fp16=True,
    )
    assert refusal(trial, tiny_model, tiny_model) is None
    assert refusal(trial, tiny_model, lambda *words, **options: 2 * tiny_model(*words, **options)) is not None
