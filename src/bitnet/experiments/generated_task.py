"""What tasks share whose data a rule generates: rows, the frozen evaluation set, answers and what is shown.

A task says what may be trained on, what is held out, how a case reads as text, and what is right. An answer
is right if it equals the case's own, unless the task runs or parses it. arithmetic.py is the example to copy.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import ClassVar, Generic, TypeVar

from bitnet.data.generated import Example, ExampleTable, Layout, LossOn, TableRows
from bitnet.data.stream import Batch
from bitnet.evaluate.continuations import Mode, continuations
from bitnet.generate.decoder import Decoder
from bitnet.text.characters import CharacterTokenizer
from bitnet.train.config import RunConfig
from bitnet.train.experiment import Shown

Case = TypeVar("Case")


class GeneratedTask(ABC, Generic[Case]):
    """A task over characters: a table of training examples, and held-out cases with their judge."""

    alphabet: ClassVar[str]
    prompts: Sequence[str] = ()
    end_mark: str = "\n"
    longest_answer: ClassVar[int | None] = None
    """Characters that an answer may have; None: as many as the longest right one of the cases asked."""
    most_cases: ClassVar[int | None] = None
    """Held-out cases that are used at most; None: all."""

    def __init__(self, config: RunConfig, *, layout: Layout, loss_on: LossOn) -> None:
        self.config, self.layout, self.loss_on = config, layout, loss_on
        self.tokenizer = CharacterTokenizer(self.alphabet, config.model.vocab_size)

    @abstractmethod
    def training_examples(self) -> Iterable[Example]:
        """Everything that may be trained on."""

    @abstractmethod
    def evaluation_cases(self) -> Iterable[Case]:
        """Everything that is held out, in a fixed order."""

    @abstractmethod
    def example_of(self, case: Case) -> Example:
        """A case as a prompt and its own right answer."""

    @abstractmethod
    def judge(self, model: Decoder, limit: int | None = None) -> dict[str, float]:
        """Success metrics on held-out cases, with `..._cases` beside each; at most `limit` cases."""

    @cached_property
    def training(self) -> list[Example]:
        """The training examples."""
        return list(self.training_examples())

    @cached_property
    def held_out_cases(self) -> list[Case]:
        """The evaluation set, shuffled once and for all, so that its beginning has cases of every kind."""
        cases = list(self.evaluation_cases())
        random.Random("evaluation order").shuffle(cases)
        return cases[: self.most_cases]

    @cached_property
    def source(self) -> TableRows:
        """Training rows."""
        train = self.config.train
        return TableRows(
            self.table(),
            seed=train.seed,
            seq_len=train.seq_len,
            layout=self.layout,
            loss_on=self.loss_on,
            name=self.config.data.dataset,
        )

    def table(self) -> ExampleTable:
        """What training rows are drawn from."""
        return ExampleTable.of(self.training, self.tokenizer)

    def frozen_evaluation(self) -> list[Batch]:
        """Held-out cases, one a row, scored as in training."""
        cases = self.held_out_cases[: self.config.train.eval_cases]
        return [ExampleTable.of(map(self.example_of, cases), self.tokenizer).batch(self.loss_on)]

    def answers(self, model: Decoder, cases: Sequence[Case], mode: Mode = "greedy") -> list[str]:
        """What the model writes after each prompt, with the end mark where it came."""
        asked = [self.example_of(case) for case in cases]
        longest = self.longest_answer or max(len(example.answer) for example in asked)
        return continuations(
            model,
            self.tokenizer,
            [example.prompt for example in asked],
            end_mark=self.end_mark,
            mode=mode,
            max_new_tokens=longest,
        )

    def are_right(self, cases: Sequence[Case], answers: Sequence[str]) -> list[bool]:
        """Whether each answer is right."""
        return [self.example_of(case).answer == answer for case, answer in zip(cases, answers, strict=True)]

    def show(self, model: Decoder, count: int) -> list[Shown]:
        """A few held-out cases with the model's answers. One that is right, though not the case's own, is
        what is expected.
        """
        cases = self.held_out_cases[:count]
        answers = self.answers(model, cases)
        shown = []
        for case, answer, right in zip(cases, answers, self.are_right(cases, answers), strict=True):
            prompt, expected = self.example_of(case)
            shown.append(Shown(prompt, answer.rstrip(), (answer if right else expected).rstrip()))
        return shown
