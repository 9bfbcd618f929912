"""What a new run is called: its size is that of what is trained."""

from __future__ import annotations

import dataclasses

import pytest

from bitnet.cli.registry import find_experiment


@pytest.mark.parametrize(
    ("experiment", "variant", "prefix"),
    [
        ("arithmetic", "reference", "bitnet_5M_arithmetic"),
        ("arithmetic", "best", "bitnet_5M_arithmetic"),
        ("arithmetic", "quick", "bitnet_0.8M_arithmetic"),
        ("tictactoe", "best", "bitnet_12M_tictactoe"),
        ("tictactoe", "quick", "bitnet_0.2M_tictactoe"),
        ("tinystories", "reference", "bitnet_12M_tinystories"),
        ("tinystories", "best", "bitnet_12M_tinystories"),
        ("tinystories", "quick", "bitnet_3.7M_tinystories"),
        ("json_records", "reference", "bitnet_3.2M_json_records"),
        ("baseline", "reference", "bitnet_95M_fineweb_T1.97B"),
        ("baseline", "smoke", "bitnet_95M_fineweb_T819K"),
        ("bitnut", "two_part", "bitnet_133M_bitnut"),
        ("bitnut", "quick", "bitnet_5.2M_bitnut"),
        ("bitnut_sft", "quick", "bitnet_5.2M_bitnut_sft"),
    ],
)
def test_the_label_is_the_size_of_what_is_trained(experiment: str, variant: str, prefix: str) -> None:
    """The plan's own labels for the plan's shapes. `quick` runs were once called 5M and 12M with 0.8M and
    0.2M parameters.
    """
    found = find_experiment(experiment)
    assert found.run_prefix(found.variants[variant].config) == prefix


def test_another_shape_by_flags_is_called_by_its_own_size() -> None:
    found = find_experiment("arithmetic")
    config = found.variants["reference"].config
    narrow = dataclasses.replace(config, model=dataclasses.replace(config.model, hidden_size=128))
    assert found.run_prefix(narrow) == "bitnet_1.4M_arithmetic"
