"""From a mapping (composed configuration, JSON) to dataclasses, strictly: an unknown key or a wrong
type is an error that names the known ones.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")


class ConfigError(ValueError):
    """A configuration that cannot be meant: unknown key, wrong type, impossible value."""


def build(cls: type[T], values: Any, where: str = "config") -> T:
    """A `cls` from `values`, nested dataclasses and tuples of them included.

    Args:
        cls: a dataclass.
        values: field name -> value; fields with defaults may be left out.
        where: the place of `values` in the whole configuration, for messages.

    Raises:
        ConfigError: unknown or missing key, wrong type, or what the dataclass itself refuses.
    """
    if isinstance(values, cls):
        return values
    if not isinstance(values, Mapping):
        raise ConfigError(
            f"{where}: expected a mapping with the keys of {cls.__name__}, got {values!r}"
        )
    fields = {field.name: field for field in dataclasses.fields(cls)}
    if unknown := sorted(set(values) - set(fields), key=str):
        raise ConfigError(
            f"{where}: unknown key {', '.join(map(repr, unknown))}; known are {', '.join(fields)}"
        )
    required = [
        name for name, f in fields.items() if f.default is f.default_factory is dataclasses.MISSING
    ]
    if missing := [name for name in required if name not in values]:
        raise ConfigError(f"{where}: {', '.join(missing)} must be given")
    kinds = typing.get_type_hints(cls)
    converted = {
        key: _convert(kinds[key], value, f"{where}.{key}") for key, value in values.items()
    }
    try:
        return cls(**converted)
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {error}") from error


def _convert(kind: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return build(kind, value, where)
    if origin is types.UnionType:
        return (
            None
            if value is None
            else _convert(next(a for a in arguments if a is not type(None)), value, where)
        )
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where}: expected a list, got {value!r}")
        if arguments[-1] is Ellipsis:
            return tuple(
                _convert(arguments[0], part, f"{where}[{k}]") for k, part in enumerate(value)
            )
        if len(value) != len(arguments):
            raise ConfigError(f"{where}: expected {len(arguments)} entries, got {value!r}")
        return tuple(
            _convert(a, part, f"{where}[{k}]") for k, (a, part) in enumerate(zip(arguments, value))
        )
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}: expected a mapping, got {value!r}")
        return dict(value)
    # bool is an int in Python, and an int is a fine float; anything else is a typo in a config file
    accepted = (float, int) if kind is float else (kind,)
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise ConfigError(f"{where} = {value!r}: expected {kind.__name__}")
    return float(value) if kind is float else value
