"""JSON records: does a ternary model keep a format, and what it was given in it, to the last bracket?

Lines like `{"name": "Alice", "age": 25, "city": "Boston"}`, one record each, over characters: fifty names,
fifty cities, ages 18 to 99, the keys in any order, and two more keys, "job" and "member", that a record may
have or not. A line has many right continuations, so no answer is compared letter by letter. What counts is
what a program that reads the line would count: it parses, it meets the schema, and every field that the
prompt gave is still there, once.

One pair in thirty of (name, age), (name, city) and (age, city) is held out by a stable hash: no training
record, in whatever order, has both values of such a pair, and every evaluation prompt gives both.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import random
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from bitnet.data.generated import Example, ExampleTable, Layout, TableRows, held_out
from bitnet.data.stream import Batch
from bitnet.errors import ConfigError
from bitnet.evaluate.continuations import Mode, continuations
from bitnet.experiments.shapes import ARITHMETIC
from bitnet.nn.config import BitNetConfig
from bitnet.nn.transformer import BitNetTransformer
from bitnet.text.characters import CharacterTokenizer
from bitnet.train.config import RunConfig, TrainConfig
from bitnet.train.data_config import DataConfig
from bitnet.train.experiment import Criterion, Experiment, Shown, Variant

NAMES = """
    Adam Alice Amy Anna Ben Bob Carl Carol Chris Clara Dan David Diana Ella Emma Eric Eva Frank Fred Grace
    Hannah Harry Helen Henry Ian Ivan Jack James Jane Julia Karen Kate Laura Leo Lily Lucas Maria Mark Mia
    Nina Noah Oliver Olivia Paul Peter Rose Sam Sara Tom Zoe
""".split()
CITIES = """
    Athens Atlanta Austin Berlin Boston Cairo Chicago Dallas Delhi Denver Detroit Dublin Geneva Hanoi
    Helsinki Houston Istanbul Kyoto Lagos Lima Lisbon London Lyon Madrid Manila Memphis Miami Milan Montreal
    Moscow Munich Nairobi Naples Orlando Osaka Oslo Paris Phoenix Porto Prague Quito Rome Seattle Seoul
    Sydney Tokyo Toronto Vienna Warsaw Zurich
""".split()
AGES = range(18, 100)
JOBS = ["actor", "baker", "clerk", "cook", "doctor", "driver", "lawyer", "nurse", "pilot", "teacher"]
REQUIRED = {"name", "age", "city"}
ALPHABET = string.ascii_letters + string.digits + '{}":, \n'
END = "\n"
CUTS = (
    32,
    40,
    48,
    56,
    64,
    72,
)  # characters given to continue; few lengths, because prompts of one length are decoded together
CASES_PER_CUT = 400
LONGEST_REST = 64  # characters; no record is longer than the shortest cut and this
MODES: tuple[Mode, ...] = ("greedy", "typical")
PROMPTS = (
    '{"name": "Alice", "age": 25, "city": "',
    '{"city": "Boston", "name": "',
    '{"age": 30, ',
    '{"member": true, "name": "Carol", ',
    "{",
)

Record = dict[str, str | int | bool]


@dataclass(frozen=True, kw_only=True)
class RecordData(DataConfig):
    """How many records there are and how they are laid in rows."""

    dataset: str = "json_records"
    records: int = 20_000
    """Training records drawn at random."""
    layout: Layout = "packed"

    def __post_init__(self) -> None:
        if not 1 <= self.records <= 200_000:
            raise ConfigError(f"data.records is {self.records}; it must be between 1 and 200000")


class Beginning(NamedTuple):
    """A held-out record, cut: what is given, the rest of its line, and the fields that are given whole."""

    prompt: str
    rest: str
    given: Record


@functools.cache
def pair_is_held_out(first: object, second: object) -> bool:
    """Whether these two values may never stand in one training record."""
    return held_out(f"{first} {second}", one_in=30)


def held_back(record: Record) -> bool:
    """Whether a record has a held-out pair of values and so belongs to the evaluation."""
    values = [record[key] for key in ("name", "age", "city") if key in record]
    return any(pair_is_held_out(first, second) for first, second in itertools.combinations(values, 2))


def random_records(seed: str) -> Iterator[Record]:
    """Records without end, held-out ones among them. A record's order of keys is that of its line."""
    generator = random.Random(seed)
    while True:
        record: Record = {
            "name": generator.choice(NAMES),
            "age": generator.choice(AGES),
            "city": generator.choice(CITIES),
        }
        if generator.random() < 0.5:
            record["job"] = generator.choice(JOBS)
        if generator.random() < 0.5:
            record["member"] = generator.random() < 0.5
        keys = list(record)
        generator.shuffle(keys)
        yield {key: record[key] for key in keys}


def training_records(seed: int) -> Iterator[Record]:
    """Records that may be trained on, without end."""
    return (record for record in random_records(f"training {seed}") if not held_back(record))


def given_fields(line: str, cut: int) -> Record:
    """Fields of a line that its first `cut` characters give whole: up to the last separator among them."""
    text = line[:cut].rpartition(", ")[0] if "}" not in line[:cut] else line[: cut - 1]
    given: Record = json.loads(f"{text}}}") if text else {}
    return given


def beginnings() -> list[Beginning]:
    """The evaluation set: distinct prompts, equally many of each length, each with a held-out pair of values
    in it.
    """
    found: dict[int, dict[str, Beginning]] = {cut: {} for cut in CUTS}
    for record in filter(held_back, random_records("evaluation")):
        line = json.dumps(record) + END
        for cut in CUTS:
            if (
                len(line) > cut + 1
                and len(found[cut]) < CASES_PER_CUT
                and held_back(given := given_fields(line, cut))
            ):
                found[cut].setdefault(line[:cut], Beginning(line[:cut], line[cut:], given))
        if all(len(group) == CASES_PER_CUT for group in found.values()):
            break
    cases = [case for group in found.values() for case in group.values()]
    random.Random("evaluation order").shuffle(cases)
    return cases


def parse(line: str) -> Record | None:
    """The record of a whole line; None where it is cut short, not JSON, not an object, or has a key twice."""

    def unique(pairs: list[tuple[str, Any]]) -> Record:
        if len(dict(pairs)) < len(pairs):
            raise ValueError("a key twice")
        return dict(pairs)

    if not line.endswith(END):
        return None
    try:
        record = json.loads(line, object_pairs_hook=unique)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def meets_schema(record: Record) -> bool:
    """Whether all required keys are there, no unknown one is, and each value is one of its field's."""
    legal = {
        "name": record.get("name") in NAMES,
        "age": type(record.get("age")) is int and record["age"] in AGES,
        "city": record.get("city") in CITIES,
        "job": record.get("job") in JOBS,
        "member": isinstance(record.get("member"), bool),
    }
    return REQUIRED <= record.keys() <= legal.keys() and all(legal[key] for key in record)


def keeps(record: Record, given: Record) -> bool:
    """Whether every given field is in the record with its value."""
    return all(record.get(key) == value for key, value in given.items())


class JsonTask:
    """The records of one configuration, split, with their judge."""

    prompts: Sequence[str] = PROMPTS
    end_mark = END

    def __init__(self, config: RunConfig) -> None:
        assert isinstance(config.data, RecordData)
        self.config, self.data = config, config.data
        self.tokenizer = CharacterTokenizer(ALPHABET, config.model.vocab_size)

    @cached_property
    def held_out_cases(self) -> list[Beginning]:
        """The evaluation set, in an order that mixes the lengths."""
        return beginnings()

    @cached_property
    def source(self) -> TableRows:
        """Training rows. Every character is scored: which key comes next is as much the task as how it
        ends.
        """
        train, data = self.config.train, self.data
        lines = itertools.islice(training_records(train.seed), data.records)
        table = ExampleTable.of((Example("", json.dumps(record) + END) for record in lines), self.tokenizer)
        return TableRows(
            table,
            seed=train.seed,
            seq_len=train.seq_len,
            layout=data.layout,
            loss_on="all",
            name=data.dataset,
        )

    def frozen_evaluation(self) -> list[Batch]:
        """Whole held-out lines, one a row, scored as in training."""
        cases = self.held_out_cases[: self.config.train.eval_cases]
        return [
            ExampleTable.of((Example(case.prompt, case.rest) for case in cases), self.tokenizer).batch("all")
        ]

    def judge(self, model: BitNetTransformer, limit: int | None = None) -> dict[str, float]:
        """The shares that are valid, greedy and sampled, and the share that keeps what was given both
        ways.
        """
        cases = self.held_out_cases[:limit]
        kept = [True] * len(cases)
        shares: dict[str, list[bool]] = {}
        for mode in MODES:
            records = [parse(line) for line in self._continued(model, cases, mode)]
            shares[f"{mode}_valid"] = [record is not None and meets_schema(record) for record in records]
            kept = [
                before and record is not None and keeps(record, case.given)
                for before, record, case in zip(kept, records, cases, strict=True)
            ]
        metrics: dict[str, float] = {}
        for name, hits in {**shares, "fields_kept": kept}.items():
            metrics |= {name: sum(hits) / len(hits), f"{name}_cases": float(len(hits))}
        return metrics

    def show(self, model: BitNetTransformer, count: int) -> list[Shown]:
        """A few held-out beginnings with the model's greedy continuation; any valid one that keeps the fields
        is right.
        """
        cases = self.held_out_cases[:count]
        shown = []
        for case, line in zip(cases, self._continued(model, cases, "greedy"), strict=True):
            record = parse(line)
            right = record is not None and meets_schema(record) and keeps(record, case.given)
            answer = line[len(case.prompt) :].strip()
            shown.append(Shown(case.prompt, answer, answer if right else case.rest.strip()))
        return shown

    def _continued(self, model: BitNetTransformer, cases: Sequence[Beginning], mode: Mode) -> list[str]:
        """Prompts with their continuations, end mark included where it came."""
        prompts = [case.prompt for case in cases]
        rests = continuations(
            model, self.tokenizer, prompts, end_mark=END, mode=mode, max_new_tokens=LONGEST_REST
        )
        return [prompt + rest for prompt, rest in zip(prompts, rests, strict=True)]


def training_lines(config: RunConfig, count: int) -> Iterator[str]:
    """`count` training records as text, one a line."""
    return (
        json.dumps(record) + END for record in itertools.islice(training_records(config.train.seed), count)
    )


CRITERIA = (
    Criterion("greedy_valid", at_least=0.999),
    Criterion("typical_valid", at_least=0.99),
    Criterion("fields_kept", at_least=0.99),
)
REFERENCE = RunConfig(
    model=dataclasses.replace(ARITHMETIC, vocab_size=80, max_seq_length=128),
    train=TrainConfig(
        seq_len=128,
        batch_size=32,
        total_steps=6_000,
        warmup_steps=250,
        entropy_floor=None,
        repetition_limit=None,
    ),
    data=RecordData(records=50_000),
)
QUICK = RunConfig(
    model=BitNetConfig(
        vocab_size=80,
        hidden_size=128,
        num_layers=4,
        num_heads=2,
        num_kv_heads=1,
        ffn_hidden_size=384,
        max_seq_length=128,
    ),
    train=TrainConfig(
        seq_len=128,
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
        eval_every=200,
        eval_cases=60,
        sample_every=200,
        probe_every=100,
        checkpoint_every=100,
        entropy_floor=None,
        repetition_limit=None,
    ),
    data=RecordData(),
)

experiment = Experiment(
    name="json_records",
    about="records as JSON: does it keep a format and the fields it was given?",
    variants={
        "quick": Variant(QUICK, CRITERIA, "minutes on two CPU cores"),
        "reference": Variant(REFERENCE, CRITERIA, "as the plan trains: AdamW, two stages"),
    },
    open=JsonTask,
    training_text=training_lines,
)
