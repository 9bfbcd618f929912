"""The passes in C give the numbers of the plain ones, which test_plain_passes.py compares with autograd: bit
for bit where no exponential, logarithm or sum over a row is taken, else to about the last bit of a float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from bitnet.errors import DataError
from bitnet.kernels import ops, passes, plain_passes
from bitnet.kernels.plain_passes import Activation
from bitnet.nn.quantize import ternarize
from bitnet.nn.rotary import rotary_table

pytest_plugins = ["kernel_paths"]  # fixtures: path, use, empty_cache

DTYPES = [torch.float32, torch.bfloat16]
ACTIVATIONS: list[Activation] = ["silu", "relu2"]
dtypes, activations = st.sampled_from(DTYPES), st.sampled_from(ACTIVATIONS)
sizes, widths, seeds = st.integers(0, 40), st.integers(1, 70), st.integers(0, 99)
quick = settings(
    deadline=None, max_examples=20, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def close(ours: Tensor, exact: Tensor, bits: float = 1e-6, terms: Tensor | None = None) -> None:
    """Within `bits` of the largest value (or of the terms that it is a difference of) in float32, and one
    rounding more in bfloat16.
    """
    assert ours.shape == exact.shape
    if exact.numel():
        rounding = 2**-8 if ours.dtype == torch.bfloat16 else 0
        allowed = rounding * exact.abs() + bits * (exact if terms is None else terms).abs().max()
        assert ((ours.double() - exact).abs() <= allowed).all()


@quick
@given(sizes, widths, dtypes, dtypes, seeds)
def test_gradients_are_quantised_and_scaled_bit_for_bit(
    path: str, n: int, width: int, dtype: torch.dtype, out: torch.dtype, seed: int
) -> None:
    grad, scale, step = randn(n, width, seed=seed, dtype=dtype), randn(width, 1).abs(), randn(n, 1).abs()
    ours = passes.quantize_gradient(grad, scale, step, out)
    rows = ops.quantize_rows(grad.float() * scale.view(-1) * 2.0**40)
    assert torch.equal(ours.codes, rows.codes)
    assert torch.equal(ours.step, rows.step / 2.0**40)
    assert torch.equal(ours.scaled, (grad.float() * step).to(out))


@pytest.mark.parametrize("size", [1e-16, 1e-9, 1.0, 1e20])
def test_small_gradients_keep_their_digits(path: str, size: float) -> None:
    """The rule for activations counts magnitudes below 1e-5 as 1e-5: most rows of a gradient would be 0."""
    grad = randn(5, 40) * size
    ours = passes.quantize_gradient(grad)
    assert (ours.codes.abs().amax(-1) == 127).all()
    assert ((ours.codes * ours.step - grad).abs() <= 0.501 * ours.step).all()
    gated = passes.quantize_gated_gradient(grad[:, :20].contiguous(), randn(5, 40), "silu")
    assert (gated.codes.abs().amax(-1) == 127).all()


@quick
@given(sizes, widths, dtypes, activations, seeds)
def test_the_gate_and_its_gradient(
    path: str, n: int, inner: int, dtype: torch.dtype, activation: Activation, seed: int
) -> None:
    gate_up, grad = randn(n, 2 * inner, seed=seed, dtype=dtype) * 4, randn(n, inner, dtype=dtype)
    exact = gate_up.double().requires_grad_()
    gated, up = exact.chunk(2, dim=-1)
    out = (F.silu(gated) if activation == "silu" else F.relu(gated).square()) * up
    (exact_gradient,) = torch.autograd.grad(out, exact, grad.double())
    close(passes.gate(gate_up, activation), out.detach())
    close(passes.gate_gradient(grad, gate_up, activation), exact_gradient)


@quick
@given(st.integers(1, 40), widths, dtypes, activations, seeds)
def test_gated_rows_are_quantised_without_being_written(
    path: str, n: int, inner: int, dtype: torch.dtype, activation: Activation, seed: int
) -> None:
    gate_up, weight = randn(n, 2 * inner, seed=seed, dtype=dtype), randn(inner).abs() + 0.1
    wide = gate_up.float()
    ours, theirs = (
        passes.quantize_gated_rows(gate_up, activation),
        ops.quantize_rows(passes.gate(wide, activation)),
    )
    assert torch.equal(ours.codes, theirs.codes)
    assert torch.equal(ours.step, theirs.step)

    normed = passes.quantize_gated_normed_rows(gate_up, activation, weight, 1e-5)
    for mine, other in zip(
        normed, ops.quantize_normed_rows(passes.gate(wide, activation), weight, 1e-5), strict=True
    ):
        assert torch.equal(mine, other)


@quick
@given(st.integers(1, 40), widths, dtypes, activations, seeds)
def test_a_gradient_goes_back_through_the_gate_and_is_quantised_at_once(
    path: str, n: int, inner: int, dtype: torch.dtype, activation: Activation, seed: int
) -> None:
    gate_up, grad = randn(n, 2 * inner, seed=seed), randn(n, inner, dtype=dtype)
    scale, step = randn(2 * inner).abs(), randn(n, 1).abs()
    ours = passes.quantize_gated_gradient(grad, gate_up, activation, scale, step, dtype)
    theirs = passes.quantize_gradient(passes.gate_gradient(grad, gate_up, activation), scale, step, dtype)
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.equal(mine, other)


@quick
@given(sizes, widths, dtypes, dtypes, seeds)
def test_the_norms_gradient(
    path: str, n: int, width: int, dtype: torch.dtype, grad_dtype: torch.dtype, seed: int
) -> None:
    x, grad = randn(n, width, seed=seed, dtype=dtype), randn(n, width, seed=1, dtype=grad_dtype)
    inverse, weight = (x.float().square().mean(-1, keepdim=True) + 1e-5).rsqrt(), randn(width, seed=2)
    wide = grad.double(), x.double(), inverse.double().view(-1), weight.double()
    normal, slope = wide[1] * inverse.double(), wide[0] * wide[3] * inverse.double()
    exact = slope - normal * (slope * normal).mean(-1, keepdim=True)
    grad_x, grad_weight = passes.norm_gradient(grad, x, inverse, weight)
    assert grad_x.dtype == dtype
    close(grad_x, exact, 2e-6, slope)  # which cancel where a row is one wide
    close(grad_weight, (wide[0] * normal).sum(0), 2e-6)


@quick
@given(st.integers(1, 3), st.integers(1, 12), st.integers(1, 3), st.integers(1, 20), dtypes, dtypes)
def test_heads_are_turned_there_and_back_bit_for_bit(
    path: str, batch: int, tokens: int, groups: int, half: int, dtype: torch.dtype, out: torch.dtype
) -> None:
    heads, d = 2 * groups, 2 * half
    qkv = randn(batch, tokens, (heads + 2 * groups) * d, dtype=dtype)
    cos, sin = rotary_table(d, tokens, 10_000.0)
    ours = passes.rotary(qkv, cos, sin, heads, groups, out)
    for mine, other in zip(ours, plain_passes.rotary(qkv, cos, sin, heads, groups, out), strict=True):
        assert mine.dtype == out
        assert mine.is_contiguous()
        assert torch.equal(mine, other)

    # attention gives gradients whose tokens come before their heads
    grads = [randn(*part.transpose(1, 2).shape, seed=4, dtype=out).transpose(1, 2) for part in ours]
    back = plain_passes.rotary_gradient(*grads, cos, sin, dtype)
    for given_grads in (grads, [grad.contiguous() for grad in grads]):
        assert torch.equal(passes.rotary_gradient(*given_grads, cos, sin, dtype), back)


@quick
@given(st.integers(0, 6), st.integers(1, 3000), dtypes, st.sampled_from([0.1, 5.0, 60.0]), seeds)
def test_cross_entropy(path: str, n: int, vocab: int, dtype: torch.dtype, size: float, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    logits = (torch.randn(n, vocab, generator=rng) * size).to(dtype)
    targets = torch.randint(0, vocab, (n,), generator=rng)
    weights = torch.randint(0, 3, (n,), generator=rng) / 2
    targets[weights == 0] = -100
    log_p = logits.double().log_softmax(-1)
    nll = -log_p.gather(1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    gradient = log_p.exp()
    gradient[torch.arange(n), targets.clamp(min=0)] -= 1
    losses = passes.cross_entropy(logits, targets, weights)
    close(losses, nll * weights, 2e-6)
    allowed = 2**-8 if dtype == torch.bfloat16 else 1e-5
    assert (
        (logits.double() - gradient * weights.unsqueeze(-1)).abs() <= allowed * gradient.abs() + 2e-6
    ).all()


def test_cross_entropy_over_a_large_vocabulary_adds_no_error(path: str) -> None:
    logits, targets = randn(3, 32_000), torch.tensor([0, 31_999, 500])
    exact = F.cross_entropy(logits.double(), targets, reduction="none")
    assert (passes.cross_entropy(logits, targets, torch.ones(3)) - exact).abs().max() < 2e-6
    assert logits.double().sum(-1).abs().max() < 1e-5  # of a gradient


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_spoil_their_own_row_only(path: str, bad: float) -> None:
    for place in (0, 20, 39):
        logits = randn(3, 40)
        logits[1, place] = bad
        losses = passes.cross_entropy(logits, torch.tensor([1, 2, 3]), torch.ones(3))
        assert losses.isnan().tolist() == [False, True, False]
        assert logits.isnan().all(dim=1).tolist() == [False, True, False]
        assert logits[[0, 2]].isfinite().all()
    masked = torch.full((1, 40), bad)
    assert passes.cross_entropy(masked, torch.tensor([1]), torch.zeros(1)).tolist() == [0]
    assert (masked == 0).all()


def test_angles_targets_and_weights_may_be_views_and_of_other_formats(path: str) -> None:
    cos, sin = (table.bfloat16() for table in rotary_table(6, 4, 10_000.0))
    qkv, wide = randn(2, 4, 24), (cos.float(), sin.float())
    for ours, theirs in zip(passes.rotary(qkv, cos, sin, 2, 1), passes.rotary(qkv, *wide, 2, 1), strict=True):
        assert torch.equal(ours, theirs)
    targets, scored = torch.arange(8)[::2], torch.tensor([True, False] * 4)[::2]
    expected = F.cross_entropy(randn(4, 9), targets, reduction="none")
    torch.testing.assert_close(passes.cross_entropy(randn(4, 9), targets, scored), expected)


def test_a_target_that_no_logit_has_is_refused_before_anything_is_written(path: str) -> None:
    for target in (-1, 5):
        logits = randn(2, 5)
        with pytest.raises(DataError, match="outside of the vocabulary"):
            passes.cross_entropy(logits, torch.tensor([0, target]), torch.ones(2))
        assert torch.equal(logits, randn(2, 5))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_stay_visible(path: str, bad: float) -> None:
    """A row's codes become 0 and its step tells; elementwise results are as torch has them."""
    grad, ones = torch.ones(3, 20), torch.ones(3, 1)
    grad[1, 7] = bad
    quantized = passes.quantize_gradient(grad, None, ones, torch.bfloat16)
    assert (quantized.codes[1] == 0).all()
    assert quantized.step.isfinite().view(-1).tolist() == [True, False, True]
    assert torch.equal(quantized.scaled[:, 6:9].isfinite(), grad[:, 6:9].isfinite())
    grad_x, grad_weight = passes.norm_gradient(grad, torch.ones(3, 20), ones, torch.ones(20))
    assert not grad_x[1].isfinite().any()
    assert grad_x[[0, 2]].isfinite().all()
    assert not grad_weight[7].isfinite()
    assert not passes.gate(torch.cat((torch.ones(3, 20), grad), -1), "silu")[1, 7].isfinite()

    weight = torch.ones(20, 20)
    weight[3, 4] = bad
    layer = passes.pack_weight(weight, (8, 12))
    assert not layer.row_scale[:8].isfinite().any()
    assert (layer.row_scale[8:] == 1).all()
    assert (ops.unpack(layer.packed)[:8] == 0).all()


@pytest.mark.parametrize("low", [-80.0, -1.0])
def test_the_exponential_is_right_to_the_last_bits(path: str, low: float) -> None:
    """silu(x) = x / (1 + e^-x), where the exponential alone decides for large negative x."""
    x = torch.linspace(low, -low, 100_001).repeat(2, 1).t().contiguous()
    x[:, 1] = 1
    exact = F.silu(x[:, 0].double())
    relative = (passes.gate(x, "silu")[:, 0].double() - exact).abs() / exact.abs().clamp(min=1e-36)
    assert relative.max() < 4e-7


@quick
@given(st.integers(1, 50), st.integers(1, 50), st.integers(1, 50), st.booleans(), seeds)
def test_a_latent_weight_is_packed_in_both_orientations(
    path: str, first: int, second: int, width: int, given_scale: bool, seed: int
) -> None:
    weight, rows = randn(first + second, width, seed=seed), (first, second)
    scale = ternarize(weight, rows).row_scale if given_scale else None
    codes, turned, scales = plain_passes.pack_weight(
        weight, [*rows], None if scale is None else scale.view(-1)
    )
    layer = passes.pack_weight(weight, rows, scale)
    assert torch.equal(ops.unpack(layer.packed), codes)
    assert torch.equal(ops.unpack(layer.packed_t), turned)
    assert torch.equal(layer.row_scale.view(-1), scales)
    assert torch.equal(layer.packed.data, ops.pack(codes).data)
    if given_scale:
        assert torch.equal(codes, ternarize(weight, rows).codes)


def test_ties_of_weights_go_to_zero_as_in_nn(path: str) -> None:
    """round(0.5) is 0: half the scale is still 0 and the next float is 1."""
    for scale in (1.0, 0.7, 3e-5, 0.01234567):
        half = torch.tensor(scale) / 2
        next_one = torch.nextafter(half, torch.tensor(1.0))
        weight = torch.stack((half, next_one, -half, -next_one, half * 3)).repeat(16, 1)
        scales = torch.full((16,), scale)
        expected = (weight / scales.unsqueeze(-1)).round().clamp(-1, 1).to(torch.int8)
        assert expected[0].tolist() == [0, 1, 0, -1, 1]
        assert torch.equal(ops.unpack(passes.pack_weight(weight, None, scales).packed), expected)
    assert (passes.pack_weight(torch.zeros(16, 16)).row_scale == 1e-5).all()


def test_every_path_and_any_number_of_threads_give_the_same_bits(
    path: str, use: Callable[[Any, str], None]
) -> None:
    n, inner, vocab = 97, 700, 2100
    gate_up, grad = randn(n, 2 * inner) * 3, randn(n, inner, seed=1)
    scale, step, weight = randn(2 * inner).abs(), randn(n, 1).abs(), randn(inner)
    cos, sin = rotary_table(50, n, 10_000.0)

    def results() -> list[Tensor]:
        logits = randn(n, vocab) * 5
        inverse = passes.quantize_gated_normed_rows(gate_up, "silu", weight, 1e-5).inverse_rms
        layer = passes.pack_weight(gate_up, (17, 80))
        return [
            *passes.quantize_gated_gradient(grad, gate_up, "silu", scale, step, torch.bfloat16),
            *passes.quantize_gated_normed_rows(gate_up, "relu2", weight, 1e-5),
            *passes.norm_gradient(grad, gate_up[:, :inner], inverse, weight),
            *passes.norm_gradient(grad.bfloat16(), gate_up[:, inner:].bfloat16(), inverse, weight),
            passes.gate(gate_up.bfloat16(), "silu"),
            passes.gate_gradient(grad, gate_up, "silu"),
            *passes.rotary(gate_up.view(1, n, -1), cos, sin, 14, 7, torch.bfloat16),
            passes.cross_entropy(logits, torch.arange(n), step.view(-1)),
            logits,
            *(layer.packed.data, layer.packed_t.data, layer.row_scale),
        ]

    here = results()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        threaded = results()
    finally:
        torch.set_num_threads(before)
    use(None, "scalar")
    for mine, other, scalar in zip(here, threaded, results(), strict=True):
        assert torch.equal(mine, other)
        assert torch.equal(mine, scalar)


def test_other_devices_formats_and_machines_take_the_plain_pass(use: Callable[[Any, str], None]) -> None:
    half = randn(4, 20, dtype=torch.float16)
    assert passes.gate(half, "silu").dtype == torch.float16
    grad = randn(4, 20)
    here = passes.quantize_gradient(grad, None, randn(4, 1))
    use(None, "torch")
    for mine, other in zip(here, passes.quantize_gradient(grad, None, randn(4, 1)), strict=True):
        assert torch.equal(mine, other)
    layer = passes.pack_weight(grad)
    assert torch.equal(layer.packed_t.data, layer.packed.data.t())


@pytest.mark.slow
def test_the_operations_are_registered_rightly(use: Callable[[Any, str], None]) -> None:
    """torch's own check: schema, fake kernels, and their agreement with the real ones."""
    names = torch.ops.bitnet
    n, inner, bf16 = 6, 10, torch.bfloat16
    gate_up, grad, weight = randn(n, 2 * inner), randn(n, inner), torch.ones(inner)
    heads = randn(2, 3, 4 * 6)
    cos, sin = rotary_table(6, 3, 10_000.0)
    qkv = plain_passes.rotary(heads, cos, sin, 2, 1, bf16)
    for way in ("", "torch"):
        use(None, way)
        checks: list[tuple[Any, tuple[Any, ...]]] = [
            (names.quantize_gradient.default, (grad, None, "silu", None, None, bf16)),
            (names.quantize_gradient.default, (grad, gate_up, "relu2", torch.ones(20), torch.ones(n), bf16)),
            (names.norm_gradient.default, (grad, grad, torch.ones(n), weight)),
            (names.gate.default, (gate_up, "silu")),
            (names.gate_gradient.default, (grad, gate_up, "silu")),
            (names.quantize_gated.default, (gate_up, "silu", None, 0.0)),
            (names.quantize_gated.default, (gate_up, "silu", weight, 1e-5)),
            (names.rotary.default, (heads, cos, sin, 2, 1, bf16)),
            (names.rotary_gradient.default, (*qkv, cos, sin, torch.float32)),
            (names.cross_entropy.default, (randn(n, 30), torch.arange(n), torch.ones(n))),
            (names.pack_weight.default, (randn(20, 33), [8, 12], None)),
        ]
        for operation, arguments in checks:
            torch.library.opcheck(operation, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.slow
def test_compiled_code_gives_the_same_numbers(use: Callable[[Any, str], None]) -> None:
    """fullgraph: nothing falls back to Python."""
    gate_up, logits = randn(2, 3, 20), randn(6, 30)

    def step(gate_up: Tensor, logits: Tensor) -> tuple[Tensor, ...]:
        gated = passes.gate(gate_up * 2, "silu")
        quantized = passes.quantize_gated_gradient(gated, gate_up, "silu", None, None, torch.bfloat16)
        losses = passes.cross_entropy(logits, torch.arange(6), torch.ones(6))
        layer = passes.pack_weight(gate_up.view(6, 20), (2, 4))
        return *quantized, losses, logits + 1, layer.packed_t.data

    torch._dynamo.reset()
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)(gate_up, logits.clone())
    for ours, theirs in zip(compiled, step(gate_up, logits.clone()), strict=True):
        assert torch.equal(ours, theirs)
