"""Values from JSON, checked against the types that they should have, as strictly as flags are.

A number must be finite and an integer below 2**63, a bool is not a number, a list becomes the tuple that a
field asks for. Not here: reading and bounding the file (files.py); ranges, which a dataclass checks itself
when it is made.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Collection, Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from bitnet.errors import ConfigError, DataError, did_you_mean

T = TypeVar("T")
LARGEST = 2**63


def from_json(kind: type[T], values: object, where: str, *, others: Collection[str] | None = None) -> T:
    """The dataclass `kind` with the values of a JSON object. where: the file and section, for the message.

    others: further names that may be there and are ignored; any where None. Raises DataError.
    """
    if not isinstance(values, Mapping):
        raise DataError(f"{where} is {_shown(values)}, not an object; restore the file or start a new run")
    hints = get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    unknown = [] if others is None else [name for name in values if name not in names and name not in others]
    if unknown:
        raise DataError(
            f"{where} has an unknown setting {unknown[0]!r}.{did_you_mean(str(unknown[0]), names)} Correct "
            "it, or restore the file"
        )
    given = check_types({name: values[name] for name in names if name in values}, hints, where)
    try:
        return kind(**given)
    except (ConfigError, TypeError) as error:
        raise DataError(f"{where} cannot be used ({error}); restore the file or start a new run") from None


def check_types(
    values: Mapping[str, Any], hints: Mapping[str, Any], where: str, required: Collection[str] = ()
) -> dict[str, Any]:
    """The values as their types ask for them; names without a type pass as they are. Raises DataError."""
    missing = [name for name in required if name not in values]
    if missing:
        raise DataError(f"{where} lacks {missing[0]}; restore the file or start a new run")
    checked: dict[str, Any] = {}
    for name, value in values.items():
        try:
            checked[name] = _fitted(value, hints.get(name, Any))
        except ValueError:
            expected = _named(hints[name])
            raise DataError(
                f"{where} has {name} = {_shown(value)}, which is not {expected}; restore the file or start a "
                "new run"
            ) from None
    return checked


def fits(value: object, hint: Any) -> bool:
    """Whether a value has a type."""
    try:
        _fitted(value, hint)
    except ValueError:
        return False
    return True


def _fitted(value: Any, hint: Any) -> Any:
    """The value as its type asks for it. Raises ValueError."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _first_fitting(value, arguments)
    if origin is Literal:
        return _demand(any(type(value) is type(one) and value == one for one in arguments), value)
    if origin in (tuple, list, dict):
        return _fitted_parts(value, origin, arguments)
    if hint is float:
        return _demand(type(value) in (int, float) and abs(value) < 1e300, value)  # NaN is not below anything
    if hint is int:
        return _demand(type(value) is int and abs(value) < LARGEST, value)
    return _demand(hint not in (str, bool, dict, list, type(None)) or isinstance(value, hint), value)


def _fitted_parts(value: Any, origin: Any, hints: tuple[Any, ...]) -> Any:
    """A list, tuple or object whose parts have a type each. JSON has lists where a tuple is asked for."""
    if origin is dict:
        _demand(isinstance(value, dict), value)
        return {name: _fitted(one, hints[1]) for name, one in value.items()}
    _demand(isinstance(value, list | tuple), value)
    each = [hints[0]] * len(value) if origin is list or hints[-1] is Ellipsis else list(hints)
    _demand(len(each) == len(value), value)
    return origin(_fitted(one, of_one) for one, of_one in zip(value, each, strict=True))


def _first_fitting(value: Any, hints: Collection[Any]) -> Any:
    for hint in hints:
        try:
            return _fitted(value, hint)
        except ValueError:
            continue
    raise ValueError(value)


def _demand(condition: bool, value: Any) -> Any:
    if not condition:
        raise ValueError(value)
    return value


def _named(hint: Any) -> str:
    """A type in words."""
    words = {
        int: "a whole number",
        float: "a finite number",
        str: "a text",
        bool: "true or false",
        dict: "an object",
        type(None): "null",
    }
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(str(one) for one in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(_named(one) for one in arguments)
    if origin in (tuple, list):
        return f"a list of {_named(arguments[0])}"
    return f"an object of {_named(arguments[1])}" if origin is dict else words.get(hint, str(hint))


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
