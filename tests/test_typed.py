"""JSON is held against types: what fits comes back as the type asks for it, all else is one line with name,
value and type.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import pytest

from bitnet.errors import ConfigError, DataError
from bitnet.typed import check_types, fits, from_json


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    count: int
    rate: float = 0.5
    kind: Literal["a", "b"] = "a"
    names: tuple[str, ...] = ()
    limit: int | None = None
    on: bool = False

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ConfigError(f"count is {self.count}; it must be at least 1")


def test_what_fits_comes_back() -> None:
    values = {
        "count": 3,
        "rate": 1,
        "kind": "b",
        "names": ["x", "y"],
        "limit": None,
        "on": True,
        "derived": 7,
    }
    assert from_json(Settings, values, "s", others={"derived"}) == Settings(
        count=3, rate=1, kind="b", names=("x", "y"), on=True
    )
    assert from_json(Settings, {"count": 1, "what": "ever"}, "s") == Settings(count=1)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("count", "3", "a whole number"),
        ("count", True, "a whole number"),
        ("count", 3.0, "a whole number"),
        ("count", 2**63, "a whole number"),
        ("count", None, "a whole number"),
        ("count", 0, "at least 1"),
        ("rate", float("nan"), "a finite number"),
        ("rate", 10**310, "a finite number"),
        ("kind", "uernary", "one of a, b"),
        ("kind", ["a"], "one of a, b"),
        ("names", "xy", "a list of a text"),
        ("names", [1], "a list of a text"),
        ("limit", "none", "a whole number or null"),
        ("on", 1, "true or false"),
    ],
)
def test_what_does_not_fit_is_one_line(name: str, value: Any, expected: str) -> None:
    with pytest.raises(DataError, match=expected) as caught:
        from_json(Settings, {"count": 1, name: value}, "meta/config.json, section model")
    assert "meta/config.json, section model" in str(caught.value)
    assert name in str(caught.value)
    assert len(str(caught.value)) < 250


def test_a_name_that_is_unknown_or_missing_is_said() -> None:
    with pytest.raises(DataError, match='Did you mean "count"'):
        from_json(Settings, {"coumt": 1}, "s", others=())
    with pytest.raises(DataError, match="count"):
        from_json(Settings, {}, "s")
    with pytest.raises(DataError, match="not an object"):
        from_json(Settings, [1], "s")
    with pytest.raises(DataError, match="lacks b"):
        check_types({"a": 1}, {"a": int, "b": int}, "s", required=("a", "b"))
    assert fits([1, 2], tuple[int, ...])
    assert not fits([1, "2"], tuple[int, ...])
