"""Arithmetic: the sanity check. A ternary model that cannot learn to add has a broken trainer.

The data are lines `a op b = c` over a vocabulary of 32 characters. Operands are 0 to 100 in every variant, or
1 to 100 on the right where there is division. Expressions with parentheses, `(3 + 5) * 2 = 16`, can be added.
The loss alone says little: the operands are random, and predicting them costs about the same however well the
model adds. Success is the exact match of answers on held-out problems.

One tenth of the problems is held out by a stable hash. A problem's commuted twin is held out with it, and so
is every expression that contains one, as its inner problem or as its outer one once the inner is computed.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from bitnet.data.generated import Example, Layout, LossOn, held_out
from bitnet.errors import ConfigError
from bitnet.evaluate.answers import Case, exact_match
from bitnet.experiments.generated_task import GeneratedTask
from bitnet.experiments.recipes import PLAN, QUICK_CHARACTERS
from bitnet.experiments.shapes import ARITHMETIC, SMALL
from bitnet.generate.decoder import Decoder
from bitnet.train.config import RunConfig
from bitnet.train.data_config import DataConfig
from bitnet.train.experiment import Criterion, Experiment, Variant

ALPHABET = "0123456789+-*/()= \n"
END = "\n"
Operator = Literal["+", "-", "*", "//"]
KINDS = {"+": "add", "-": "sub", "*": "mul", "//": "div"}
TRIES_PER_EXPRESSION = 40  # draws per expression asked for; about one in four is held out
PROMPTS = ("25 + 17 = ", "100 - 35 = ", "7 * 8 = ", "20 // 4 = ", "2 + 3 = ")


@dataclass(frozen=True, kw_only=True)
class ArithmeticData(DataConfig):
    """Which problems there are and how they are laid in rows."""

    dataset: str = "arithmetic"
    operators: tuple[Operator, ...] = ("+", "-", "*", "//")
    max_operand: int = 100
    """Operands are 0..max on the left and min_right..max on the right."""
    min_right: int = 1
    expressions: int = 0
    """Distinct expressions with parentheses that join the plain problems; 0 for none."""
    layout: Layout = "packed"
    loss_on: LossOn = "all"

    def __post_init__(self) -> None:
        if not self.operators or len(set(self.operators)) != len(self.operators):
            raise ConfigError(
                f"data.operators is {self.operators}; name at least one of + - * // and none twice"
            )
        if not 2 <= self.max_operand <= 999:
            raise ConfigError(f"data.max_operand is {self.max_operand}; it must be between 2 and 999")
        if not 0 <= self.min_right <= self.max_operand:
            raise ConfigError(
                f"data.min_right is {self.min_right}; it must be between 0 and data.max_operand "
                f"{self.max_operand}"
            )
        if "//" in self.operators and self.min_right == 0:
            raise ConfigError(
                "data.min_right is 0 and data.operators has //; set data.min_right to 1 or drop //"
            )
        if not 0 <= self.expressions <= 1_000_000:
            raise ConfigError(f"data.expressions is {self.expressions}; it must be between 0 and 1000000")


class Problem(NamedTuple):
    """left op right, plain."""

    left: int
    op: str
    right: int

    @property
    def value(self) -> int:
        """The answer."""
        return apply(self.left, self.op, self.right)

    @property
    def key(self) -> str:
        """What the hold-out hashes: equal for a sum or product and its commuted twin."""
        first, second = sorted((self.left, self.right)) if self.op in "+*" else (self.left, self.right)
        return f"{first} {self.op} {second}"

    @property
    def kept_back(self) -> bool:
        """Whether this problem belongs to the evaluation set."""
        return held_out(self.key)

    @property
    def example(self) -> Example:
        """As text."""
        return Example(f"{self.left} {self.op} {self.right} = ", f"{self.value}{END}")


class Expression(NamedTuple):
    """(a op b) op c, or a op (b op c) when the inner problem stands on the right."""

    inner: Problem
    op: str
    other: int
    inner_first: bool

    @property
    def outer(self) -> Problem:
        """The problem that is left once the inner one is computed."""
        value = self.inner.value
        return (
            Problem(value, self.op, self.other) if self.inner_first else Problem(self.other, self.op, value)
        )

    @property
    def kept_back(self) -> bool:
        """Whether it contains a held-out problem."""
        return self.inner.kept_back or self.outer.kept_back

    @property
    def example(self) -> Example:
        """As text."""
        inner = f"({self.inner.left} {self.inner.op} {self.inner.right})"
        text = f"{inner} {self.op} {self.other}" if self.inner_first else f"{self.other} {self.op} {inner}"
        return Example(f"{text} = ", f"{self.outer.value}{END}")


def apply(left: int, op: str, right: int) -> int:
    """left op right for + - * //."""
    if op == "+":
        return left + right
    if op == "-":
        return left - right
    return left * right if op == "*" else left // right


def all_problems(data: ArithmeticData) -> Iterator[Problem]:
    """Every plain problem of these settings, in a fixed order."""
    for op in data.operators:
        for left in range(data.max_operand + 1):
            for right in range(data.min_right, data.max_operand + 1):
                yield Problem(left, op, right)


def random_expressions(data: ArithmeticData, seed: int, *, kept_back: bool, count: int) -> list[Expression]:
    """Up to `count` distinct expressions that are, or are not, in the evaluation set; fewer where there are
    fewer.
    """
    generator = random.Random(f"expressions {seed} {kept_back}")
    operand = range(data.min_right, data.max_operand + 1)
    found: dict[Expression, None] = {}
    for _ in range(TRIES_PER_EXPRESSION * count + 10_000):
        if len(found) == count:
            break
        inner = Problem(
            generator.randint(0, data.max_operand),
            generator.choice(data.operators),
            generator.choice(operand),
        )
        expression = Expression(
            inner, generator.choice(data.operators), generator.choice(operand), generator.random() < 0.5
        )
        divides_by_zero = expression.op == "//" and not expression.inner_first and inner.value == 0
        if not divides_by_zero and expression.kept_back == kept_back:
            found[expression] = None
    return list(found)


class ArithmeticTask(GeneratedTask[Case]):
    """The problems of one configuration, split, with their judge."""

    alphabet = ALPHABET

    def __init__(self, config: RunConfig) -> None:
        assert isinstance(config.data, ArithmeticData)
        self.data = config.data
        super().__init__(config, layout=self.data.layout, loss_on=self.data.loss_on)
        self.prompts = [prompt for prompt in PROMPTS if prompt.split()[1] in self.data.operators]

    def training_examples(self) -> Iterator[Example]:
        """Everything that may be trained on. Raises ConfigError where there are too few expressions."""
        yield from (problem.example for problem in all_problems(self.data) if not problem.kept_back)

        wanted = self.data.expressions
        found = random_expressions(self.data, self.config.train.seed, kept_back=False, count=wanted)
        if len(found) < wanted:
            raise ConfigError(
                f"data.expressions is {wanted}, but only {len(found)} distinct ones were found with these "
                "operands and operators; lower it or raise data.max_operand"
            )
        yield from (expression.example for expression in found)

    def evaluation_cases(self) -> Iterator[Case]:
        """Every held-out problem, and up to a thousand expressions that hold one."""
        yield from (Case(KINDS[p.op], *p.example) for p in all_problems(self.data) if p.kept_back)
        if self.data.expressions:
            some = random_expressions(self.data, 0, kept_back=True, count=1000)
            yield from (Case("expression", *expression.example) for expression in some)

    def example_of(self, case: Case) -> Example:
        """A case as text."""
        return Example(case.prompt, case.answer)

    def judge(self, model: Decoder, limit: int | None = None) -> dict[str, float]:
        """Exact match over held-out problems, in all and per operator."""
        return exact_match(model, self.tokenizer, self.held_out_cases[:limit])


def training_lines(config: RunConfig, count: int) -> Iterator[str]:
    """`count` random training problems as text, one a line, as the plan's generator writes them."""
    task = ArithmeticTask(config)
    generator = random.Random(config.train.seed)
    for _ in range(count):
        example = generator.choice(task.training)
        yield example.prompt + example.answer


REFERENCE = RunConfig(
    model=ARITHMETIC, train=dataclasses.replace(PLAN, total_steps=24_414), data=ArithmeticData()
)
BEST = RunConfig(
    model=ARITHMETIC,
    train=dataclasses.replace(
        REFERENCE.train,
        batch_size=64,
        total_steps=12_207,  # as many tokens as the reference, in larger updates
        optimizer="muon",
        schedule="warm_down",
        peak_lr=0.003,
        final_lr=0.0,
        stage1_wd=0.0,
    ),
    data=ArithmeticData(loss_on="answers"),
)
QUICK = RunConfig(
    model=SMALL,
    train=dataclasses.replace(QUICK_CHARACTERS, seq_len=14, batch_size=256, total_steps=800, muon_lr=0.014),
    data=ArithmeticData(operators=("+", "-"), min_right=0, layout="single", loss_on="answers"),
)

experiment = Experiment(
    name="arithmetic",
    label="5M",
    about="a op b = c: does ternary training work at all?",
    variants={
        "quick": Variant(
            QUICK,
            (Criterion("exact_match", at_least=0.995),),
            "minutes on two CPU cores: + and -, operands 0-100",
        ),
        "reference": Variant(
            REFERENCE,
            (Criterion("exact_match", at_least=0.9),),
            "the plan's: AdamW, two stages, four operators",
        ),
        "best": Variant(
            BEST,
            (Criterion("exact_match", at_least=0.95),),
            "same model and tokens; Muon, loss on answers only",
        ),
    },
    open=ArithmeticTask,
    training_text=training_lines,
)
