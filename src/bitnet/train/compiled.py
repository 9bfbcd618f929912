"""Which form of the model the loop calls: compiled or plain, multiplying int8 codes or float32 numbers.

Whether it was asked for or is the default here, a fast form is used only if it computes what the plain one
does (trial.py). The int8 products are compared with the float ones on two rows, then the compiled model with
the plain one on the first micro-batch, since compiled code is made for one shape. The run records what was
used, which may not be what was asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bitnet.data.stream import RowSource
from bitnet.nn.bitlinear import Product
from bitnet.nn.transformer import BitNetTransformer
from bitnet.run.provenance import cpu_model
from bitnet.train.config import TrainConfig
from bitnet.train.device import Machine, wants_compile
from bitnet.train.loop import Forward, read_batches
from bitnet.train.objective import objective_of
from bitnet.train.trial import Trial, refusal

Say = Callable[[str], None]
"""Tells the user something in one line."""


@dataclass(frozen=True)
class Paths:
    """forward: what the loop calls; product: how its ternary layers multiply; compiled: by torch.compile."""

    forward: Forward
    product: Product
    compiled: bool


def choose_paths(
    model: BitNetTransformer, machine: Machine, config: TrainConfig, source: RowSource, say: Say
) -> Paths:
    """The fastest form of the model that is right on the run's first rows. Sets the model's product.

    A fast form that is refused is reported through `say`.
    """
    coded = model.config.weights == "ternary" and model.config.activations == "int8"
    check_product = machine.product == "int8" and coded
    compile_it = wants_compile(config, machine.device)
    if not check_product and not compile_it:
        return Paths(model, machine.product, compiled=False)

    batch = read_batches(source, config, 1, machine.device)[0]
    trial = Trial(model, batch, objective_of(config, 1), machine.bf16, machine.fp16)

    # In this order: what is compiled is the model with the product that it will train with.
    product = _checked_product(trial, machine, say) if check_product else machine.product
    model.set_product(product, machine.gradient_dtype)
    compiled = _compiled(trial, say) if compile_it else None
    return Paths(model if compiled is None else compiled, product, compiled is not None)


def _checked_product(trial: Trial, machine: Machine, say: Say) -> Product:
    """int8; or float, with a message, where products on int8 codes compute something else."""
    model = trial.model

    def multiplying(product: Product) -> Forward:
        def forward(*words: Tensor, **options: Tensor) -> Tensor:
            model.set_product(product, machine.gradient_dtype)
            logits: Tensor = model(*words, **options)
            return logits

        return forward

    two_rows = Trial(model, trial.batch.select(slice(0, 2)), trial.objective, trial.bf16, trial.fp16)
    why = refusal(two_rows, multiplying("float"), multiplying("int8"))
    if why is None:
        return "int8"
    say(
        f"int8 products differ from float32 ones by more than rounding: {why}; going on with --train.product "
        "float"
    )
    return "float"


def _compiled(trial: Trial, say: Say) -> Forward | None:
    """The compiled model; or None, with a message, where compiling fails or computes something else."""
    say("compiling the model (torch.compile); the first update waits for it, about a minute on a CPU")
    keep_processors_apart()
    forward: Forward = torch.compile(trial.model)
    try:
        why = refusal(trial, trial.model, forward)
    except Exception as error:  # noqa: BLE001 - compilers fail in many ways, and none of them is a reason not to train
        say(
            f"torch.compile failed ({type(error).__name__}: {str(error).splitlines()[0]}); going on without "
            "it"
        )
    else:
        if why is None:
            return forward
        say(
            f"the compiled model differs from the plain one by more than rounding: {why}; going on without "
            "torch.compile"
        )
    torch.compiler.reset()
    trial.model.zero_grad()
    return None


def keep_processors_apart() -> None:
    """Give compiled code that is kept on disk a key of its own for each processor and instruction set.

    Inductor (torch 2.13) leaves the instruction set out of that key, while its C++ depends on the width of a
    vector: code made with AVX-512 and used again with AVX2 skips half of all numbers, and the loss is NaN or
    1e15 (docs/log.md).
    """
    mine = f"{cpu_model()}, {torch.backends.cpu.get_cpu_capability()}"
    if mine not in torch.compiler.config.cache_key_tag:
        torch.compiler.config.cache_key_tag += mine
