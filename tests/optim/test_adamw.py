"""Our AdamW against torch's, bit for bit, and what it does not import."""

from __future__ import annotations

import subprocess
import sys

import torch

from bitnet.optim.adamw import AdamW

BETAS = (0.9, 0.95)


def test_equals_torch_adamw_bit_for_bit() -> None:
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in ((7, 33), (5,), (3,))]
    theirs = [torch.nn.Parameter(parameter.detach().clone()) for parameter in ours]
    mine = AdamW([{"params": ours, "lr": 0.01, "weight_decay": 0.1}], BETAS)
    reference = torch.optim.AdamW(theirs, lr=0.01, weight_decay=0.1, betas=BETAS, fused=True)
    for _ in range(5):
        for one, other in zip(ours[:2], theirs[:2], strict=True):  # the third never has a gradient
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        mine.step()
        reference.step()

    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
    for one, other in zip(ours[:2], theirs[:2], strict=True):
        assert mine.state[one].keys() == reference.state[other].keys()
        assert all(torch.equal(value, reference.state[other][key]) for key, value in mine.state[one].items())
    assert ours[2] not in mine.state


def test_making_and_stepping_optimizers_does_not_import_the_compiler() -> None:
    """It is a second of processor time at the start of every training."""
    code = """
import sys, torch
from bitnet.optim.adamw import AdamW
from bitnet.optim.muon import Muon
one, two = torch.nn.Parameter(torch.ones(4, 4)), torch.nn.Parameter(torch.ones(4, 4))
one.grad = two.grad = torch.ones(4, 4)
AdamW([{"params": [one], "lr": 0.1, "weight_decay": 0.0}], (0.9, 0.95)).step()
Muon([(two, (4,))], momentum=0.9).step()
print("torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
