"""Python subset: does a ternary model write functions that compute what their names say?

Functions of integers over characters: arguments, if/else, for, while, return, print, arithmetic and
comparison. The name is the specification (functions.py) and the body, indented by four, is the only thing to
write. A body is judged by running it (sandbox.py) and comparing what it returns and prints with the
definition, so another text that computes the same is right too.

One name in ten is held out by a stable hash, under every argument name. Of the kind `words` it is one header
in ten, since there the arguments are all that varies.
"""

from __future__ import annotations

import dataclasses
import itertools
import string
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bitnet.data.generated import Example, Layout, LossOn
from bitnet.errors import ConfigError
from bitnet.evaluate.answers import shares
from bitnet.experiments.generated_task import GeneratedTask
from bitnet.experiments.python_subset.allowed_syntax import well_formed
from bitnet.experiments.python_subset.functions import END, Function, evaluation_functions, training_functions
from bitnet.experiments.python_subset.sandbox import Program, run_programs
from bitnet.experiments.recipes import PLAN, QUICK_CHARACTERS
from bitnet.experiments.shapes import ARITHMETIC, SMALL
from bitnet.generate.decoder import Decoder
from bitnet.train.config import RunConfig
from bitnet.train.data_config import DataConfig
from bitnet.train.experiment import Criterion, Experiment, Variant

ALPHABET = string.ascii_lowercase + string.digits + "TF_+-*/%=<>(),: \n\f"
LONGEST_BODY = 110  # characters
PROMPTS = (
    "def add(x, y):\n",
    "def is_even(x):\n",
    "def count_to_ten():\n",
    "def add_7_then_mul_3(x):\n",
    "def sub_4_while_above_20(n):\n",
)


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


class PythonTask(GeneratedTask[Function]):
    """The functions of one configuration, split, with their judge."""

    alphabet = ALPHABET
    prompts = PROMPTS
    end_mark = END
    longest_answer = LONGEST_BODY

    def __init__(self, config: RunConfig) -> None:
        assert isinstance(config.data, FunctionData)
        super().__init__(config, layout=config.data.layout, loss_on=config.data.loss_on)
        self.data = config.data

    def training_examples(self) -> Iterator[Example]:
        """So many random functions."""
        functions = training_functions(self.config.train.seed)
        return (function.example for function in itertools.islice(functions, self.data.functions))

    def evaluation_cases(self) -> list[Function]:
        """Equally many held-out functions of each kind."""
        return evaluation_functions()

    def example_of(self, case: Function) -> Example:
        """A function as text."""
        return case.example

    def judge(self, model: Decoder, limit: int | None = None) -> dict[str, float]:
        """parses: well-formed, and ended; right, and right_<kind>: computes what the name says."""
        cases = self.held_out_cases[:limit]
        bodies = self.answers(model, cases)

        hits: dict[str, list[bool]] = defaultdict(list)
        for function, body, is_right in zip(cases, bodies, self.are_right(cases, bodies), strict=True):
            hits["parses"].append(body.endswith(END) and well_formed(function.example.prompt + body))
            hits["right"].append(is_right)
            hits[f"right_{function.kind}"].append(is_right)
        return shares(dict(sorted(hits.items())))

    def are_right(self, cases: Sequence[Function], answers: Sequence[str]) -> list[bool]:
        """Run what was written. A body without an end is not run: it would be judged by half of itself."""
        programs = [
            Program(
                function.example.prompt + body if body.endswith(END) else "", function.name, function.calls
            )
            for function, body in zip(cases, answers, strict=True)
        ]
        outcomes = run_programs(programs)
        return [function.is_right(outcome) for function, outcome in zip(cases, outcomes, strict=True)]


def training_text(config: RunConfig, count: int) -> Iterator[str]:
    """`count` training functions as Python text, a blank line after each."""
    for function in itertools.islice(training_functions(config.train.seed), count):
        prompt, body = function.example
        yield prompt + body.removesuffix(END) + "\n"


CRITERIA = (Criterion("parses", at_least=0.99), Criterion("right", at_least=0.9))
REFERENCE = RunConfig(
    model=dataclasses.replace(ARITHMETIC, vocab_size=64, max_seq_length=160),
    train=dataclasses.replace(PLAN, seq_len=160),
    data=FunctionData(functions=50_000, loss_on="all"),
)
QUICK = RunConfig(
    model=dataclasses.replace(SMALL, vocab_size=64, max_seq_length=160),
    train=dataclasses.replace(
        QUICK_CHARACTERS, seq_len=160, batch_size=40, eval_every=300, eval_cases=40, checkpoint_every=200
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
