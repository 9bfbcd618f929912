"""Every number that can be set has two ends, and the message names value, rule and fix."""

from __future__ import annotations

import dataclasses
import math

import pytest

from bitnet.bounds import within
from bitnet.errors import ConfigError
from bitnet.nn import config as model_config
from bitnet.nn.config import BitNetConfig
from bitnet.train import config as train_config
from bitnet.train.config import TrainConfig

MODEL = BitNetConfig(
    vocab_size=32,
    hidden_size=32,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    ffn_hidden_size=64,
    max_seq_length=64,
)
TRAIN = TrainConfig(seq_len=32, batch_size=4, total_steps=10)
NONSENSE = (-1, -(2**63), 2**63 - 1, 10**400, math.nan, math.inf, -math.inf, 3.5e38)
NUMBERS = [
    (base, field.name)
    for base in (MODEL, TRAIN)
    for field in dataclasses.fields(base)
    if field.type in ("int", "float", "int | None", "float | None")
]


@pytest.mark.parametrize(
    ("base", "name"), NUMBERS, ids=lambda value: value if isinstance(value, str) else type(value).__name__
)
def test_no_number_of_a_configuration_takes_nonsense(base: BitNetConfig | TrainConfig, name: str) -> None:
    """9223372036854775807 as a size overflowed in torch; 3.5e38 as a rate is more than float32 holds."""
    for value in NONSENSE:
        if name == "seed" and value == 2**63 - 1:
            continue  # the largest seed there is
        with pytest.raises(ConfigError, match=f"{name} is .*it must be "):
            dataclasses.replace(base, **{name: value})


def test_every_bounded_field_exists() -> None:
    for bounds, base in ((model_config.BOUNDS, MODEL), (train_config.BOUNDS, TRAIN)):
        assert bounds.keys() <= {field.name for field in dataclasses.fields(base)}


def test_the_message_names_value_rule_and_fix() -> None:
    within("--show", 0, 0, 10)
    within("--top-k", None, 1, 10)
    for value, message in (
        (-1, "--show is -1; it must be at least 0"),
        (11, "--show is 11; it must be at most 10"),
        (math.nan, "--show is nan; it must be at least 0"),
        (10**400, "--show is a number of 401 digits; it must be at most 10"),
    ):
        with pytest.raises(ConfigError) as error:
            within("--show", value, 0, 10)
        assert str(error.value) == message
