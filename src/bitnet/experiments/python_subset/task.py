"""Python subset: does a ternary model write functions that compute what their names say?

Functions of integers over characters: arguments, if/else, for, while, return, print, arithmetic and
comparison. The name is the specification, `add_3_then_mul_5` or `is_mod_7_equal_2`, the body the only thing
to write, indented by four. Most names carry two operations and two constants, in seven kinds of function; an
eighth, `words`, has the short ones of the plan (`add`, `is_even`, `count_to_ten`). A body is judged by
running it (experiments/python_subset/sandbox.py) and comparing what it returns and prints with the
definition, so another text that computes the same is right too.

One name in ten is held out by a stable hash, under every argument name; of `words` one header in ten, since
there the arguments are all that varies.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import operator
import random
import string
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from bitnet.data.generated import Example, ExampleTable, Layout, LossOn, TableRows, held_out
from bitnet.data.stream import Batch
from bitnet.errors import ConfigError
from bitnet.evaluate.continuations import continuations
from bitnet.experiments.python_subset.allowed_syntax import well_formed
from bitnet.experiments.python_subset.sandbox import CallResult, Outcome, Program, run_programs
from bitnet.experiments.shapes import ARITHMETIC
from bitnet.nn.config import BitNetConfig
from bitnet.nn.transformer import BitNetTransformer
from bitnet.text.characters import CharacterTokenizer
from bitnet.train.config import RunConfig, TrainConfig
from bitnet.train.data_config import DataConfig
from bitnet.train.experiment import Criterion, Experiment, Shown, Variant

ALPHABET = string.ascii_lowercase + string.digits + "TF_+-*/%=<>(),: \n\f"
END = "\f"  # a form feed between functions, as PEP 8 has it between sections; Python reads it as white space
INDENT = "    "
ARGUMENTS = "xynabckm"
CONSTANTS = range(1, 51)
CASES_PER_KIND = 320
LONGEST_BODY = 110  # characters
PROMPTS = (
    "def add(x, y):\n",
    "def is_even(x):\n",
    "def count_to_ten():\n",
    "def add_7_then_mul_3(x):\n",
    "def sub_4_while_above_20(n):\n",
)

Operation = Callable[[int, int], int]
Meaning = Callable[..., CallResult]
OPERATORS: dict[str, tuple[str, Operation]] = {
    "add": ("+", operator.add),
    "sub": ("-", operator.sub),
    "mul": ("*", operator.mul),
    "div": ("//", operator.floordiv),
    "mod": ("%", operator.mod),
}
COMPARISONS: dict[str, tuple[str, Operation]] = {
    "above": (">", operator.gt),
    "below": ("<", operator.lt),
    "equal": ("==", operator.eq),
}
SIGNS = OPERATORS | COMPARISONS


@dataclass(frozen=True, kw_only=True)
class FunctionData(DataConfig):
    """How many functions there are and how they are laid in rows."""

    dataset: str = "python_subset"
    functions: int = 20_000
    """Training functions drawn at random, every kind as often."""
    layout: Layout = "packed"
    loss_on: LossOn = "answers"

    def __post_init__(self) -> None:
        if not 1 <= self.functions <= 200_000:
            raise ConfigError(f"data.functions is {self.functions}; it must be between 1 and 200000")


class Function(NamedTuple):
    """A specification: how it is written, and what it means. numbers: the constants, where its corners
    are.
    """

    kind: str
    name: str
    arguments: tuple[str, ...]
    body: tuple[str, ...]
    meaning: Meaning
    numbers: tuple[int, ...] = ()

    @property
    def example(self) -> Example:
        """As text: the first line, then the body."""
        body = "".join(f"{INDENT}{line}\n" for line in self.body)
        return Example(f"def {self.name}({', '.join(self.arguments)}):\n", body + END)

    @property
    def kept_back(self) -> bool:
        """Whether it belongs to the evaluation."""
        return held_out(self.name if self.numbers else self.example.prompt)

    @property
    def calls(self) -> list[tuple[int, ...]]:
        """Arguments to try it on: some numbers, and those where its comparisons and divisions turn."""
        if len(self.arguments) != 1:
            return list(itertools.product((-3, 0, 1, 2, 7, 20), repeat=len(self.arguments)))
        tried = {-50, -7, -1, 0, 1, 2, 3, 10, 33, 64, 100}
        if self.numbers:
            a, b = self.numbers
            tried |= {
                corner + by for corner in (a, b, a + b, b - a, b // a, a * b, a * b + a) for by in (-1, 0, 1)
            }
        return [(number,) for number in sorted(tried)]

    def is_right(self, outcome: Outcome) -> bool:
        """Whether a program that was called with `calls` did what this one means, to the type of its
        results.
        """
        if outcome.results is None:
            return False
        return all(
            self.meaning(*call).same_as(result)
            for call, result in zip(self.calls, outcome.results, strict=True)
        )


class Template(NamedTuple):
    """One kind of function: f and g are operations or comparisons, a and b constants, x the argument."""

    name: str
    body: tuple[str, ...]
    choices: Sequence[tuple[str, str]]
    """The pairs (f, g) there are."""
    meaning: Callable[[Operation, Operation, int, int], Meaning]


def gives(value: int) -> CallResult:
    """A call that returns and prints nothing."""
    return CallResult(value, ())


def prints(numbers: Sequence[int]) -> CallResult:
    """A call that prints a number a line and returns nothing."""
    return CallResult(None, tuple(map(str, numbers)))


def repeated(f: Operation, x: int, a: int, still: Callable[[int], int]) -> int:
    """x, replaced by f(x, a) for as long as it satisfies `still`."""
    while still(x):
        x = f(x, a)
    return x


WITH_OPERATOR = tuple(itertools.product(OPERATORS, OPERATORS))
WITH_COMPARISON = tuple(itertools.product(OPERATORS, COMPARISONS))
ALONE = tuple((name, "add") for name in OPERATORS)  # the second is not used
THAT_END = (("sub", "above"), ("add", "below"))
TEMPLATES = {
    "then": Template(
        "{f}_{a}_then_{g}_{b}",
        ("{x} = {x} {F} {a}", "return {x} {G} {b}"),
        WITH_OPERATOR,
        lambda f, g, a, b: lambda x: gives(g(f(x, a), b)),
    ),
    "if": Template(
        "{f}_{a}_if_{g}_{b}",
        ("if {x} {G} {b}:", "    return {x} {F} {a}", "else:", "    return {x}"),
        WITH_COMPARISON,
        lambda f, g, a, b: lambda x: gives(f(x, a) if g(x, b) else x),
    ),
    "is": Template(
        "is_{f}_{a}_{g}_{b}",
        ("if {x} {F} {a} {G} {b}:", "    return True", "else:", "    return False"),
        WITH_COMPARISON,
        lambda f, g, a, b: lambda x: gives(g(f(x, a), b)),
    ),
    "for": Template(
        "{f}_{a}_repeat_{b}",
        ("for i in range({b}):", "    {x} = {x} {F} {a}", "return {x}"),
        ALONE,
        lambda f, _, a, b: lambda x: gives(functools.reduce(lambda now, _: f(now, a), range(b), x)),
    ),
    "while": Template(
        "{f}_{a}_while_{g}_{b}",
        ("while {x} {G} {b}:", "    {x} = {x} {F} {a}", "return {x}"),
        THAT_END,
        lambda f, g, a, b: lambda x: gives(repeated(f, x, a, lambda now: g(now, b))),
    ),
    "sum": Template(
        "sum_{f}_{a}_below_{b}",
        ("total = 0", "for i in range({b}):", "    total = total + i {F} {a}", "return total"),
        ALONE,
        lambda f, _, a, b: lambda: gives(sum(f(i, a) for i in range(b))),
    ),
    "print": Template(
        "print_{f}_{a}_below_{b}",
        ("for i in range({b}):", "    print(i {F} {a})"),
        ALONE,
        lambda f, _, a, b: lambda: prints([f(i, a) for i in range(b)]),
    ),
}
SHORT: dict[
    str, tuple[int, tuple[str, ...], Meaning]
] = {  # number of arguments, body, meaning: the plan's and some like them
    "add": (2, ("return {x} + {y}",), lambda x, y: gives(x + y)),
    "sub": (2, ("return {x} - {y}",), lambda x, y: gives(x - y)),
    "mul": (2, ("return {x} * {y}",), lambda x, y: gives(x * y)),
    "larger": (
        2,
        ("if {x} > {y}:", "    return {x}", "else:", "    return {y}"),
        lambda x, y: gives(max(x, y)),
    ),
    "smaller": (
        2,
        ("if {x} < {y}:", "    return {x}", "else:", "    return {y}"),
        lambda x, y: gives(min(x, y)),
    ),
    "is_even": (
        1,
        ("if {x} % 2 == 0:", "    return True", "else:", "    return False"),
        lambda x: gives(x % 2 == 0),
    ),
    "is_odd": (
        1,
        ("if {x} % 2 == 1:", "    return True", "else:", "    return False"),
        lambda x: gives(x % 2 == 1),
    ),
    "double": (1, ("return {x} * 2",), lambda x: gives(2 * x)),
    "square": (1, ("return {x} * {x}",), lambda x: gives(x**2)),
    "count_down": (
        1,
        ("while {x} > 0:", "    print({x})", "    {x} = {x} - 1"),
        lambda x: prints(range(x, 0, -1)),
    ),
    "count_to_ten": (0, ("for i in range(10):", "    print(i)"), lambda: prints(range(10))),
}


def function_of(kind: str, f: str, g: str, a: int, b: int, x: str) -> Function:
    """A function of one of the templates."""
    template = TEMPLATES[kind]
    (sign_f, operation_f), (sign_g, operation_g) = SIGNS[f], SIGNS[g]
    words = {"f": f, "F": sign_f, "g": g, "G": sign_g, "a": a, "b": b, "x": x}
    body = tuple(line.format(**words) for line in template.body)
    arguments = (x,) if "{x}" in template.body[0] + template.body[-1] else ()
    return Function(
        kind,
        template.name.format(**words),
        arguments,
        body,
        template.meaning(operation_f, operation_g, a, b),
        (a, b),
    )


def short_functions() -> Iterator[Function]:
    """Every function of the kind `words`."""
    for name, (count, lines, meaning) in SHORT.items():
        for arguments in itertools.permutations(ARGUMENTS, count):
            words = dict(zip("xy"[:count], arguments, strict=True))
            yield Function("words", name, arguments, tuple(line.format(**words) for line in lines), meaning)


def random_functions(seed: str, *, kept_back: bool) -> Iterator[Function]:
    """Functions of the seven kinds of templates in turn, without end: of the evaluation, or of the rest."""
    generator = random.Random(f"{seed} {kept_back}")
    for kind in itertools.cycle(TEMPLATES):
        found = None
        while found is None or found.kept_back != kept_back:
            f, g = generator.choice(TEMPLATES[kind].choices)
            found = function_of(
                kind,
                f,
                g,
                generator.choice(CONSTANTS),
                generator.choice(CONSTANTS),
                generator.choice(ARGUMENTS),
            )
        yield found


def training_functions(seed: int) -> Iterator[Function]:
    """Functions that may be trained on, without end: every eighth one of the kind `words`."""
    generator = random.Random(seed)
    short = [function for function in short_functions() if not function.kept_back]
    others = random_functions(f"training {seed}", kept_back=False)
    while True:
        yield generator.choice(short)
        yield from itertools.islice(others, len(TEMPLATES))


def evaluation_functions() -> list[Function]:
    """The evaluation set: equally many distinct names of each kind, and all held-out ones of `words`."""
    found: dict[str, dict[str, Function]] = {kind: {} for kind in TEMPLATES}
    for function in random_functions("evaluation", kept_back=True):
        if len(found[function.kind]) < CASES_PER_KIND:
            found[function.kind].setdefault(function.name, function)
        elif all(len(group) == CASES_PER_KIND for group in found.values()):
            break
    cases = [function for group in found.values() for function in group.values()]
    cases += [function for function in short_functions() if function.kept_back]
    random.Random("evaluation order").shuffle(cases)
    return cases


class PythonTask:
    """The functions of one configuration, split, with their judge."""

    prompts: Sequence[str] = PROMPTS
    end_mark = END

    def __init__(self, config: RunConfig) -> None:
        assert isinstance(config.data, FunctionData)
        self.config, self.data = config, config.data
        self.tokenizer = CharacterTokenizer(ALPHABET, config.model.vocab_size)

    @cached_property
    def held_out_cases(self) -> list[Function]:
        """The evaluation set, in an order that mixes the kinds."""
        return evaluation_functions()

    @cached_property
    def source(self) -> TableRows:
        """Training rows."""
        train, data = self.config.train, self.data
        functions = itertools.islice(training_functions(train.seed), data.functions)
        table = ExampleTable.of((function.example for function in functions), self.tokenizer)
        return TableRows(
            table,
            seed=train.seed,
            seq_len=train.seq_len,
            layout=data.layout,
            loss_on=data.loss_on,
            name=data.dataset,
        )

    def frozen_evaluation(self) -> list[Batch]:
        """Held-out functions, one a row, scored as in training."""
        cases = self.held_out_cases[: self.config.train.eval_cases]
        return [
            ExampleTable.of((function.example for function in cases), self.tokenizer).batch(self.data.loss_on)
        ]

    def judge(self, model: BitNetTransformer, limit: int | None = None) -> dict[str, float]:
        """parses: well-formed, and ended; right, and right_<kind>: computes what the name says."""
        cases = self.held_out_cases[:limit]
        sources = self._written(model, cases)
        shares: dict[str, list[bool]] = defaultdict(list)
        for function, source, is_right in zip(cases, sources, self._are_right(cases, sources), strict=True):
            shares["parses"].append(source.endswith(END) and well_formed(source))
            shares["right"].append(is_right)
            shares[f"right_{function.kind}"].append(is_right)
        metrics: dict[str, float] = {}
        for name, hits in sorted(shares.items()):
            metrics |= {name: sum(hits) / len(hits), f"{name}_cases": float(len(hits))}
        return metrics

    def show(self, model: BitNetTransformer, count: int) -> list[Shown]:
        """A few held-out names with what the model wrote; another text that computes the same is right."""
        cases = self.held_out_cases[:count]
        sources = self._written(model, cases)
        shown = []
        for function, source, is_right in zip(cases, sources, self._are_right(cases, sources), strict=True):
            prompt, expected = function.example
            body = source.removeprefix(prompt).rstrip()
            shown.append(Shown(prompt, body, body if is_right else expected.rstrip()))
        return shown

    def _written(self, model: BitNetTransformer, cases: Sequence[Function]) -> list[str]:
        """The sources that the model makes of the first lines, greedily, each with the end mark where it
        came.
        """
        prompts = [function.example.prompt for function in cases]
        bodies = continuations(model, self.tokenizer, prompts, end_mark=END, max_new_tokens=LONGEST_BODY)
        return [prompt + body for prompt, body in zip(prompts, bodies, strict=True)]

    def _are_right(self, cases: Sequence[Function], sources: Sequence[str]) -> list[bool]:
        """Run what was written. What has no end is not run: it would be judged by half of itself."""
        programs = [
            Program(source if source.endswith(END) else "", function.name, function.calls)
            for function, source in zip(cases, sources, strict=True)
        ]
        return [
            function.is_right(outcome)
            for function, outcome in zip(cases, run_programs(programs), strict=True)
        ]


def training_text(config: RunConfig, count: int) -> Iterator[str]:
    """`count` training functions as Python text, a blank line after each."""
    for function in itertools.islice(training_functions(config.train.seed), count):
        prompt, body = function.example
        yield prompt + body.removesuffix(END) + "\n"


CRITERIA = (Criterion("parses", at_least=0.99), Criterion("right", at_least=0.9))
REFERENCE = RunConfig(
    model=dataclasses.replace(ARITHMETIC, vocab_size=64, max_seq_length=160),
    train=TrainConfig(
        seq_len=160,
        batch_size=32,
        total_steps=6_000,
        warmup_steps=250,
        entropy_floor=None,
        repetition_limit=None,
    ),
    data=FunctionData(functions=50_000, loss_on="all"),
)
QUICK = RunConfig(
    model=BitNetConfig(
        vocab_size=64,
        hidden_size=128,
        num_layers=4,
        num_heads=2,
        num_kv_heads=1,
        ffn_hidden_size=384,
        max_seq_length=160,
    ),
    train=TrainConfig(
        seq_len=160,
        batch_size=40,
        total_steps=600,
        warmup_steps=20,
        optimizer="muon",
        schedule="warm_down",
        peak_lr=0.003,
        final_lr=0.0,
        stage1_wd=0.0,
        muon_lr=0.02,
        log_every=20,
        eval_every=300,
        eval_cases=40,
        sample_every=300,
        probe_every=100,
        checkpoint_every=200,
        entropy_floor=None,
        repetition_limit=None,
    ),
    data=FunctionData(),
)

experiment = Experiment(
    name="python_subset",
    about="functions of integers: does the body compute what the name says?",
    variants={
        "quick": Variant(QUICK, CRITERIA, "minutes on two CPU cores"),
        "reference": Variant(REFERENCE, CRITERIA, "as the plan trains: AdamW, two stages"),
    },
    open=PythonTask,
    training_text=training_text,
)
