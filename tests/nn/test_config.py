"""Shapes that cannot be built are refused with the rule, and a config survives its JSON."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from bitnet.errors import ConfigError
from bitnet.nn.config import BitNetConfig, config_from_dict


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 5}, "model.hidden_size 32 is not divisible by model.num_heads 5"),
        ({"num_kv_heads": 3}, "model.num_heads 4 is not divisible by model.num_kv_heads 3"),
        ({"hidden_size": 36}, "head width 36 / 4 = 9 is odd"),
        ({"num_layers": 0}, "model.num_layers is 0; it must be at least 1"),
        ({"vocab_size": -1}, "model.vocab_size is -1"),
        ({"norm_eps": 0.0}, "model.norm_eps is 0.0; it must be at least 1e-12"),
        ({"rope_theta": math.inf}, "model.rope_theta is inf"),
    ],
)
def test_impossible_shapes_are_refused_with_the_rule(
    tiny_config: BitNetConfig, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(tiny_config, **changes)


def test_a_config_survives_its_json(tiny_config: BitNetConfig) -> None:
    """Derived figures stand beside the fields in config.json and are ignored on the way back."""
    assert (
        config_from_dict({**dataclasses.asdict(tiny_config), "head_dim": 8, "total_params": 1}) == tiny_config
    )
