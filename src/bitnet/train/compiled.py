"""Which form of the model the loop calls: compiled or plain, multiplying codes or float32 numbers.

Whether it was asked for or is the default here, a fast form is used only if it computes what the plain one
does (trial.py). Products on codes are compared with the float ones on two rows, then int8 input gradients
with float ones, bf16 weight gradients with float32 ones, fused blocks and the fused loss with plain ones, and
last the compiled model with the plain one on the first micro-batch, since compiled code is made for one
shape. The run records what was used, which may not be what was asked for. A run that is continued keeps to
what it was trained with: if that is refused, so is the run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bitnet.data.stream import RowSource
from bitnet.errors import RunError
from bitnet.nn.bitlinear import Product
from bitnet.nn.packed_linear import InputGradient, WeightGradient
from bitnet.nn.transformer import BitNetTransformer
from bitnet.run.provenance import cpu_model
from bitnet.train.config import TrainConfig
from bitnet.train.device import DTYPES, Machine, wants_compile
from bitnet.train.loop import Forward, read_batches
from bitnet.train.objective import objective_of
from bitnet.train.trial import INT8_ROWS, Trial, loss_refusal, refusal

Say = Callable[[str], None]
"""Tells the user something in one line."""


@dataclass(frozen=True)
class Paths:
    """What trains. forward: what the loop calls; compiled: by torch.compile."""

    forward: Forward
    product: Product
    """How the ternary layers multiply."""
    input_gradient: InputGradient
    """How packed layers compute the gradient of their inputs."""
    compiled: bool
    weight_gradient: WeightGradient = "fp32"
    """The format in which ternary layers multiply for the gradient of their weights."""
    fused_loss: bool = False
    """Whether head and cross-entropy are computed together."""
    fused_blocks: bool = False
    """Whether blocks train by the forms of nn/fused.py."""


def choose_paths(
    model: BitNetTransformer,
    machine: Machine,
    config: TrainConfig,
    source: RowSource,
    say: Say,
    before: Mapping[str, Any] | None = None,
) -> Paths:
    """The fastest form of the model that is right on the run's first rows. Sets the model's product.

    before: conditions of the run's last session, if it has begun. A fast form that is refused is reported
    through `say`. Raises RunError where that form is the one that the run was trained with.
    """
    products = Products(
        machine.product, machine.input_gradient, machine.weight_gradient, machine.fused_blocks
    )
    check_product = machine.product != "float" and model.config.on_codes
    compile_it = wants_compile(config, machine.device)
    if not (check_product or compile_it or machine.fused_loss):
        return Paths(model, *products[:2], compiled=False, weight_gradient=machine.weight_gradient)

    batch = read_batches(source, config, 1, machine.device)[0]
    trial = Trial(model, batch, objective_of(config, 1), machine.bf16, machine.fp16)

    # In this order: what is compiled is the model with the products that it will train with.
    if check_product:
        products = _checked_products(trial, products, machine, say, before or {})
    _set(model, products, machine)
    fused_loss = machine.fused_loss and _checked_loss(trial, say, before or {})
    trial = dataclasses.replace(trial, fused_loss=fused_loss)
    compiled = _compiled(trial, say, graphs=config.compile == "graphs") if compile_it else None
    forward = model if compiled is None else compiled
    return Paths(
        forward,
        products.product,
        products.input_gradient,
        compiled is not None,
        products.weight_gradient,
        fused_loss,
        products.fused,
    )


class Products(NamedTuple):
    """How ternary layers multiply, forward and backward, and whether what surrounds them is fused."""

    product: Product
    input_gradient: InputGradient = "float"
    weight_gradient: WeightGradient = "fp32"
    fused: bool = False


def _set(model: BitNetTransformer, products: Products, machine: Machine) -> None:
    product, input_gradient, weight_gradient, fused = products
    formats = machine.gradient_dtype, input_gradient, DTYPES[weight_gradient]
    model.set_product(product, *formats, fused=fused)


def _checked_products(
    trial: Trial, wanted: Products, machine: Machine, say: Say, before: Mapping[str, Any]
) -> Products:
    """The products wanted; or plainer ones, with a message, where those compute something else."""
    two_rows = dataclasses.replace(trial, batch=trial.batch.select(slice(0, 2)))

    def computes_the_same(plain: Products, fast: Products, names: tuple[str, str, str]) -> bool:
        """names: of the fast form, of the condition that records it, and of the setting without it."""
        what, condition, setting = names
        noise = INT8_ROWS if fast.input_gradient != plain.input_gradient else 0.0
        plain_form, fast_form = (_multiplying(trial.model, form, machine) for form in (plain, fast))
        why = refusal(two_rows, plain_form, fast_form, noise)
        if why is not None:
            fault = f"{what} by more than rounding: {why}"
            _refuse_to_continue(fault, before.get(condition) not in (None, False, "float", "fp32"))
            say(f"{fault}; going on with {setting}")
        return why is None

    # One step after the other, so that a message names what is wrong.
    chosen, faster = Products("float"), Products(wanted.product)
    if trial.reduced:  # a format of autocast belongs to the products
        faster = faster._replace(weight_gradient=wanted.weight_gradient)
    words = (f"{wanted.product} products differ from float32 ones", "linear_product", "--train.product float")
    if not computes_the_same(chosen, faster, words):
        return chosen
    chosen = faster

    if wanted.input_gradient == "int8":
        faster = chosen._replace(input_gradient="int8")
        words = (
            "int8 input gradients differ from float ones",
            "input_gradient",
            "--train.input-gradient float",
        )
        chosen = faster if computes_the_same(chosen, faster, words) else chosen

    if wanted.weight_gradient != chosen.weight_gradient:
        faster = chosen._replace(weight_gradient=wanted.weight_gradient)
        words = (
            "bf16 weight gradients differ from float32 ones",
            "weight_gradient",
            "--train.weight-gradient fp32",
        )
        chosen = faster if computes_the_same(chosen, faster, words) else chosen

    if wanted.fused:
        faster = chosen._replace(fused=True)
        words = ("the fused blocks differ from the plain ones", "fused_blocks", "--train.fused off")
        chosen = faster if computes_the_same(chosen, faster, words) else chosen
    return chosen


def _multiplying(model: BitNetTransformer, products: Products, machine: Machine) -> Forward:
    """The model with these products, whichever it has when it is called."""

    def forward(*words: Tensor, **options: Tensor) -> Tensor:
        _set(model, products, machine)
        logits: Tensor = model(*words, **options)
        return logits

    return forward


def _checked_loss(trial: Trial, say: Say, before: Mapping[str, Any]) -> bool:
    """Whether the fused loss may be used; where it computes something else, a message says so."""
    why = loss_refusal(dataclasses.replace(trial, batch=trial.batch.select(slice(0, 2))))
    if why is None:
        return True
    fault = f"the fused loss differs from the plain one by more than rounding: {why}"
    _refuse_to_continue(fault, before.get("fused_loss") is True)
    say(f"{fault}; going on with --train.fused off")
    return False


def _refuse_to_continue(fault: str, trained_with_it: bool) -> None:
    """Raise RunError where a run has trained with what is now at fault."""
    if trained_with_it:
        raise RunError(
            f"{fault}; the run was trained with them so far and cannot go on with others: continue it on the "
            "machine that it began on, or begin another run"
        )


def compiled_form(model: BitNetTransformer, *, graphs: bool = False) -> Forward:
    """torch.compile of a model; graphs: its kernels are launched as one CUDA graph, forward and backward."""
    if not graphs:
        # One shape is trained. After another one in this process, torch would go on to shapes that vary.
        plain: Forward = torch.compile(model, dynamic=False)
        return plain
    recorded: Forward = torch.compile(model, mode="reduce-overhead", dynamic=False)

    def forward(*words: Tensor, **options: Any) -> Tensor:
        # What the update before returned may be overwritten.
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        return recorded(*words, **options)

    return forward


def _compiled(trial: Trial, say: Say, *, graphs: bool) -> Forward | None:
    """The compiled model; or None, with a message, where compiling fails or computes something else."""
    say("compiling the model (torch.compile); the first update waits for it, about a minute on a CPU")
    keep_processors_apart()
    if trial.batch.input_ids.device.type == "cpu":
        add_in_a_fixed_order()
    torch.compiler.reset()  # after eight shapes in one process torch would run the plain model, silently
    forward = compiled_form(trial.model, graphs=graphs)
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


def add_in_a_fixed_order() -> None:
    """Make compiled code on a CPU give the same bits in every run with the same number of threads.

    Inductor (torch 2.13) adds up the gradient of an embedding with atomic additions, whose order, and with it
    the last bits, changes from run to run where there are two threads. In torch's deterministic mode it calls
    the operation of the plain path instead. Filling new memory, which that mode does by default, is left out.
    """
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def keep_processors_apart() -> None:
    """Give compiled code that is kept on disk a key of its own for each processor and instruction set.

    Inductor (torch 2.13) leaves the instruction set out of that key, while its C++ depends on the width of a
    vector: code made with AVX-512 and used again with AVX2 skips half of all numbers, and the loss is NaN or
    1e15 (docs/log.md).
    """
    mine = f"{cpu_model()}, {torch.backends.cpu.get_cpu_capability()}"
    if mine not in torch.compiler.config.cache_key_tag:
        torch.compiler.config.cache_key_tag += mine
