"""The training passes of ternary.c on torch tensors of a CPU: every size and type is checked here.

What each pass computes is in passes.py; the structures mirror those of ternary.c. Tensors are float32 or
bfloat16 where the C structure has `struct floats`, and rows are flattened: N rows. A wrong argument is a
ValueError: it is a mistake in the calling code.
"""

from __future__ import annotations

import ctypes
from typing import TypeVar

import torch
from torch import Tensor

from bitnet.errors import DataError
from bitnet.kernels.arrays import MAX_INPUTS, MAX_THREADS, packed_bytes
from bitnet.kernels.library import kernels

FLOATS = (torch.float32, torch.bfloat16)
ROWS_OF_A_PART, MOST_PARTS = 16, 64  # partial sums of a norm's weight gradient: by the number of rows alone
_OK, _NO_MEMORY, _INVALID_TARGET = 0, 2, 4
_pointer, _size = ctypes.c_void_p, ctypes.c_int64
Result = TypeVar("Result")


class _Floats(ctypes.Structure):
    _fields_ = (("data", _pointer), ("bf16", _size))


class _Gradient(ctypes.Structure):
    _fields_ = (
        *(("grad", _Floats), ("gate_up", _Floats), ("scaled", _Floats)),
        *((name, _size) for name in ("relu2", "n", "width")),
        *((name, _pointer) for name in ("row_scale", "factor", "codes", "step")),
    )


class _Gating(ctypes.Structure):
    _fields_ = (
        *(("gate_up", _Floats), ("out", _Floats)),
        *((name, _size) for name in ("relu2", "n", "inner")),
        *(("norm", _pointer), ("eps", ctypes.c_double)),
        *((name, _pointer) for name in ("codes", "step", "inverse")),
    )


class _NormGradient(ctypes.Structure):
    _fields_ = (
        *(("grad", _Floats), ("x", _Floats), ("grad_x", _Floats)),
        *((name, _size) for name in ("n", "width", "parts")),
        *((name, _pointer) for name in ("inverse", "weight", "sums", "grad_weight")),
    )


class _Heads(ctypes.Structure):
    _fields_ = (
        ("data", _pointer),
        *((name, _size) for name in ("count", "text_stride", "head_stride", "token_stride")),
    )


class _Rotary(ctypes.Structure):
    _fields_ = (
        *(("rows", _Floats), ("part", _Heads * 3)),
        *((name, _size) for name in ("bf16", "back", "n", "tokens", "head_dim", "table_stride")),
        *(("cosine", _pointer), ("sine", _pointer)),
    )


class _CrossEntropy(ctypes.Structure):
    _fields_ = (
        *(("logits", _Floats), ("n", _size), ("vocab", _size)),
        *((name, _pointer) for name in ("target", "weight", "loss")),
    )


class _Latent(ctypes.Structure):
    _fields_ = (
        ("weight", _pointer),
        *((name, _size) for name in ("out", "width", "matrices")),
        *(("rows", _pointer), ("scales_given", _size)),
        *((name, _pointer) for name in ("row_scale", "sums", "packed", "turned")),
    )


def gate(gate_up: Tensor, activation: str) -> Tensor:
    """See passes.gate."""
    n, inner = _halves(gate_up)
    out = gate_up.new_empty(n, inner)
    job = _Gating(gate_up=_floats(gate_up), out=_floats(out), relu2=activation == "relu2", n=n, inner=inner)
    return _run("training_gate", job, n, out)


def quantize_gated(
    gate_up: Tensor, activation: str, weight: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """See passes.quantize_gated_rows; without a norm the third result is empty."""
    n, inner = _halves(gate_up)
    codes, step = torch.empty(n, inner, dtype=torch.int8), torch.empty(n)
    inverse = torch.empty(0 if weight is None else n)
    job = _Gating(gate_up=_floats(gate_up), relu2=activation == "relu2", n=n, inner=inner, eps=eps)
    job.codes, job.step = codes.data_ptr(), step.data_ptr()
    if weight is not None:
        job.norm, job.inverse = _address(weight, (inner,)), inverse.data_ptr()
    return _run("training_gate", job, n, (codes, step, inverse))


def gate_gradient(grad: Tensor, gate_up: Tensor, activation: str) -> Tensor:
    """See passes.gate_gradient."""
    out = torch.empty_like(gate_up)
    job = _gradient_job(grad, gate_up, activation, out)
    return _run("training_gradient", job, out.shape[0], out)


def quantize_gradient(
    grad: Tensor,
    gate_up: Tensor | None,
    activation: str,
    row_scale: Tensor | None,
    input_step: Tensor | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """See passes.quantize_gradient and passes.quantize_gated_gradient."""
    scaled = torch.empty((grad if gate_up is None else gate_up).shape, dtype=dtype)
    n, width = scaled.shape
    codes, step = torch.empty(n, width, dtype=torch.int8), torch.empty(n)
    job = _gradient_job(grad, gate_up, activation, scaled)
    job.codes, job.step = codes.data_ptr(), step.data_ptr()
    if row_scale is not None:
        job.row_scale = _address(row_scale, (width,))
    if input_step is not None:
        job.factor = _address(input_step, (n,))
    return _run("training_gradient", job, n, (codes, step, scaled))


def _gradient_job(grad: Tensor, gate_up: Tensor | None, activation: str, scaled: Tensor) -> _Gradient:
    n, width = scaled.shape
    job = _Gradient(grad=_floats(grad), scaled=_floats(scaled), relu2=activation == "relu2", n=n, width=width)
    if gate_up is not None:
        job.gate_up = _floats(gate_up)
        _shaped(grad, (n, _halves(gate_up)[1]))
    return job


def norm_gradient(grad: Tensor, x: Tensor, inverse: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """See passes.norm_gradient."""
    n, width = x.shape
    _shaped(grad, (n, width))
    parts = max(1, min(MOST_PARTS, -(-n // ROWS_OF_A_PART)))
    grad_x, sums, grad_weight = torch.empty_like(x), torch.empty(parts, width), torch.zeros(width)
    job = _NormGradient(
        grad=_floats(grad), x=_floats(x), grad_x=_floats(grad_x), n=n, width=width, parts=parts
    )
    job.inverse, job.weight = _address(inverse, (n,)), _address(weight, (width,))
    job.sums, job.grad_weight = sums.data_ptr(), grad_weight.data_ptr()
    return _run("training_norm", job, n, (grad_x, grad_weight))


def rotary(
    qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, kv_heads: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """See passes.rotary."""
    batch, tokens, width = qkv.shape
    d = width // (heads + 2 * kv_heads)
    q, k, v = (torch.empty(batch, count, tokens, d, dtype=dtype) for count in (heads, kv_heads, kv_heads))
    return _run(
        "training_rotary", _rotary_job(qkv, (q, k, v), cos, sin, back=False), batch * tokens, (q, k, v)
    )


def rotary_gradient(
    grad_q: Tensor, grad_k: Tensor, grad_v: Tensor, cos: Tensor, sin: Tensor, dtype: torch.dtype
) -> Tensor:
    """See passes.rotary_gradient."""
    grads = grad_q, grad_k, grad_v
    batch, _, tokens, d = grads[0].shape
    rows = torch.empty(batch, tokens, sum(grad.shape[1] for grad in grads) * d, dtype=dtype)
    return _run("training_rotary", _rotary_job(rows, grads, cos, sin, back=True), batch * tokens, rows)


def _rotary_job(
    rows: Tensor, parts: tuple[Tensor, Tensor, Tensor], cos: Tensor, sin: Tensor, *, back: bool
) -> _Rotary:
    batch, tokens, width = rows.shape
    d = parts[0].shape[3]
    if d % 2 or sum(part.shape[1] for part in parts) * d != width:
        raise ValueError(f"rows of {width} values are not heads of an even number of {d}")
    for part in parts:
        _shaped(part, (batch, part.shape[1], tokens, d))
        if part.dtype != parts[0].dtype or part.dtype not in FLOATS or part.stride(3) != 1:
            raise ValueError("heads have different or other dtypes than float32 and bfloat16, or are strided")
    job = _Rotary(rows=_floats(rows), bf16=parts[0].dtype == torch.bfloat16, back=back, n=batch * tokens)
    job.tokens, job.head_dim, job.table_stride = tokens, d, d
    job.cosine, job.sine = _address(cos, (tokens, d)), _address(sin, (tokens, d))
    for index, part in enumerate(parts):
        job.part[index] = _Heads(part.data_ptr(), part.shape[1], *part.stride()[:3])
    return job


def cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """See passes.cross_entropy."""
    n, vocab = logits.shape
    losses = torch.empty(n)
    job = _CrossEntropy(logits=_floats(logits), n=n, vocab=vocab, loss=losses.data_ptr())
    job.target, job.weight = _address(targets, (n,), torch.int64), _address(weights, (n,))
    return _run("training_cross_entropy", job, n, losses)


def pack_weight(weight: Tensor, rows: list[int], scale: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Tiles of both orientations, and the scales; see passes.pack_weight."""
    out, width = weight.shape
    if sum(rows) != out or min(rows) < 1:
        raise ValueError(f"logical matrices of {rows} rows do not make up {out}")
    packed, turned = (
        torch.empty(packed_bytes(*side), dtype=torch.uint8) for side in ((out, width), (width, out))
    )
    sums, matrix_rows = torch.empty(out, dtype=torch.float64), torch.tensor(rows)
    row_scale = torch.empty(out) if scale is None else scale.clone()
    job = _Latent(weight=_address(weight, (out, width)), out=out, width=width, matrices=len(rows))
    job.rows, job.scales_given, job.row_scale = (
        matrix_rows.data_ptr(),
        scale is not None,
        _address(row_scale, (out,)),
    )
    job.sums, job.packed, job.turned = sums.data_ptr(), packed.data_ptr(), turned.data_ptr()
    return _run("training_pack", job, out, (packed, turned, row_scale), (sums, matrix_rows))


def _run(function: str, job: ctypes.Structure, n: int, result: Result, kept: object = None) -> Result:
    """Call C, unless there are no rows, and return `result`. kept: tensors that C uses beside those of the
    caller and of the result.
    """
    library, path = kernels()
    threads = max(1, min(torch.get_num_threads(), MAX_THREADS))
    status = getattr(library, function)(path, ctypes.byref(job), threads) if n else _OK
    if status == _INVALID_TARGET:
        raise DataError("a target is outside of the vocabulary; check the data")
    if status == _NO_MEMORY:
        raise MemoryError("no memory for the kernels' working space")
    assert status == _OK, status
    return result


def _halves(gate_up: Tensor) -> tuple[int, int]:
    n, width = gate_up.shape
    if width % 2:
        raise ValueError(f"rows of {width} values have no halves for gate and up")
    return n, width // 2


def _floats(tensor: Tensor) -> _Floats:
    if tensor.dtype not in FLOATS or not tensor.is_contiguous() or tensor.device.type != "cpu":
        raise ValueError(f"a {tensor.dtype} tensor is not contiguous float32 or bfloat16 on a CPU")
    if not 1 <= tensor.shape[-1] <= MAX_INPUTS:
        raise ValueError(f"rows of {tensor.shape[-1]:,} values: 1 to {MAX_INPUTS:,} can be taken")
    return _Floats(tensor.data_ptr(), tensor.dtype == torch.bfloat16)


def _address(tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> int:
    _shaped(tensor, shape)
    if tensor.dtype != dtype or not tensor.is_contiguous() or tensor.device.type != "cpu":
        raise ValueError(f"a {tensor.dtype} tensor is not contiguous {dtype} on a CPU")
    return tensor.data_ptr()


def _shaped(tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tensor.shape != shape:
        raise ValueError(f"a tensor has shape {tuple(tensor.shape)}, not {shape}")
