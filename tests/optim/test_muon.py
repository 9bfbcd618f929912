"""Our Muon against torch's, and each logical matrix by itself."""

from __future__ import annotations

import pytest
import torch

from bitnet.optim import muon
from bitnet.optim.muon import Muon, orthogonalize
from bitnet.optim.optimizer import OptimizerConfig

MUON = OptimizerConfig(kind="muon", adam_beta1=0.9, adam_beta2=0.95, muon_momentum=0.95, muon_lr_ratio=10.0)


@pytest.mark.parametrize("shape", [(24, 24), (48, 16), (16, 48)])
@pytest.mark.parametrize(("bf16", "within"), [(False, 0.02), (True, 1e-6)])
def test_equals_torch_muon(shape: tuple[int, int], bf16: bool, within: float) -> None:
    """torch fixes the iteration at bfloat16 (8 bits of mantissa); an update entry is about 1/sqrt(24). In
    float32 ours differs by that rounding, in bfloat16 it does not.
    """
    torch.manual_seed(0)
    start = torch.randn(shape)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    mine = Muon([(ours, (shape[0],))], momentum=0.95, bf16=bf16)
    reference = torch.optim.Muon([theirs], lr=0.1, momentum=0.95, weight_decay=0.1, nesterov=True)
    mine.param_groups[0].update(lr=0.1, weight_decay=0.1)
    for _ in range(3):
        gradient = torch.randn(shape)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        mine.step()
        reference.step()
    moved = (theirs - start).norm()
    assert (ours - theirs).norm() < within * moved


def test_singular_values_become_nearly_equal() -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalize(torch.randn(3, 20, 30)))
    assert float(values.min()) > 0.6
    assert float(values.max()) < 1.3


@pytest.mark.parametrize(
    "shape", [(2, 16, 16), (2, 16, 48), (2, 48, 16), (2, 16, 24), (1, 200, 200), (1, 200, 500)]
)
@pytest.mark.parametrize("decades", [0.0, 4.0, 8.0])
@pytest.mark.parametrize("seed", range(5))
def test_equals_the_iteration_as_published(shape: tuple[int, int, int], decades: float, seed: int) -> None:
    """In float64, and for matrices whose singular values span many decades; long ones take another way there.

    What float32 allows: of a product that is up to a^2k large (k iterations at once, so 2 before the last of
    three), rounding is 2^-24. The last of three multiplies it by b, the two iterations that follow by a each:
    |b| a^4 a^2 = 7,975 units of 2^-24, or 4.8e-4. Sums of many products round more often, but mostly cancel:
    3e-5 is the most that was seen on two instruction sets.
    """
    bound = 4.7750 * 3.4445**6 * 2**-24
    torch.manual_seed(seed)
    u, _, v = torch.linalg.svd(torch.randn(shape, dtype=torch.float64), full_matrices=False)
    matrices = (u * torch.logspace(0, -decades, u.shape[-1], dtype=torch.float64)) @ v
    x = matrices / torch.linalg.matrix_norm(matrices, keepdim=True)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    assert torch.linalg.matrix_norm(orthogonalize(matrices.float()) - x, 2).max() < bound


@pytest.mark.parametrize("shape", [(2, 192, 192), (2, 200, 300), (1, 256, 640)])
def test_half_a_symmetric_product_changes_only_rounding(
    shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(shape)
    halves = orthogonalize(matrices)
    monkeypatch.setattr(muon, "STRIPS_FROM", 1000)
    assert torch.allclose(halves, orthogonalize(matrices), rtol=0, atol=1e-5)


def test_fused_projection_equals_its_split_matrices() -> None:
    torch.manual_seed(0)
    weight, gradient = torch.randn(24, 10), torch.randn(24, 10)
    fused = torch.nn.Parameter(weight.clone())
    parts = [torch.nn.Parameter(part.clone()) for part in weight.split([12, 6, 6])]
    fused.grad = gradient.clone()
    for part, piece in zip(parts, gradient.split([12, 6, 6]), strict=True):
        part.grad = piece.clone()
    one = Muon([(fused, (12, 6, 6))], momentum=0.9)
    many = Muon([(part, (part.shape[0],)) for part in parts], momentum=0.9)
    for optimizer in (one, many):
        optimizer.param_groups[0]["lr"] = 0.05
        optimizer.step()
    assert torch.allclose(fused, torch.cat(parts), atol=1e-6)
